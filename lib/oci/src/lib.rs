//! Container images in the OCI image layout, as one tar archive.
//!
//! Invariants:
//! - What [`verify`] returns hangs together by digests from the manifest that was asked for down to the unpacked layers.
//! - [`emit`] writes only verified bytes, in one form; nothing of the foreign archive's own structure gets through.
//! - Every size and count has a limit; JSON with a key twice (upper and lower case are the same to the engine) is refused.
#![forbid(unsafe_code)]

mod archive;
mod build;
mod emit;
mod json;
mod layer;

pub use archive::{Layer, Limits, OciError, Verified, verify};
pub use build::{Image, build};
pub use emit::emit;
