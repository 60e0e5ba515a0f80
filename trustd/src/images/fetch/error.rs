//! Errors of fetching images and small files.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

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
    /// The host demands authorization that this node does not have.
    #[error("{host} answered 401 Unauthorized")]
    Unauthorized {
        /// `HOST[:PORT]`.
        host: String,
        /// Why its challenge is not answered.
        source: ChallengeError,
    },
    /// The host asks for a pause.
    #[error("{host} answered {status} and asks for a pause of {seconds} s")]
    Busy {
        /// `HOST[:PORT]`.
        host: String,
        /// Status of the response.
        status: StatusCode,
        /// Length of the pause.
        seconds: u64,
        /// Time until its end.
        left: Duration,
    },
    /// The host used up what a source may use for one blob.
    #[error("{host} used up the {part} that a source has for one blob")]
    Budget {
        /// `HOST[:PORT]`.
        host: String,
        /// What was used up.
        part: BudgetPart,
    },
    /// Another host named an address that is on the local network or on the node itself.
    #[error(
        "a host with an address of a larger network sends the node to {host}, which is on the \
         local network or on the node itself; if that is right, list {host} under [[registries]] \
         in node.toml"
    )]
    Inward {
        /// `HOST[:PORT]`.
        host: String,
    },
    /// The body ends before the blob does.
    #[error("{host} ended the transfer after {received} of {size} bytes")]
    Truncated {
        /// `HOST[:PORT]`.
        host: String,
        /// Bytes of the blob that arrived.
        received: u64,
        /// Size of the blob in bytes.
        size: u64,
    },
    /// The response holds another part of the blob than the requested one.
    #[error("{host} sends another part of the blob than bytes {start} to {}", size - 1)]
    WrongRange {
        /// `HOST[:PORT]`.
        host: String,
        /// First requested byte.
        start: u64,
        /// Size of the blob in bytes.
        size: u64,
    },
    /// The body is compressed once more, although the request asks for the bytes as they are.
    #[error("{host} sends other bytes than requested, with a Content-Encoding")]
    Encoded {
        /// `HOST[:PORT]`.
        host: String,
    },
    /// The token service sent no token that can be used.
    #[error("{host} sent an invalid token response")]
    Token {
        /// `HOST[:PORT]` of the token service.
        host: String,
    },
}

impl HttpError {
    /// Reports whether the same source can deliver the blob at another request.
    pub(super) fn is_worth_a_retry(&self, made_progress: bool) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } | Self::Truncated { .. } => true,
            Self::Stalled { .. } => made_progress,
            Self::Status { status, .. } => {
                let (timeout, early) = (StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY);
                let busy = StatusCode::TOO_MANY_REQUESTS;
                status.is_server_error() || [timeout, early, busy].contains(status)
            }
            _ => false,
        }
    }
}

/// Part of what a source may use for one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetPart {
    /// Requests, including redirects and requests for tokens.
    Requests,
    /// Bytes of bodies.
    Bytes,
    /// Time.
    Time,
}

impl fmt::Display for BudgetPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::Time => "time",
        })
    }
}

/// Reason why a host's challenge is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// The host offers no scheme that this node knows.
    #[error(
        "expected a challenge of the scheme Basic or Bearer, found {}",
        if schemes.is_empty() { "none".to_owned() } else { schemes.join(", ") }
    )]
    Unsupported {
        /// Names of the offered schemes.
        schemes: Vec<String>,
    },
    /// The host wants a password and node.toml has none.
    #[error("set its user and password under [[registries]] in node.toml")]
    NoPassword,
    /// A host that a redirect leads to wants a password.
    #[error(
        "a redirect led to this host, which therefore gets no password; if the image is there, name \
         this host in the module file"
    )]
    PasswordAfterRedirect,
    /// The challenge names no token service.
    #[error("its challenge names no realm to request a token from")]
    NoRealm,
    /// The address of the token service cannot be used.
    #[error("the realm of its challenge cannot be used")]
    Realm {
        /// What is wrong with the address.
        source: Box<HttpError>,
    },
    /// The token service is a host that must not get the password.
    #[error(
        "its tokens come from {token_host}, which must not get the registry's password; if it may, \
         add {token_host:?} to token-hosts of the registry under [[registries]] in node.toml"
    )]
    ForeignTokenHost {
        /// `HOST[:PORT]` of the token service.
        token_host: String,
    },
    /// The token service gives no token.
    #[error(
        "its token service {token_host} answered {status}; {} under [[registries]] in node.toml",
        if *with_password { "check user and password" } else { "set user and password" }
    )]
    TokenDenied {
        /// `HOST[:PORT]` of the token service.
        token_host: String,
        /// Status of its response.
        status: StatusCode,
        /// The request had the registry's password.
        with_password: bool,
    },
    /// The host rejects what answers its challenge.
    #[error("it rejects the token or the password; check them and the name of the repository")]
    Rejected,
    /// A host that a redirect leads to rejects an anonymous token.
    #[error(
        "a redirect led to this host, which rejects an anonymous token; if the image is there, name \
         this host in the module file"
    )]
    RejectedAfterRedirect,
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

impl From<StoreError> for AttemptError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
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
