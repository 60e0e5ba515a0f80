//! Admission: decides on this node which images may run.
//!
//! | file | content |
//! |---|---|
//! | `controller.rs` | combines the log and the chain into one decision |
//! | `ledger_log.rs` | the log: its state in memory, its text on disk |
//! | `log_intake.rs`, `checked_text.rs` | verification of a log while its text arrives |
//! | `log_folder.rs`, `stored_log.rs`, `spool.rs` | the log's files |
//! | `rollback.rs` | the high-water marks of both, bound to the TPM's monotonic counter |
//! | `light_client.rs` | the state of the chain, persisted |
//! | `log_sources.rs`, `relays.rs` | poll for newer logs and bundles; every source is untrusted |

mod background;
mod checked_text;
mod controller;
mod error;
mod ledger_log;
mod light_client;
mod log_folder;
mod log_intake;
pub mod log_sources;
pub mod relays;
mod rollback;
mod source_budget;
mod sources;
mod spool;
mod stored_log;

pub use self::controller::Admission;
pub use self::error::AdmissionError;
pub use self::light_client::BundleRequest;
