//! Shared parts of polling log sources and relays: reading a source, and the status of each.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use api::owner::SourceStatus;
use config::LogSource;

use crate::images::fetch::{FileError, RegistryClient};
use crate::util::clock;
use crate::util::lock::lock;

/// Pause before the second poll. It doubles until the first success, because the network may not be
/// up yet.
pub(super) const BACKOFF_INITIAL: Duration = Duration::from_secs(5);
/// Time after which a silent source counts as failed, so that it does not delay the others.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Length to which the description of a problem is cut, because it can contain a source's own text.
const MAX_PROBLEM_CHARS: usize = 300;

/// Error of reading a source.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// The file cannot be read.
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    /// The task that reads the file failed.
    #[error("the task that reads the file failed")]
    Task(#[from] tokio::task::JoinError),
    /// The download failed.
    #[error(transparent)]
    Fetch(#[from] FileError),
    /// The source is too slow.
    #[error("the source did not send everything within {} s", READ_TIMEOUT.as_secs())]
    Timeout,
    /// The source has too many bytes.
    #[error("the source has more than {max_bytes} bytes")]
    TooLarge {
        /// Largest size that is read.
        max_bytes: u64,
    },
    /// The source has bytes that are not text.
    #[error("the source has bytes that are not UTF-8 text")]
    NotText,
}

/// Status of each source, by address.
#[derive(Default)]
pub(super) struct SourceStatuses(Mutex<BTreeMap<String, SourceStatus>>);

impl SourceStatuses {
    /// Returns the status of every source that was polled.
    pub(super) fn all(&self) -> BTreeMap<String, SourceStatus> {
        lock(&self.0).clone()
    }

    /// Stores the result of a poll, and logs it if it differs from the one before. `kind` is the
    /// kind of the source.
    pub(super) fn update(&self, kind: &str, source: &LogSource, problem: Option<String>) {
        // The text can come from the source and goes to consoles and terminals.
        let problem = problem.map(|text| {
            text.chars().filter(|c| !c.is_control()).take(MAX_PROBLEM_CHARS).collect::<String>()
        });
        let status = SourceStatus { polled: clock::unix_seconds(), problem: problem.clone() };
        let previous = lock(&self.0).insert(source.to_string(), status);
        if previous.and_then(|status| status.problem) != problem {
            match problem {
                Some(problem) => logging::warn!("{kind} {source}: {problem}"),
                None => logging::info!("{kind} {source}: works again"),
            }
        }
    }
}

/// Reads a text of at most `max_bytes` bytes.
///
/// # Errors
/// [`SourceError`].
pub(super) async fn read(
    client: &RegistryClient,
    source: &LogSource,
    max_bytes: u64,
) -> Result<String, SourceError> {
    let reading = async {
        match source {
            LogSource::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&path, max_bytes)).await;
                read?.map_err(SourceError::File)
            }
            LogSource::Http { tls, host, path } => {
                Ok(client.get_file(*tls, host, path, max_bytes).await?)
            }
            LogSource::Oci { registry, tag } => {
                Ok(client.get_artifact(registry, tag, max_bytes).await?)
            }
        }
    };
    let bytes =
        tokio::time::timeout(READ_TIMEOUT, reading).await.map_err(|_| SourceError::Timeout)??;
    if bytes.len() as u64 > max_bytes {
        return Err(SourceError::TooLarge { max_bytes });
    }
    String::from_utf8(bytes).map_err(|_| SourceError::NotText)
}

/// Reads up to one byte more than `max_bytes`.
fn read_file(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular_file(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a file. Rejects pipes and devices, which can block.
pub(super) fn open_regular_file(path: &Path) -> std::io::Result<std::fs::File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    std::fs::File::open(path)
}
