//! The ledger on this node: where its log lies, how far this node has seen it, what it decides.
//!
//! Invariants:
//! - The high water mark is on disk, and the TPM's counter moved, before a longer log is used.
//! - The mark carries a tag under a key that the TPM seals, and the value of the counter: neither an older mark nor one of
//!   somebody's own making counts, even when the whole data partition is put back. Without its mark nothing is approved.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Checkpoints, Ledger, Node};
use ledger::{Decision, HighWater, Log, LogError, Policy, Reason};
use serde::{Deserialize, Serialize};

use crate::crypto::keys::RootKey;
use crate::files;
use crate::tpm::{Tpm, TpmError};

#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Tpm(#[from] TpmError),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}, which says how far this node has seen the ledger, cannot be used: {problem}; until then nothing is approved. {RESET}")]
    HighWater { path: PathBuf, problem: String },
    #[error(
        "the log of the image and the log on the data partition are not two stages of one log; one of them is forged or of another ledger"
    )]
    Fork,
}

const RESET: &str =
    "If you know why (a new card, a TPM that was exchanged or cleared): trustctl log reset, which is recorded for all to see";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    /// Where the TPM's counter stands.
    counter: u64,
    root: String,
    seq: u64,
    /// Over the fields above.
    tag: String,
}

struct Held {
    text: String,
    /// What it comes to.
    log: Log,
    /// How far the mark is.
    marked: HighWater,
    /// Text and mark are where they last.
    kept: bool,
}

pub struct Approvals {
    policy: Policy,
    /// The log; or why it cannot be used.
    state: RwLock<Result<Held, String>>,
    /// One longer log at a time.
    alone: tokio::sync::Mutex<()>,
    marks: Marks,
    etc: PathBuf,
    floor: u64,
    grace: Duration,
    stale_grace: Duration,
}

/// What the owner is told of the ledger.
#[derive(Serialize)]
pub struct View {
    statements: u64,
    /// The root of its Merkle tree, hex.
    root: String,
    approvers: Vec<String>,
    threshold: usize,
    /// Since when enough witnesses vouch for it, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    witnessed: Option<u64>,
    /// For how many seconds after that it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_s: Option<u64>,
}

impl Approvals {
    /// Whose approvals these are; it outlives changes of the approvers by themselves.
    pub fn identity(&self) -> measure::Digest {
        self.policy.identity()
    }

    /// Never fails for the ledger's sake: one that cannot be used denies everything, with its reason.
    pub async fn open(node: &Node, etc: &Path, data: &Path, floor: u64, tpm: Tpm, root: Arc<RootKey>) -> Result<Self, LogError> {
        let Ledger::Log { revocation_grace_s, checkpoints, .. } = &node.ledger;
        let stale_grace_s = checkpoints.as_ref().map_or(0, |Checkpoints { stale_grace_s, .. }| *stale_grace_s);
        let approvals = Self {
            policy: Policy::try_from(&node.ledger)?,
            state: RwLock::new(Err("it was not read yet".into())),
            alone: tokio::sync::Mutex::default(),
            marks: Marks { data: data.to_owned(), tpm, root },
            etc: etc.to_owned(),
            floor,
            grace: Duration::from_secs(*revocation_grace_s),
            stale_grace: Duration::from_secs(stale_grace_s),
        };
        let read = match approvals.marks.read().await {
            Ok(seen) => approvals.read(&seen, false).await,
            Err(error) => Err(error),
        };
        if let Err(problem) = &read {
            println!("ledger: {problem}");
        }
        approvals.set(read.map_err(|error| error.to_string()));
        Ok(approvals)
    }

