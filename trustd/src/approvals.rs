//! The ledger on this node: where its log lies, how far this node has seen it, what it decides.
//!
//! Invariant: the high water mark is on disk before a longer log is used, so no reboot brings an older one back.

use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::{SystemTime, UNIX_EPOCH};

use config::{Ledger, Node};
use ledger::{Decision, HighWater, Log, LogError, Policy, Reason};
use serde::{Deserialize, Serialize};

use crate::files;

#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is damaged: {problem}; it says how far this node has seen the ledger, and without it nothing is approved")]
    HighWater { path: PathBuf, problem: String },
    #[error(
        "the log of the image and the log on the data partition are not two stages of one log; one of them is forged or of another ledger"
    )]
    Fork,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    head: String,
    seq: u64,
}

pub struct Approvals {
    policy: Policy,
    /// The text of the log and what it comes to; or why it cannot be used.
    state: RwLock<Result<(String, Log), String>>,
    data: PathBuf,
    floor: u64,
}

impl Approvals {
    /// Never fails: a ledger that cannot be used denies everything, with its reason.
    pub fn open(node: &Node, etc: &Path, data: &Path, floor: u64) -> Result<Self, LogError> {
        let Ledger::Log { name, approvers, threshold } = &node.ledger;
        let policy = Policy::new(name, approvers, *threshold)?;
        let state = read(&policy, etc, data).map_err(|error| error.to_string());
        if let Err(problem) = &state {
            println!("ledger: {problem}");
        }
        Ok(Self { policy, state: RwLock::new(state), data: data.to_owned(), floor })
    }

    pub fn decide(&self, digest: &str) -> Decision {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match &*self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Ok((_, log)) => log.decide(digest, now, self.floor),
            Err(problem) => Decision::Deny(Reason::Ledger(problem.clone())),
        }
    }

    /// The whole log as text.
    pub fn text(&self) -> Result<String, String> {
        match &*self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Ok((text, _)) => Ok(text.clone()),
            Err(problem) => Err(problem.clone()),
        }
    }

    /// Takes a longer log: all of it is checked, and it must continue the one that this node has.
    pub fn extend(&self, fresh: &str) -> Result<u64, ApprovalError> {
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seen = match &*state {
            Ok((_, log)) => log.high_water.clone(),
            Err(_) => read_mark(&self.data)?,
        };
        let log = Log::replay(&self.policy, fresh, &seen)?;
        let path = log_path(&self.data);
        files::write(&path, fresh.as_bytes()).map_err(|source| ApprovalError::Io { path, source })?;
        write_mark(&self.data, &log.high_water)?;
        let seq = log.high_water.seq;
        *state = Ok((fresh.to_owned(), log));
        Ok(seq)
    }
}

fn log_path(data: &Path) -> PathBuf {
    data.join("ledger.jsonl")
}

fn mark_path(data: &Path) -> PathBuf {
    data.join("ledger.seen")
}

fn read(policy: &Policy, etc: &Path, data: &Path) -> Result<(String, Log), ApprovalError> {
    let text = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ApprovalError::Io { path, source }),
    };
    let (shipped, kept) = (text(etc.join("ledger.jsonl"))?, text(log_path(data))?);
    let text = ledger::longer(&kept, &shipped).ok_or(ApprovalError::Fork)?;
    let log = Log::replay(policy, text, &read_mark(data)?)?;
    write_mark(data, &log.high_water)?;
    Ok((text.to_owned(), log))
}

fn read_mark(data: &Path) -> Result<HighWater, ApprovalError> {
    let path = mark_path(data);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HighWater::default()),
        Err(source) => return Err(ApprovalError::Io { path, source }),
    };
    let damaged = |problem: String| ApprovalError::HighWater { path: path.clone(), problem };
    let mark: Mark = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    let head = measure::unhex(&mark.head).and_then(|b| b.try_into().ok()).ok_or_else(|| damaged("the head is not 64 hex digits".into()))?;
    Ok(HighWater { seq: mark.seq, head })
}

fn write_mark(data: &Path, mark: &HighWater) -> Result<(), ApprovalError> {
    let path = mark_path(data);
    let text = serde_json::json!({ "head": measure::hex(&mark.head), "seq": mark.seq }).to_string();
    files::write(&path, text.as_bytes()).map_err(|source| ApprovalError::Io { path, source })
}
