//! Admission: decides on this node which images may run.
//!
//! | file | content |
//! |---|---|
//! | `controller.rs` | combines the log and the chain into one decision |
//! | `rollback.rs` | the high-water marks of both, bound to the TPM's monotonic counter |
//! | `light_client.rs` | the state of the chain, persisted |
//! | `log_sources.rs`, `relays.rs` | poll for newer logs and bundles; every source is untrusted |

mod controller;
mod error;
mod light_client;
pub mod log_sources;
pub mod relays;
mod rollback;
mod sources;

pub use self::controller::Admission;
pub use self::error::AdmissionError;
pub use self::light_client::BundleRequest;
