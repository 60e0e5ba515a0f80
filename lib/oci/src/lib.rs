//! Container images by digest: strictly verified, canonically written.
//!
//! Invariants:
//! - Every blob is read through [`Checked`]: who got its last byte knows that all of it was what
//!   its digest says.
//! - A [`Verified`] image hangs together by digests from the manifest that was asked for down to
//!   the unpacked layers.
//! - [`emit`] writes only verified bytes, in one form; nothing of a foreign archive's own structure
//!   gets through.
//! - Every size and count has a limit; JSON with a key twice (upper and lower case are the same to
//!   the engine) is refused.
#![forbid(unsafe_code)]

mod archive;
mod build;
mod checked;
mod emit;
mod image;
mod json;
mod layer;
mod memory;

pub use archive::import;
pub use build::{BuiltImage, build};
pub use checked::Checked;
pub use emit::{Emitter, emit};
pub use image::{
    Descriptor, INDEX_TYPES, Image, MANIFEST_TYPES, Platform, Verified, is_digest, resolve,
};
pub use layer::{Compression, Facts, Layer, inspect};
pub use memory::Memory;

use std::io::{self, Read};

/// Bytes and counts beyond which an image is refused.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of an archive, or of all that is fetched for an image.
    pub archive: u64,
    /// Of all layers together, unpacked.
    pub unpacked: u64,
    /// Of one JSON document.
    pub json: u64,
    pub layers: usize,
    /// Members of the archive, and of each layer.
    pub members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { archive: 2 << 30, unpacked: 8 << 30, json: 1 << 20, layers: 64, members: 200_000 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("{0}")]
    Io(io::Error),
    #[error("this is no tar archive: {problem}")]
    Archive { problem: String },
    #[error("the archive's member {member:?} is refused: {why}")]
    Member { member: String, why: String },
    #[error("{what} {digest} is not there")]
    Absent { what: &'static str, digest: String, size: Option<u64> },
    #[error("{what} is not as it should be: {problem}")]
    Document { what: &'static str, problem: String },
    #[error("{what} {digest}: expected {expected}, found {found}")]
    Mismatch { what: &'static str, digest: String, expected: String, found: String },
    #[error("too much: {what} is limited to {limit}")]
    Limit { what: &'static str, limit: u64 },
    #[error("layer {digest} is refused: {problem}")]
    Layer { digest: String, problem: String },
}

impl OciError {
    /// A short name that stays the same while the reason does.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Archive { .. } => "archive",
            Self::Member { .. } => "member",
            Self::Absent { .. } => "absent",
            Self::Document { .. } => "document",
            Self::Mismatch { .. } => "mismatch",
            Self::Limit { .. } => "limit",
            Self::Layer { .. } => "layer",
        }
    }
}

/// A verdict that had to travel as an I/O error arrives as the verdict.
impl From<io::Error> for OciError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(verdict) => verdict,
            Err(error) => Self::Io(error),
        }
    }
}

impl From<OciError> for io::Error {
    fn from(error: OciError) -> Self {
        match error {
            OciError::Io(error) => error,
            verdict => Self::new(io::ErrorKind::InvalidData, verdict),
        }
    }
}

/// Remembers whether it was the source that failed: if not, what comes from a decoder as an I/O
/// error is a verdict on the data.
struct Source<R> {
    from: R,
    failed: bool,
}

impl<R> Source<R> {
    fn new(from: R) -> Self {
        Self { from, failed: false }
    }
}

impl<R: io::Read> io::Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer);
        // The next try of a call that was interrupted says more.
        self.failed |= read.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        read
    }
}

/// Where blobs are read from. Nobody has to trust it: what comes out is checked.
pub trait Blobs {
    type Blob: Read;

    /// The size and the content of a blob, if it is there.
    ///
    /// # Errors
    /// What the storage says.
    fn blob(&self, digest: &str) -> io::Result<Option<(u64, Self::Blob)>>;
}

/// Where blobs are put.
pub trait Sink {
    /// Takes a blob. `content` ends with an error if it is not what the digest says: it must not be
    /// kept then.
    ///
    /// # Errors
    /// Those of `content`, and what the storage says.
    fn put(&mut self, digest: &str, size: u64, content: &mut dyn Read) -> io::Result<()>;
}
