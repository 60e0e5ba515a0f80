//! Work that blocks.

use super::error::AdmissionError;

/// Runs work that blocks on a thread of its own.
///
/// # Errors
/// The error of the work, and [`AdmissionError::Background`].
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdmissionError> + Send + 'static,
) -> Result<T, AdmissionError> {
    let failed = |error| AdmissionError::Background(std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
