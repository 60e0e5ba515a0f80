//! How far this node has seen its ledger, in a file that nobody else can write and that cannot be
//! put back.
//!
//! Invariant: the file is on disk before the TPM's counter moves, and only the file of the
//! counter's present step counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger::HighWater;
use serde::{Deserialize, Serialize};

use crate::admission::error::ApprovalError;
use crate::keys::derive::RootKey;
use crate::tpm::Tpm;
use crate::util::atomic_file;

/// What must not be undone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) log: HighWater,
    /// SHA-256 of what is kept of the chain.
    pub(crate) chain: Option<measure::Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    /// Where the TPM's counter stands.
    counter: u64,
    root: String,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    /// Over the fields above.
    tag: String,
}

impl Mark {
    fn text(&self) -> String {
        let Self { counter, root, seq, chain, .. } = self;
        match chain {
            None => format!("{counter} {root} {seq}"),
            Some(chain) => format!("{counter} {root} {seq} {chain}"),
        }
    }
}

/// Where that is kept.
pub(crate) struct Marks {
    data: PathBuf,
    tpm: Tpm,
    root: Arc<RootKey>,
}

impl Marks {
    fn path(&self) -> PathBuf {
        self.data.join("ledger.seen")
    }

    fn tag(&self, mark: &Mark) -> String {
        measure::hex(&self.root.tag("ledger-mark", mark.text().as_bytes()))
    }

    pub(crate) fn new(data: &Path, tpm: Tpm, root: Arc<RootKey>) -> Self {
        Self { data: data.to_owned(), tpm, root }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) async fn read(&self) -> Result<Seen, ApprovalError> {
        let path = self.path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(ApprovalError::Io { path, source }),
        };
        let unusable = |problem: String| ApprovalError::HighWater { path: path.clone(), problem };
        let (text, counter) = match (text, self.tpm.counter().await?) {
            // Neither: this node has seen nothing yet.
            (None, None) => return Ok(Seen::default()),
            (None, Some(counter)) => {
                return Err(unusable(format!(
                    "it is not there, and the TPM has counted to {counter}"
                )));
            }
            (Some(_), None) => {
                return Err(unusable("the TPM never counted; is it another one?".into()));
            }
            (Some(text), Some(counter)) => (text, counter),
        };
        let mark: Mark =
            serde_json::from_str(&text).map_err(|e| unusable(format!("it is damaged ({e})")))?;
        if mark.tag != self.tag(&mark) {
            return Err(unusable("this node did not write it".into()));
        }
        let digest = |hex: &String| measure::unhex(hex).and_then(|b| b.try_into().ok());
        let wrong = || unusable("a digest in it is not 64 hex digits".into());
        let root = digest(&mark.root).ok_or_else(wrong)?;
        let chain = mark.chain.as_ref().map(|hex| digest(hex).ok_or_else(wrong)).transpose()?;
        if mark.counter == counter + 1 {
            // Killed between the file and the counter.
            self.tpm.increment().await?;
        } else if mark.counter != counter {
            return Err(unusable(format!(
                "it is of step {}, the TPM has counted to {counter}: an older state was put back",
                mark.counter
            )));
        }
        Ok(Seen { log: HighWater { seq: mark.seq, root }, chain })
    }

    /// First the file, then the counter.
    pub(crate) async fn write(&self, seen: &Seen) -> Result<(), ApprovalError> {
        let before = match self.tpm.counter().await? {
            Some(counter) => counter,
            None => self.tpm.increment().await?,
        };
        let chain = seen.chain.map(|digest| measure::hex(&digest));
        let mut mark = Mark {
            counter: before + 1,
            root: measure::hex(&seen.log.root),
            seq: seen.log.seq,
            chain,
            tag: String::new(),
        };
        mark.tag = self.tag(&mark);
        let path = self.path();
        let text = serde_json::to_string(&mark).unwrap_or_default();
        atomic_file::write(&path, text.as_bytes())
            .map_err(|source| ApprovalError::Io { path, source })?;
        crate::util::failpoint::fail_point("marked");
        self.tpm.increment().await?;
        Ok(())
    }
}
