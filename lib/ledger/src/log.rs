//! A log of approvals: replay from its first line, and the decision about one image.

use std::collections::BTreeMap;

use crate::checkpoint::CheckpointError;
use crate::decision::{Decision, ImageApproval, Reason};
use crate::merkle::{self, Hash, Tree};
use crate::statement::{
    ApproversStatement, ImageStatement, LogEntry, SignatureError, Statement, Status,
};
use crate::trust_policy::{Approvers, TrustPolicy, TrustPolicyError};
use crate::witness::{self, WitnessPolicy};

const MAX_LINES: usize = 100_000;
/// An entry with the signatures of the greatest number of approvers is shorter.
const MAX_LINE_BYTES: usize = 32 * 1024;

/// Reason why a line is not an entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The JSON parser rejects the line; the text is the parser's.
    #[error("{0}")]
    Json(String),
    /// A signature is invalid.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The image digest is malformed.
    #[error(transparent)]
    Digest(#[from] config::InvalidValue),
    /// The new approvers are not allowed.
    #[error(transparent)]
    Approvers(#[from] TrustPolicyError),
}

/// Reason why a log is rejected. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A line is not a log entry.
    #[error("line {line} is not a valid log entry: {problem}")]
    InvalidEntry {
        /// Number of the line.
        line: usize,
        /// Reason why the line is rejected.
        problem: EntryError,
    },
    /// A line has another text than the canonical one.
    #[error("line {line} is not in canonical form (fixed order, no white space)")]
    NotCanonical {
        /// Number of the line.
        line: usize,
    },
    /// A sequence number is not the next one.
    #[error(
        "line {line} has sequence {found}, expected {expected}: log entries are missing or out of \
         order"
    )]
    Sequence {
        /// Number of the line.
        line: usize,
        /// The next sequence number.
        expected: u64,
        /// Sequence number of the line.
        found: u64,
    },
    /// Too few approvers signed an entry.
    #[error("line {line} is signed by {found} of the current approvers, {required} are required")]
    Signatures {
        /// Number of the line.
        line: usize,
        /// Number of approvers that signed.
        found: usize,
        /// Number of approvers that must sign.
        required: usize,
    },
    /// An entry expires before it is valid.
    #[error("line {line} expires at {exp}, which is not after the start of its validity, {iat}")]
    Times {
        /// Number of the line.
        line: usize,
        /// Start of the entry's validity.
        iat: u64,
        /// Expiry of the entry.
        exp: u64,
    },
    /// The log is shorter than the one that the node has seen.
    #[error(
        "the log ends at entry {found}, but this node has already seen entry {seen}: it is an \
         older state of the log"
    )]
    RolledBack {
        /// Sequence number of the newest entry that the node has seen.
        seen: u64,
        /// Sequence number of the log's last entry.
        found: u64,
    },
    /// The log has another entry than the one that the node has seen.
    #[error("log entry {seq} is not the one that this node has seen: the log was forked")]
    Forked {
        /// Sequence number of the newest entry that the node has seen.
        seq: u64,
    },
    /// The log has too many lines, or a line is too long.
    #[error(
        "the log is too long: expected at most {MAX_LINES} lines of at most {MAX_LINE_BYTES} bytes"
    )]
    TooLong,
    /// The log has no checkpoint, but the node requires one.
    #[error(
        "the log has no checkpoint, but this node requires one: run `trustctl log cosign`, then \
         `trustctl log push`"
    )]
    MissingCheckpoint,
    /// The checkpoint is invalid.
    #[error("the log's checkpoint is invalid: {problem}")]
    Checkpoint {
        /// Reason why the checkpoint is rejected.
        problem: CheckpointError,
    },
}

/// Newest state of a log that a node has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HighWaterMark {
    /// Sequence number of the newest log entry, 0 for none.
    pub seq: u64,
    /// Root of the Merkle tree over the signed bytes of all log entries. It does not depend on the
    /// signatures, because an approver may add a signature later.
    pub root: Hash,
}

impl Default for HighWaterMark {
    fn default() -> Self {
        Self { seq: 0, root: Tree::default().root() }
    }
}

/// Returns the two parts of a log's text: the log entries, one per line, and the checkpoint, which
/// follows an empty line and may be missing.
pub fn split_checkpoint(text: &str) -> (&str, Option<&str>) {
    if let Some(checkpoint) = text.strip_prefix('\n') {
        return ("", Some(checkpoint));
    }
    text.split_once("\n\n")
        .map_or((text, None), |(entries, checkpoint)| (&text[..=entries.len()], Some(checkpoint)))
}

