//! Errors of requests to the engine.

use std::io;
use std::path::PathBuf;

use oci::OciError;

/// Failure of a request to the engine, or a result that differs from the request.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine reported an error or gave no answer.
    #[error("the engine failed to {action}")]
    Request {
        /// Requested action, a verb phrase.
        action: &'static str,
        /// Error of the engine or of the connection to it.
        source: bollard::errors::Error,
    },
    /// The image that the engine should load is not what was verified, or cannot be read.
    #[error(transparent)]
    Image(#[from] OciError),
    /// The authorization plugin's socket cannot be created.
    #[error("cannot listen on {path} for the engine's authorization requests")]
    PluginSocket {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// The engine created something else than what was requested.
    #[error("the engine does not match the request: {what}: expected {expected}, found {found}")]
    Mismatch {
        /// Compared property.
        what: &'static str,
        /// Requested value.
        expected: String,
        /// Value that the engine reports.
        found: String,
    },
}

/// Returns a function that wraps an error of the engine client.
pub(super) fn failed_to(
    action: &'static str,
) -> impl FnOnce(bollard::errors::Error) -> EngineError {
    move |source| EngineError::Request { action, source }
}

/// Reports whether the engine answered that the named object does not exist.
pub(super) fn is_not_found(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 404, .. })
}

/// Wraps an error that does not concern the content of an image.
pub(super) fn io_other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OciError {
    OciError::Io(io::Error::other(error))
}
