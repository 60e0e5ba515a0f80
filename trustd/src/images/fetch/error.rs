//! Errors of fetching images and small files.

use std::path::PathBuf;

use axum::http::StatusCode;
use config::InvalidValue;
use oci::OciError;

use crate::images::store::StoreError;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Failure of an HTTP request.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There is no connection, or no TLS on it.
    #[error("cannot connect to {host}")]
    Connect {
        /// `HOST[:PORT]`.
        host: String,
        /// Reason.
        source: BoxError,
    },
    /// The host sent almost nothing for too long.
    #[error("{host} stalled: almost no data for {seconds} s")]
    Stalled {
        /// `HOST[:PORT]`.
        host: String,
        /// Time without data.
        seconds: u64,
    },
    /// The connection broke, or the response is not HTTP.
    #[error("the connection to {host} broke")]
    Broken {
        /// `HOST[:PORT]`.
        host: String,
        /// Reason.
        source: BoxError,
    },
    /// The host redirects to an address that is not allowed.
    #[error("{host} redirects to {to:?}, which is not followed: {reason}")]
    Redirect {
        /// `HOST[:PORT]`.
        host: String,
        /// Scheme and host of the address.
        to: String,
        /// Reason.
        reason: &'static str,
    },
    /// The body is too long.
    #[error("{host} sends more than {limit} bytes")]
    TooLong {
        /// `HOST[:PORT]`.
        host: String,
        /// Limit in bytes.
        limit: u64,
    },
    /// The status is not success.
    #[error("{host} answered {status}{}", suffix(message.as_deref()))]
    Status {
        /// `HOST[:PORT]`.
        host: String,
        /// Status of the response.
        status: StatusCode,
        /// Message of the host, shortened.
        message: Option<String>,
    },
    /// The token service sent no token that can be used.
    #[error("{host} sent an invalid token response")]
    Token {
        /// `HOST[:PORT]` of the token service.
        host: String,
    },
}

fn suffix(message: Option<&str>) -> String {
    message.map(|message| format!(": {message}")).unwrap_or_default()
}

/// Failure to fetch a blob from a registry and its mirrors.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No source delivered the blob.
    #[error("no registry delivered {digest}: {}", problems.join("; "))]
    Unreachable {
        /// Digest of the blob.
        digest: String,
        /// Problem of each source.
        problems: Vec<String>,
    },
    /// A source delivered something else.
    #[error("{host} sent something else than requested")]
    WrongContent {
        /// `HOST[:PORT]`.
        host: String,
        /// Difference.
        source: OciError,
    },
    /// The store failed or is full.
    #[error(transparent)]
    Store(StoreError),
}

/// Failure of one attempt to fetch a blob from one host.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{host} sent something else than requested")]
    WrongContent { host: String, source: OciError },
    #[error(transparent)]
    Store(StoreError),
}

/// Failure to fetch and verify an image.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed, or the image is rejected.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No registry delivered a blob.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The archive on the read-only root cannot be read.
    #[error("cannot read the archive {path}")]
    Archive {
        /// Path of the archive.
        path: PathBuf,
        /// Error of the system call.
        source: std::io::Error,
    },
    /// The archive on the read-only root is rejected.
    #[error("the archive {path} is rejected")]
    RejectedArchive {
        /// Path of the archive.
        path: PathBuf,
        /// Reason.
        source: OciError,
    },
    /// A blob is missing and there is no place to fetch it from.
    #[error(
        "{what} {digest} is not on this node, and the module file names no registry; upload the \
         image: trustctl image push ARCHIVE"
    )]
    NoSource {
        /// Role of the blob in the image.
        what: &'static str,
        /// Digest of the blob.
        digest: String,
    },
    /// A background task failed.
    #[error("a background task failed")]
    Task(#[source] BoxError),
}

impl FetchError {
    /// Reports whether a retry may succeed, because the error says nothing about the image itself.
    pub fn is_transient(&self) -> bool {
        let storage_failed = |error: &StoreError| match error {
            StoreError::Oci(OciError::Io(_)) => true,
            StoreError::Oci(_) => false,
            StoreError::Io { .. } | StoreError::Quota { .. } => true,
        };
        match self {
            Self::Registry(RegistryError::Unreachable { .. }) | Self::Task(_) => true,
            Self::Registry(RegistryError::Store(error)) | Self::Store(error) => {
                storage_failed(error)
            }
            Self::RejectedArchive { source, .. } => matches!(source, OciError::Io(_)),
            Self::Registry(RegistryError::WrongContent { .. })
            | Self::Archive { .. }
            | Self::NoSource { .. } => false,
        }
    }
}

impl From<OciError> for FetchError {
    fn from(error: OciError) -> Self {
        Self::Store(error.into())
    }
}

/// Failure to fetch a small file, such as a log.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The request failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The source requires TLS and the host's settings exclude it.
    #[error("the source uses https, but [[registries]] sets {host} to plain")]
    PlainHost {
        /// `HOST[:PORT]`.
        host: String,
    },
    /// The reference is not `HOST[:PORT]/REPOSITORY`.
    #[error("invalid repository")]
    Repository(#[source] InvalidValue),
    /// The tag leads to something else than an artifact.
    #[error("{tag} is not an artifact's manifest")]
    Manifest {
        /// Tag of the artifact.
        tag: String,
        /// Error of the JSON parser.
        source: serde_json::Error,
    },
    /// The artifact has no layer.
    #[error("the artifact {tag} has no layer")]
    NoLayer {
        /// Tag of the artifact.
        tag: String,
    },
    /// The manifest names a layer by something else than a digest.
    #[error("the artifact {tag} has an invalid layer")]
    Layer {
        /// Tag of the artifact.
        tag: String,
        /// Invalid digest.
        source: InvalidValue,
    },
    /// The host delivered something else.
    #[error("{host} sent {found} for {expected}")]
    WrongDigest {
        /// `HOST[:PORT]`.
        host: String,
        /// Requested digest.
        expected: String,
        /// Digest of the delivered bytes.
        found: String,
    },
}