/// Returns the longer of two copies of one log, or `None` if their statements differ at a common
/// place. Ignores signatures and verifies none.
pub fn longer_copy<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    let statements = |text: &str| -> Vec<Option<Statement>> {
        split_checkpoint(text)
            .0
            .lines()
            .map(|line| serde_json::from_str::<LogEntry>(line).ok().map(|entry| entry.statement))
            .collect()
    };
    let (of_a, of_b) = (statements(a), statements(b));
    let common = of_a.len().min(of_b.len());
    // A line that is not a log entry equals no other line, not even a line with the same text.
    let same = a == b || (0..common).all(|n| of_a[n].is_some() && of_a[n] == of_b[n]);
    same.then_some(if of_b.len() > of_a.len() || a.is_empty() { b } else { a })
}

/// A log whose entries and checkpoint are verified.
#[derive(Debug, Clone)]
pub struct Log {
    tree: Tree,
    approvers: Approvers,
    /// The statement that applies to each image, by digest, and the number of its signers.
    latest: BTreeMap<String, (ImageStatement, usize)>,
    /// Number of signatures of all entries together.
    signatures: usize,
    /// Times of the witnesses' cosignatures, the newest first.
    cosignature_times: Vec<u64>,
    witness_policy: Option<WitnessPolicy>,
}

impl Log {
    /// Makes a log without entries.
    fn new(policy: &TrustPolicy) -> Self {
        Self {
            tree: Tree::default(),
            approvers: policy.approvers.clone(),
            latest: BTreeMap::new(),
            signatures: 0,
            cosignature_times: Vec::new(),
            witness_policy: policy.witness_policy.clone(),
        }
    }

    /// Verifies every line and the checkpoint. `seen` is the newest state that the node has seen.
    ///
    /// # Errors
    ///
    /// Returns [`LogError`] for the first problem; one invalid line invalidates the whole log.
    pub fn replay(
        policy: &TrustPolicy,
        text: &str,
        seen: &HighWaterMark,
    ) -> Result<Self, LogError> {
        let mut log = Self::new(policy);
        let (entries, checkpoint) = split_checkpoint(text);
        let lines = entries.lines().count();
        if lines > MAX_LINES {
            return Err(LogError::TooLong);
        }
        if entries.contains('\r') || !(entries.is_empty() || entries.ends_with('\n')) {
            return Err(LogError::NotCanonical { line: lines });
        }
        for line in entries.lines() {
            log.append(&policy.name, line)?;
            if log.tree.size() == seen.seq && log.tree.root() != seen.root {
                return Err(LogError::Forked { seq: seen.seq });
            }
        }
        if log.tree.size() < seen.seq {
            return Err(LogError::RolledBack { seen: seen.seq, found: log.tree.size() });
        }
        log.cosignature_times = log.verify_checkpoint(checkpoint)?;
        Ok(log)
    }

    fn verify_checkpoint(&self, checkpoint: Option<&str>) -> Result<Vec<u64>, LogError> {
        let policy = self.witness_policy.as_ref();
        match checkpoint {
            Some(text) => {
                let tree = (self.tree.size(), self.tree.root());
                witness::verify_checkpoint(text, tree, policy)
                    .map_err(|problem| LogError::Checkpoint { problem })
            }
            None if policy.is_some() => Err(LogError::MissingCheckpoint),
            None => Ok(Vec::new()),
        }
    }

    /// Verifies one more line and applies it.
    fn append(&mut self, ledger: &str, text: &str) -> Result<(), LogError> {
        let expected = self.tree.size() + 1;
        let line = expected as usize;
        if text.len() > MAX_LINE_BYTES {
            return Err(LogError::TooLong);
        }
        let invalid = |problem: EntryError| LogError::InvalidEntry { line, problem };
        let entry: LogEntry = serde_json::from_str(text)
            .map_err(|error| invalid(EntryError::Json(error.to_string())))?;
        if entry.line() != text {
            return Err(LogError::NotCanonical { line });
        }
        let signers = entry.count_signers(ledger, &self.approvers.keys);
        let found = signers.map_err(|error| invalid(error.into()))?;
        let statement = entry.statement;
        if statement.seq() != expected {
            return Err(LogError::Sequence { line, expected, found: statement.seq() });
        }
        let required = self.approvers.required_signatures(&statement);
        if found < required {
            return Err(LogError::Signatures { line, found, required });
        }
        let leaf = merkle::leaf_hash(&statement.signed_bytes(ledger));
        match statement {
            Statement::Image(image) => {
                config::check_digest(&image.digest).map_err(|error| invalid(error.into()))?;
                if image.exp <= image.iat {
                    return Err(LogError::Times { line, iat: image.iat, exp: image.exp });
                }
                let revoked = self
                    .latest
                    .get(&image.digest)
                    .is_some_and(|(old, _)| old.status == Status::Revoked);
                if !revoked {
                    self.latest.insert(image.digest.clone(), (image, found));
                }
            }
            Statement::Approvers(ApproversStatement { approvers, threshold, .. }) => {
                let approvers = Approvers::new(&approvers, threshold);
                self.approvers = approvers.map_err(|error| invalid(error.into()))?;
            }
        }
        self.tree.push(leaf);
        self.signatures += found;
        Ok(())
    }

