//! A log of approvals: its state after its entries, and the decision about one image.
//!
//! A log grows by an [`Extension`]: entries that are checked in batches ([`EntryChecker`]), then
//! appended in their order, and applied to the log only when all of them and the checkpoint are
//! valid. A log in memory has no text, and about 80 bytes for each image.

mod entry_checker;
mod error;
mod extension;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decision::{Decision, ImageApproval, Reason};
use crate::merkle::Tree;
use crate::statement::{ImageStatement, LogEntry, Statement, Status};
use crate::trust_policy::{Approvers, TrustPolicy};
use crate::witness::WitnessPolicy;

use self::types::{Digest, ImageState};

pub use self::entry_checker::{CheckedEntries, EntryChecker, first_batch};
pub use self::error::{EntryError, LogError};
pub use self::extension::{Extension, ForeignExtension, VerifiedExtension};
pub use self::types::{HighWaterMark, MAX_ENTRIES, MAX_LINE_BYTES, MAX_LOG_BYTES};

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
    ledger: Arc<str>,
    tree: Tree,
    approvers: Arc<Approvers>,
    /// Sequence number of the entry that set the approvers, 0 if it was none.
    approvers_since: u64,
    /// The statement that applies to each image.
    images: BTreeMap<Digest, ImageState>,
    /// Number of signatures of all entries together.
    signatures: usize,
    /// Times of the witnesses' cosignatures, the newest first.
    cosignature_times: Vec<u64>,
    witness_policy: Option<WitnessPolicy>,
}

impl Log {
    /// Makes a log without entries.
    pub fn new(policy: &TrustPolicy) -> Self {
        Self {
            ledger: policy.name.as_str().into(),
            tree: Tree::default(),
            approvers: policy.approvers.clone(),
            approvers_since: 0,
            images: BTreeMap::new(),
            signatures: 0,
            cosignature_times: Vec::new(),
            witness_policy: policy.witness_policy.clone(),
        }
    }

