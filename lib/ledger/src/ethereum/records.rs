//! The registry's records that a node has seen.
//!
//! Invariants:
//! - No record goes back to an older sequence.
//! - A revocation stays, unless it was only attested and a later finalized block does not have it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::ChainError;
use super::registry::Record;
use super::types::Hash;

/// Greatest number of digests whose records a node remembers.
pub const MAX_DIGESTS: usize = 1024;

/// An execution block whose state the node has verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRef {
    /// Slot of the beacon block.
    pub slot: u64,
    /// Number of the execution block.
    pub number: u64,
}

/// Newest known record of one digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KnownRecord {
    /// The finalized block that has the record.
    pub(super) at: BlockRef,
    pub(super) record: Record,
    /// Revocation that was seen in an attested block, and is not finalized yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) attested: Option<(BlockRef, Record)>,
}

impl KnownRecord {
    /// Returns the revocation, with the block that has it.
    pub(super) fn revocation(&self) -> Option<(BlockRef, Record)> {
        self.attested.or(self.record.is_revoked().then_some((self.at, self.record)))
    }
}

/// Known records, by digest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Records(pub(super) BTreeMap<Hash, KnownRecord>);

impl Records {
    /// Replaces records by those of a newer finalized block, then evicts records beyond
    /// [`MAX_DIGESTS`]. Digests that are not `wanted` are evicted first, and revocations last.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::Sequence`] if a record is older than the known one, or takes a
    /// revocation back.
    pub(super) fn apply_finalized(
        &mut self,
        at: BlockRef,
        records: Vec<(Hash, Record)>,
        wanted: &dyn Fn(&Hash) -> bool,
    ) -> Result<(), ChainError> {
        for (digest, record) in records {
            let known = self.0.get(&digest);
            if let Some(old) = known.filter(|old| {
                record.seq() < old.record.seq() || old.record.is_revoked() && !record.is_revoked()
            }) {
                let (known, found) = (old.record.seq(), record.seq());
                return Err(ChainError::Sequence { digest, known, found });
            }
            let attested =
                known.and_then(|old| old.attested).filter(|(seen, _)| seen.slot > at.slot);
            self.0.insert(digest, KnownRecord { at, record, attested });
        }
        while self.0.len() > MAX_DIGESTS {
            let rank = |digest: &Hash, known: &KnownRecord| {
                (wanted(digest), known.revocation().is_some(), known.at.slot)
            };
            let first = self.0.iter().min_by_key(|(digest, known)| rank(digest, known));
            let Some(digest) = first.map(|(digest, _)| *digest) else { break };
            self.0.remove(&digest);
        }
        Ok(())
    }

    /// Adds the revocations of a finalized block that is older than the newest one, and reports
    /// whether any is new. Approvals of such a block are ignored, because a newer block may have
    /// revoked them.
    pub(super) fn apply_older_finalized(
        &mut self,
        at: BlockRef,
        records: Vec<(Hash, Record)>,
    ) -> bool {
        let mut is_new = false;
        for (digest, record) in records.into_iter().filter(|(_, record)| record.is_revoked()) {
            let known = self.0.get_mut(&digest);
            if let Some(known) = known
                .filter(|known| !known.record.is_revoked() && known.record.seq() < record.seq())
            {
                known.record = record;
                if at.slot > known.at.slot {
                    known.at = at;
                }
                is_new = true;
            }
        }
        is_new
    }

    /// Adds the revocations of an attested block, and reports whether any is new.
    pub(super) fn apply_attested(&mut self, at: BlockRef, records: Vec<(Hash, Record)>) -> bool {
        let mut is_new = false;
        for (digest, record) in records.into_iter().filter(|(_, record)| record.is_revoked()) {
            let known = self.0.get_mut(&digest);
            if let Some(known) = known.filter(|known| !known.record.is_revoked()) {
                is_new |= known.attested.is_none();
                let newer = known.attested.filter(|(seen, _)| seen.slot > at.slot);
                known.attested = Some(newer.unwrap_or((at, record)));
            }
        }
        is_new
    }
}
