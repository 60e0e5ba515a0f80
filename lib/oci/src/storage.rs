//! Storage that blobs are read from and written to.

use std::io::{self, Read};

/// Storage that blobs are read from. It is not trusted: all blobs are verified.
pub trait Blobs {
    /// Content of a blob.
    type Blob: Read;

    /// Returns size and content of a blob, or `None` if it is missing.
    ///
    /// # Errors
    ///
    /// Returns the errors of the storage.
    fn blob(&self, digest: &str) -> io::Result<Option<(u64, Self::Blob)>>;
}

/// Storage that blobs are written to.
pub trait Sink {
    /// Stores a blob. `content` ends with an error if it does not match the digest; the storage
    /// must then discard the blob.
    ///
    /// # Errors
    ///
    /// Returns the errors of `content` and of the storage.
    fn put(&mut self, digest: &str, size: u64, content: &mut dyn Read) -> io::Result<()>;
}