    /// Verifies every line and the checkpoint of a log that is in memory. `seen` is the newest
    /// state that the node has seen.
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
        if text.len() as u64 > MAX_LOG_BYTES {
            return Err(LogError::TooLong);
        }
        let (mut extension, mut rest) = (log.extend(seen), entries.as_bytes());
        while !rest.is_empty() {
            let before = extension.next_seq();
            extension.append(extension.checker().check(before, first_batch(rest)))?;
            let appended = (extension.next_seq() - before) as usize;
            let lines = rest.split_inclusive(|byte| *byte == b'\n').take(appended);
            rest = &rest[lines.map(<[u8]>::len).sum()..];
        }
        let mut verified = extension.finish(checkpoint.map(str::as_bytes))?;
        // The extension was made from this log.
        let _ = log.apply(&mut verified, usize::MAX);
        Ok(log)
    }

    /// Begins to continue the log. `seen` is the newest state that the node has seen.
    pub fn extend(&self, seen: &HighWaterMark) -> Extension {
        Extension {
            ledger: self.ledger.clone(),
            base: self.high_water_mark(),
            seen: seen.clone(),
            tree: self.tree.clone(),
            approvers: self.approvers.clone(),
            approvers_since: self.approvers_since,
            images: BTreeMap::new(),
            signatures: self.signatures,
            witness_policy: self.witness_policy.clone(),
        }
    }

    /// Applies an extension, at most `limit` of its images at a time, so that no reader of the log
    /// waits long. Returns `true` when it is applied as a whole. The log's mark changes only then.
    ///
    /// # Errors
    ///
    /// Returns [`ForeignExtension`] if the extension continues another log.
    pub fn apply(
        &mut self,
        verified: &mut VerifiedExtension,
        limit: usize,
    ) -> Result<bool, ForeignExtension> {
        let VerifiedExtension { extension, cosignature_times } = verified;
        if extension.base != self.high_water_mark() {
            return Err(ForeignExtension);
        }
        if self.images.is_empty() {
            std::mem::swap(&mut self.images, &mut extension.images);
        }
        for _ in 0..limit {
            let Some((digest, state)) = extension.images.pop_first() else { break };
            extension::supersede(&mut self.images, digest, state);
        }
        if !extension.images.is_empty() {
            return Ok(false);
        }
        self.tree = extension.tree.clone();
        self.approvers = extension.approvers.clone();
        self.approvers_since = extension.approvers_since;
        self.signatures = extension.signatures;
        self.cosignature_times = std::mem::take(cosignature_times);
        Ok(true)
    }

    /// Applies what takes effect before an extension is persisted: its revocations and the times of
    /// its cosignatures. An approval that it renews stays in force until the earlier expiry of
    /// both. The log's mark does not change.
    pub fn apply_unpersisted(&mut self, verified: &VerifiedExtension) {
        for (digest, state) in &verified.extension.images {
            if state.is_revoked {
                extension::supersede(&mut self.images, *digest, *state);
            } else if let Some(older) = self.images.get_mut(digest) {
                older.exp = older.exp.min(state.exp);
            }
        }
        self.cosignature_times.clone_from(&verified.cosignature_times);
    }

    /// Applies the revocations of another log of the same ledger.
    pub fn apply_revocations(&mut self, other: &Self) {
        for (digest, state) in other.images.iter().filter(|(_, state)| state.is_revoked) {
            extension::supersede(&mut self.images, *digest, *state);
        }
    }

    /// Returns the state of the log that a node must persist before it uses the log.
    pub fn high_water_mark(&self) -> HighWaterMark {
        HighWaterMark { seq: self.tree.size(), root: self.tree.root() }
    }

    /// Returns the sequence number of the entry since which the approvers are the present ones, 0
    /// if they are those of the trust policy.
    pub fn approvers_since(&self) -> u64 {
        self.approvers_since
    }

    /// Returns the newest time at which enough witnesses had cosigned the log, in seconds since
    /// 1970. Returns `None` if the node requires no witnesses, or its clock `now` is behind them.
    pub fn witnessed_at(&self, now: u64) -> Option<u64> {
        self.witness_policy.as_ref()?.witnessed_at(&self.cosignature_times, now)?.ok()
    }

    /// Reports whether an extended log of the same entries is better: its cosignatures are newer,
    /// or as new and its entries have more signatures.
    pub fn is_superseded_by(&self, verified: &VerifiedExtension, now: u64) -> bool {
        let policy = self.witness_policy.as_ref();
        let witnessed_at =
            policy.and_then(|policy| policy.witnessed_at(&verified.cosignature_times, now)?.ok());
        (witnessed_at, verified.extension.signatures) > (self.witnessed_at(now), self.signatures)
    }

    /// Returns the approvers of the next entry (public keys in hex), and the number of signatures
    /// that an approval needs.
    pub fn approvers(&self) -> (Vec<String>, usize) {
        (
            self.approvers.keys.iter().map(|key| key.hex().to_owned()).collect(),
            self.approvers.threshold,
        )
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
        let parsed = entry_checker::parse_digest(&digest).ok();
        let Some(image) = parsed.and_then(|parsed| self.images.get(&parsed)) else {
            return Err(Reason::Unknown { digest });
        };
        let ImageState { exp, iat, is_revoked, .. } = *image;
        let (seq, signers) = (u64::from(image.seq), usize::from(image.signers));
        if is_revoked {
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
        Ok(ImageApproval { digest, seq, exp, signers, chain: None })
    }

    /// Returns the statement that applies to each image of the log.
    pub fn images(&self) -> impl Iterator<Item = ImageStatement> {
        self.images.iter().map(|(digest, state)| ImageStatement {
            digest: format!("sha256:{}", measure::hex(digest)),
            exp: state.exp,
            iat: state.iat,
            seq: state.seq.into(),
            status: if state.is_revoked { Status::Revoked } else { Status::Approved },
        })
    }
}

#[cfg(test)]
mod tests;