    /// Returns the state of the log that a node must persist before it uses the log.
    pub fn high_water_mark(&self) -> HighWaterMark {
        HighWaterMark { seq: self.tree.size(), root: self.tree.root() }
    }

    /// Returns the newest time at which enough witnesses had cosigned the log, in seconds since
    /// 1970. Returns `None` if the node requires no witnesses, or its clock `now` is behind them.
    pub fn witnessed_at(&self, now: u64) -> Option<u64> {
        self.witness_policy.as_ref()?.witnessed_at(&self.cosignature_times, now)?.ok()
    }

    /// Reports whether the log is better than `other`, a replay of the same entries: its
    /// cosignatures are newer, or as new and its entries have more signatures.
    pub fn supersedes(&self, other: &Self, now: u64) -> bool {
        (self.witnessed_at(now), self.signatures) > (other.witnessed_at(now), other.signatures)
    }

    /// Returns the approvers of the next entry (public keys in hex), and the number of signatures
    /// that an approval needs.
    pub fn approvers(&self) -> (Vec<String>, usize) {
        (
            self.approvers.keys.iter().map(|key| measure::hex(key.as_bytes())).collect(),
            self.approvers.threshold,
        )
    }

    /// Replaces the approvals by entries after `seq` by those of `older`, a replay of fewer entries,
    /// until the earlier expiry of both. Keeps all revocations.
    #[must_use]
    pub fn without_approvals_after(mut self, seq: u64, older: Option<&Self>) -> Self {
        self.latest.retain(|digest, (image, signers)| {
            if image.seq <= seq || image.status == Status::Revoked {
                return true;
            }
            let approval = older.and_then(|log| log.latest.get(digest));
            let Some((old, old_signers)) =
                approval.filter(|(old, _)| old.seq <= seq && old.status == Status::Approved)
            else {
                return false;
            };
            let exp = old.exp.min(image.exp);
            (*image, *signers) = (ImageStatement { exp, ..old.clone() }, *old_signers);
            true
        });
        self
    }

    /// Decides whether the image with this manifest digest may run at the time `now`. `floor` is
    /// the earliest possible time. Both are in seconds since 1970.
    pub fn decide(&self, digest: &str, now: u64, floor: u64) -> Decision {
        match self.find_approval(digest, now, floor) {
            Ok(approval) => Decision::Allow(approval),
            Err(reason) => Decision::Deny(reason),
        }
    }

    fn find_approval(&self, digest: &str, now: u64, floor: u64) -> Result<ImageApproval, Reason> {
        let digest = digest.to_owned();
        let Some((image, signers)) = self.latest.get(&digest) else {
            return Err(Reason::Unknown { digest });
        };
        let (seq, exp, iat) = (image.seq, image.exp, image.iat);
        if image.status == Status::Revoked {
            return Err(Reason::Revoked { digest, seq });
        }
        if now < floor {
            return Err(Reason::Clock { now, floor });
        }
        if let Some(policy) = &self.witness_policy
            && let Some(time) = policy.witnessed_at(&self.cosignature_times, now)
        {
            let witnessed = time.map_err(|behind| Reason::Clock { now, floor: behind.floor })?;
            let max_age = policy.max_age;
            if now.saturating_sub(witnessed) > max_age {
                return Err(Reason::Stale { witnessed, now, max_age });
            }
        }
        if now < iat {
            return Err(Reason::NotYet { digest, seq, iat, now });
        }
        if now >= exp {
            return Err(Reason::Expired { digest, seq, exp, now });
        }
        Ok(ImageApproval { digest, seq, exp, signers: *signers, chain: None })
    }

    /// Returns the statement that applies to each image of the log.
    pub fn images(&self) -> impl Iterator<Item = &ImageStatement> {
        self.latest.values().map(|(image, _)| image)
    }
}

#[cfg(test)]
mod tests;
