//! The Docker Engine, as trustd uses it: a few operations, each with its result verified.
//!
//! Invariants:
//! - An image is loaded only as the archive that `oci` wrote from verified blobs.
//! - A container is created only from the full digest of its manifest and from one template.
//! - The configuration that the engine reports for a container is verified before the container
//!   starts.

mod client;
mod config_digest;
mod error;
pub mod inventory;
mod load;
mod template;
mod tickets;
mod types;
mod upload;

pub use client::Engine;
pub use config_digest::ConfigDigest;
pub use error::EngineError;
pub use load::{ImageLoad, ImageRecorder, LoadLock};
pub use template::{ContainerPlan, MODULE_LABEL, ensure_volume_dir, module_network, peer_network};
pub use tickets::{Tickets, serve_plugin};
pub use types::{Container, EngineImage, Inspection, image_tag};