    fn set(&self, state: Result<Held, String>) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub fn decide(&self, digest: &str) -> Decision {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(Held { log, .. }) => log.decide(digest, now(), self.floor),
            Err(problem) => Decision::Deny(Reason::Ledger(problem.clone())),
        }
    }

    /// How long what runs may go on after it was found to be forbidden.
    pub fn grace(&self, reason: &Reason) -> Duration {
        match reason {
            Reason::Revoked { .. } => self.grace,
            // Counted from when it became too old, whatever was restarted since.
            Reason::Stale { witnessed, now, max_age } => {
                let over = now.saturating_sub(*witnessed).saturating_sub(*max_age);
                if Duration::from_secs(over) > self.stale_grace { Duration::ZERO } else { Duration::MAX }
            }
            _ => Duration::ZERO,
        }
    }

    /// The whole log as text.
    pub fn text(&self) -> Result<String, String> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(Held { text, .. }) => Ok(text.clone()),
            Err(problem) => Err(problem.clone()),
        }
    }

    /// The same in short; or why it cannot be used.
    pub fn view(&self) -> Result<View, String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Held { log, .. } = state.as_ref().map_err(Clone::clone)?;
        let (HighWater { seq, root }, (approvers, threshold)) = (log.high_water(), log.approvers());
        let witnessed = log.witnessed(now());
        let max_age_s = self.policy.witnessing.as_ref().filter(|_| witnessed.is_some()).map(|w| w.max_age);
        Ok(View { statements: seq, root: measure::hex(&root), approvers, threshold, witnessed, max_age_s })
    }

    /// Takes a longer log, or a fresher one: all of it is checked, and it must continue the one that this node has. Says how
    /// many statements there are now, and whether anything is new.
    pub async fn extend(&self, fresh: &str) -> Result<(u64, bool), ApprovalError> {
        let _alone = self.alone.lock().await;
        let known = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            // Sources say the same again and again.
            Ok(held) if held.kept && held.text == fresh => return Ok((held.log.high_water().seq, false)),
            Ok(held) => Some((held.log.clone(), held.marked.clone(), held.kept)),
            Err(_) => None,
        };
        let (seen, marked) = match &known {
            Some((log, marked, _)) => (log.high_water(), marked.clone()),
            None => {
                let marked = self.marks.read().await?;
                (marked.clone(), marked)
            }
        };
        let log = Log::replay(&self.policy, fresh, &seen)?;
        let (high_water, path) = (log.high_water(), log_path(&self.marks.data));
        // An older cosignature of the same statements must not make the ledger older.
        if known.is_some_and(|(known, _, kept)| kept && known.high_water() == high_water && !log.better_than(&known, now())) {
            return Ok((high_water.seq, false));
        }
        let mut kept = files::write(&path, fresh.as_bytes()).map_err(|source| ApprovalError::Io { path, source });
        if kept.is_ok() && high_water != marked {
            kept = self.marks.write(&high_water).await;
        }
        // A full disk must not keep a revocation from taking effect; an approval waits until it is kept, and so does who sent it.
        self.set(Ok(match &kept {
            Ok(()) => Held { text: fresh.to_owned(), log, marked: high_water.clone(), kept: true },
            Err(_) => Held { text: fresh.to_owned(), log: log.without_approvals_after(marked.seq), marked, kept: false },
        }));
        kept.map(|()| (high_water.seq, true))
    }

    /// Takes the log that is here for the beginning, whatever was seen before. The caller records it.
    pub async fn reset(&self) -> Result<HighWater, ApprovalError> {
        let _alone = self.alone.lock().await;
        let held = self.read(&HighWater::default(), true).await?;
        let mark = held.marked.clone();
        self.set(Ok(held));
        Ok(mark)
    }

    /// The longer of the image's log and the one that was kept; of two that are as long, the one that can be used. `anew`: the mark is made in any case.
    async fn read(&self, seen: &HighWater, anew: bool) -> Result<Held, ApprovalError> {
        let text = |path: PathBuf| match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(ApprovalError::Io { path, source }),
        };
        let (shipped, kept) = (text(self.etc.join("ledger.jsonl"))?, text(log_path(&self.marks.data))?);
        let text = ledger::longer(&kept, &shipped).ok_or(ApprovalError::Fork)?;
        let (text, log) = match Log::replay(&self.policy, text, seen) {
            Ok(log) => (text, log),
            // An update of the image can ask for more than the kept one has, and ship it.
            Err(error) => (shipped.as_str(), Log::replay(&self.policy, &shipped, seen).map_err(|_| error)?),
        };
        let found = log.high_water();
        if anew || found != *seen {
            self.marks.write(&found).await?;
        }
        Ok(Held { text: text.to_owned(), log, marked: found, kept: true })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn log_path(data: &Path) -> PathBuf {
    data.join("ledger.jsonl")
}

/// Where the high water mark is kept.
struct Marks {
    data: PathBuf,
    tpm: Tpm,
    root: Arc<RootKey>,
}

impl Marks {
    fn path(&self) -> PathBuf {
        self.data.join("ledger.seen")
    }

    fn tag(&self, counter: u64, root: &str, seq: u64) -> String {
        measure::hex(&self.root.tag("ledger-mark", format!("{counter} {root} {seq}").as_bytes()))
    }

    async fn read(&self) -> Result<HighWater, ApprovalError> {
        let path = self.path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(ApprovalError::Io { path, source }),
        };
        let unusable = |problem: String| ApprovalError::HighWater { path: path.clone(), problem };
        let (text, counter) = match (text, self.tpm.counter().await?) {
            // Neither: this node has seen nothing yet.
            (None, None) => return Ok(HighWater::default()),
            (None, Some(counter)) => return Err(unusable(format!("it is not there, and the TPM has counted to {counter}"))),
            (Some(_), None) => return Err(unusable("the TPM never counted; is it another one?".into())),
            (Some(text), Some(counter)) => (text, counter),
        };
        let mark: Mark = serde_json::from_str(&text).map_err(|e| unusable(format!("it is damaged ({e})")))?;
        if mark.tag != self.tag(mark.counter, &mark.root, mark.seq) {
            return Err(unusable("this node did not write it".into()));
        }
        let root = measure::unhex(&mark.root).and_then(|b| b.try_into().ok());
        let root = root.ok_or_else(|| unusable("the root is not 64 hex digits".into()))?;
        if mark.counter == counter + 1 {
            // Killed between the file and the counter.
            self.tpm.increment().await?;
        } else if mark.counter != counter {
            return Err(unusable(format!("it is of step {}, the TPM has counted to {counter}: an older state was put back", mark.counter)));
        }
        Ok(HighWater { seq: mark.seq, root })
    }

    /// First the file, then the counter.
    async fn write(&self, mark: &HighWater) -> Result<(), ApprovalError> {
        let before = match self.tpm.counter().await? {
            Some(counter) => counter,
            None => self.tpm.increment().await?,
        };
        let (counter, root) = (before + 1, measure::hex(&mark.root));
        let tag = self.tag(counter, &root, mark.seq);
        let path = self.path();
        let text = serde_json::to_string(&Mark { counter, root, seq: mark.seq, tag }).unwrap_or_default();
        files::write(&path, text.as_bytes()).map_err(|source| ApprovalError::Io { path, source })?;
        crate::steps::step("marked");
        self.tpm.increment().await?;
        Ok(())
    }
}
