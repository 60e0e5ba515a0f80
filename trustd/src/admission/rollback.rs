//! Rollback protection: the newest state of the ledger that this node has seen, in a file that only
//! this node can write and that cannot be replaced by an older one.
//!
//! Invariants:
//! - The file is written before the TPM's monotonic counter is incremented.
//! - Only the file with the counter's present value counts.
//! - A write that hangs can be abandoned. It then changes nothing after a later one began.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ledger::HighWaterMark;
use measure::Digest;
use serde::{Deserialize, Serialize};

use super::background::run_blocking;
use super::error::AdmissionError;
use crate::keys::derive::RootKey;
use crate::tpm::Tpm;
use crate::util::atomic_file;
use crate::util::failpoint::fail_point;
use crate::util::lock::lock;

/// The newest states that this node has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HighWaterMarks {
    /// State of the log.
    pub(super) log: HighWaterMark,
    /// SHA-256 of the persisted state of the chain.
    pub(super) chain: Option<Digest>,
}

/// Content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedMark {
    /// Value of the TPM's counter.
    counter: u64,
    root: String,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    /// Authentication tag over the fields above.
    tag: String,
}

impl SealedMark {
    /// Returns the text that the tag authenticates.
    fn tagged_text(&self) -> String {
        let Self { counter, root, seq, chain, .. } = self;
        match chain {
            None => format!("{counter} {root} {seq}"),
            Some(chain) => format!("{counter} {root} {seq} {chain}"),
        }
    }
}

/// Reads and writes the high-water marks.
pub(super) struct RollbackGuard {
    data: PathBuf,
    tpm: Tpm,
    root_key: Arc<RootKey>,
    next_write: AtomicU64,
    /// Number of the newest write of the file. Locked only by threads that may wait for the disk.
    newest_write: Arc<Mutex<u64>>,
}

impl RollbackGuard {
    pub(super) fn new(data: &Path, tpm: Tpm, root_key: Arc<RootKey>) -> Self {
        let (next_write, newest_write) = (AtomicU64::new(1), Arc::default());
        Self { data: data.to_owned(), tpm, root_key, next_write, newest_write }
    }

    fn path(&self) -> PathBuf {
        self.data.join("ledger.seen")
    }

    fn compute_tag(&self, mark: &SealedMark) -> String {
        measure::hex(&self.root_key.compute_tag("ledger-mark", mark.tagged_text().as_bytes()))
    }

    /// Reads the marks. Returns the default if this node has seen nothing yet. Completes a write
    /// that a kill interrupted between file and counter.
    ///
    /// # Errors
    /// [`AdmissionError::HighWaterMark`] if the file is missing, damaged, older than the counter,
    /// or of another node; another [`AdmissionError`] if the file cannot be read or the TPM fails.
    pub(super) async fn read(&self) -> Result<HighWaterMarks, AdmissionError> {
        let path = self.path();
        let text = match tokio::fs::read_to_string(&path).await {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(AdmissionError::Io { path, source }),
        };
        let unusable =
            |problem: String| AdmissionError::HighWaterMark { path: path.clone(), problem };
        let (text, counter) = match (text, self.tpm.read_counter().await?) {
            (None, None) => return Ok(HighWaterMarks::default()),
            (None, Some(counter)) => {
                let problem = format!("the file is missing, but the TPM's counter is {counter}");
                return Err(unusable(problem));
            }
            (Some(_), None) => {
                let problem = "the TPM's counter was never incremented; is it another TPM?";
                return Err(unusable(problem.into()));
            }
            (Some(text), Some(counter)) => (text, counter),
        };
        let mark: SealedMark = serde_json::from_str(&text)
            .map_err(|error| unusable(format!("it is damaged ({error})")))?;
        if mark.tag != self.compute_tag(&mark) {
            return Err(unusable("this node did not write it".into()));
        }
        let marks = parse_marks(&mark)
            .ok_or_else(|| unusable("expected digests of 64 hex digits".to_owned()))?;
        if mark.counter == counter + 1 {
            // A kill came between the file and the counter.
            self.tpm.increment_counter().await?;
        } else if mark.counter != counter {
            return Err(unusable(format!(
                "it has the counter value {}, the TPM's counter is {counter}: an older state was \
                 restored",
                mark.counter
            )));
        }
        Ok(marks)
    }

    /// Writes the marks: first the file, then the counter.
    ///
    /// # Errors
    /// [`AdmissionError`] if the file cannot be written or the TPM fails. The old or the new marks
    /// are then in force.
    pub(super) async fn write(&self, marks: &HighWaterMarks) -> Result<(), AdmissionError> {
        let counter = match self.tpm.read_counter().await? {
            Some(counter) => counter,
            None => self.tpm.increment_counter().await?,
        };
        let mut mark = SealedMark {
            counter: counter + 1,
            root: measure::hex(&marks.log.root),
            seq: marks.log.seq,
            chain: marks.chain.map(|digest| measure::hex(&digest)),
            tag: String::new(),
        };
        mark.tag = self.compute_tag(&mark);
        let path = self.path();
        let text = serde_json::to_string(&mark).unwrap_or_default();
        let (newest_write, number) =
            (self.newest_write.clone(), self.next_write.fetch_add(1, Ordering::Relaxed));
        run_blocking(move || {
            let mut newest = lock(&newest_write);
            if number < *newest {
                return Err(AdmissionError::Superseded);
            }
            *newest = number;
            atomic_file::write(&path, text.as_bytes())
                .map_err(|source| AdmissionError::Io { path, source })
        })
        .await?;
        fail_point("marked");
        self.tpm.increment_counter().await?;
        Ok(())
    }
}

/// Parses the digests of a mark. Returns `None` if one of them is malformed.
fn parse_marks(mark: &SealedMark) -> Option<HighWaterMarks> {
    let digest = |hex: &str| -> Option<Digest> { measure::unhex(hex)?.try_into().ok() };
    let chain = match &mark.chain {
        Some(hex) => Some(digest(hex)?),
        None => None,
    };
    Some(HighWaterMarks { log: HighWaterMark { seq: mark.seq, root: digest(&mark.root)? }, chain })
}
