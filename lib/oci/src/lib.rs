//! OCI images by digest: strict verification and canonical export.
//!
//! Invariants:
//! - Every blob is read through [`Checked`], which reports the end only if all bytes match the
//!   digest.
//! - In a [`Verified`] image, every part is bound by digests to the requested manifest, down to the
//!   unpacked layers.
//! - [`export`] writes only verified bytes, in one canonical form. No other data of an imported
//!   archive reaches the engine.
//! - The engine reads layers and documents as this crate does, or they are rejected: see `tar_reader`
//!   and `json`.
//! - Every size and count has a limit.
//! - The crate does no I/O except on the streams that it is given.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod build;
mod checked;
mod claim;
mod compression;
mod descriptor;
mod document;
mod error;
mod export;
mod failure_tracker;
mod image;
mod import;
mod index;
mod json;
mod layer;
mod limits;
mod media_type;
mod memory;
mod platform;
mod storage;
mod tar_reader;

pub use build::{BuiltImage, build};
pub use checked::Checked;
pub use claim::{Claim, ClaimedLayer, digests_in};
pub use compression::Compression;
pub use descriptor::Descriptor;
pub use document::is_digest;
pub use error::OciError;
pub use export::{Exporter, export};
pub use image::{Image, Verified, resolve};
pub use import::import;
pub use layer::{Layer, LayerInfo, inspect, list_members};
pub use limits::Limits;
pub use media_type::{INDEX_TYPES, MANIFEST_TYPES};
pub use memory::Memory;
pub use platform::Platform;
pub use storage::{Blobs, Sink};
pub use tar_reader::{Member, MemberKind};
