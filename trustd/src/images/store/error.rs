//! Errors of the blob store.

use std::io;
use std::path::{Path, PathBuf};

use oci::OciError;

/// Failure of the blob store, or a blob that is rejected.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read, written or removed.
    #[error("cannot access {path}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// The blob does not fit, even after all removable blobs are removed.
    #[error(
        "the blob store is full: {needed} more bytes are needed, and images that run or could be \
         rolled back to use {used} of {quota} bytes; raise store.quota-mib in node.toml, or \
         remove a module"
    )]
    Quota {
        /// Size of the blob in bytes.
        needed: u64,
        /// Size of all blobs that cannot be removed, in bytes.
        used: u64,
        /// Size limit of the store in bytes.
        quota: u64,
    },
    /// The blob or image is rejected.
    #[error(transparent)]
    Oci(#[from] OciError),
}

/// Returns a function that adds the path to an I/O error.
pub(super) fn io_at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path: path.clone(), source }
}
