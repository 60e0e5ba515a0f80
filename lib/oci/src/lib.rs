//! OCI images by digest: strict verification and canonical export.
//!
//! Invariants:
//! - Every blob is read through [`Checked`], which reports the end only if all bytes match the
//!   digest.
//! - In a [`Verified`] image, every part is bound by digests to the requested manifest, down to the
//!   unpacked layers.
//! - [`export`] writes only verified bytes, in one canonical form. No other data of an imported
//!   archive reaches the engine.
//! - Every size and count has a limit. JSON objects with a repeated key are rejected; the engine
//!   ignores the case of keys, and so does this check.
//! - The crate does no I/O except on the streams that it is given.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod build;
mod checked;
mod claim;
mod descriptor;
mod error;
mod export;
mod failure_tracker;
mod image;
mod import;
mod json;
mod layer;
mod limits;
mod memory;
mod storage;

pub use build::{BuiltImage, build};
pub use checked::Checked;
pub use claim::{Claim, ClaimedLayer, digests_in};
pub use descriptor::Descriptor;
pub use error::OciError;
pub use export::{Exporter, export};
pub use image::{INDEX_TYPES, Image, MANIFEST_TYPES, Platform, Verified, is_digest, resolve};
pub use import::import;
pub use layer::{Compression, Layer, LayerInfo, inspect};
pub use limits::Limits;
pub use memory::Memory;
pub use storage::{Blobs, Sink};
