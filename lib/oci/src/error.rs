//! The error type of the crate.

use std::io;

/// Error of reading, verifying or writing an image.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The storage or a stream failed. This says nothing about the image.
    #[error(transparent)]
    Io(io::Error),
    /// The data is not a tar archive.
    #[error("not a tar archive: {problem}")]
    Archive {
        /// Message of the tar reader.
        problem: String,
    },
    /// A member of the archive is not allowed.
    #[error("member {member:?} of the archive is rejected: {reason}")]
    Member {
        /// Name of the member.
        member: String,
        /// Reason of the rejection.
        reason: String,
    },
    /// A blob is missing.
    #[error("{what} {digest} is missing")]
    Absent {
        /// Role of the blob, such as "the manifest".
        what: &'static str,
        /// Digest of the blob.
        digest: String,
        /// Size of the blob, if a descriptor states it.
        size: Option<u64>,
    },
    /// A JSON document is malformed or not allowed.
    #[error("{what} is invalid: {problem}")]
    Document {
        /// Role of the document, such as "the manifest".
        what: &'static str,
        /// Description of the problem.
        problem: String,
    },
    /// Data does not match its digest, size or description.
    #[error("{what} {digest}: expected {expected}, found {found}")]
    Mismatch {
        /// Compared property, such as "the blob".
        what: &'static str,
        /// Digest of the blob.
        digest: String,
        /// Expected value.
        expected: String,
        /// Actual value.
        found: String,
    },
    /// A limit is exceeded.
    #[error("limit exceeded: {what}, at most {limit}")]
    Limit {
        /// Limited quantity with its unit.
        what: &'static str,
        /// Greatest allowed value.
        limit: u64,
    },
    /// A layer is malformed or not allowed.
    #[error("layer {digest} is rejected: {problem}")]
    Layer {
        /// Digest of the layer; empty until [`OciError::in_layer`] adds it.
        digest: String,
        /// Description of the problem.
        problem: String,
    },
}

impl OciError {
    /// Returns a short name of the kind of error, for events and API answers.
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

/// Restores an [`OciError`] that was converted into an I/O error.
impl From<io::Error> for OciError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) => Self::Io(error),
        }
    }
}

impl From<OciError> for io::Error {
    fn from(error: OciError) -> Self {
        match error {
            OciError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
