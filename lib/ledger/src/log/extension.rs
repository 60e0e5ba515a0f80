//! The entries that continue a log, verified before they change it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::entry_checker::{CheckedEntries, CheckedEntry, Effect, EntryChecker};
use super::error::LogError;
use super::types::{Digest, HighWaterMark, ImageState};
use crate::checkpoint::CheckpointError;
use crate::merkle::Tree;
use crate::note::NoteError;
use crate::trust_policy::Approvers;
use crate::witness::{self, WitnessPolicy};

/// Entries that continue a log, and are not complete yet.
#[derive(Debug)]
pub struct Extension {
    pub(super) ledger: Arc<str>,
    /// End of the log that is continued.
    pub(super) base: HighWaterMark,
    /// Newest state that the node has seen.
    pub(super) seen: HighWaterMark,
    pub(super) tree: Tree,
    pub(super) approvers: Arc<Approvers>,
    pub(super) approvers_since: u64,
    /// Images of the new entries.
    pub(super) images: BTreeMap<Digest, ImageState>,
    /// Number of signatures of all entries together, also of those before.
    pub(super) signatures: usize,
    pub(super) witness_policy: Option<WitnessPolicy>,
}

/// Entries and a checkpoint that continue a log and are valid.
#[derive(Debug)]
pub struct VerifiedExtension {
    pub(super) extension: Extension,
    pub(super) cosignature_times: Vec<u64>,
}

/// The extension continues another log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entries continue another state of the log")]
pub struct ForeignExtension;

impl Extension {
    /// Returns the sequence number of the next entry.
    pub fn next_seq(&self) -> u64 {
        self.tree.size() + 1
    }

    /// Returns what checks the next entries.
    pub fn checker(&self) -> EntryChecker {
        EntryChecker { ledger: self.ledger.clone(), approvers: self.approvers.clone() }
    }

    /// Appends checked entries. Returns `false` if they were checked for another place of the log,
    /// or under other approvers than those of the next entry. They must be checked again then.
    ///
    /// # Errors
    ///
    /// Returns the [`LogError`] of the entries, after it appended those before it, and
    /// [`LogError::Forked`] at an entry that the node has seen with another statement.
    pub fn append(&mut self, checked: CheckedEntries) -> Result<bool, LogError> {
        let CheckedEntries { first_seq, approvers, entries, error } = checked;
        if first_seq != self.next_seq() || !Arc::ptr_eq(&approvers, &self.approvers) {
            return Ok(false);
        }
        for entry in entries {
            self.append_entry(entry);
            if self.tree.size() == self.seen.seq && self.tree.root() != self.seen.root {
                return Err(LogError::Forked { seq: self.seen.seq });
            }
        }
        error.map_or(Ok(true), Err)
    }

    fn append_entry(&mut self, CheckedEntry { leaf, signers, effect }: CheckedEntry) {
        match effect {
            Effect::Image(digest, state) => supersede(&mut self.images, digest, state),
            Effect::Approvers(approvers) => {
                self.approvers = approvers;
                self.approvers_since = self.next_seq();
            }
        }
        self.tree.push(leaf);
        self.signatures += usize::from(signers);
    }

    /// Verifies the end of the log. `checkpoint` is the text after its entries.
    ///
    /// # Errors
    ///
    /// Returns [`LogError`] if the log ends before an entry that the node has seen, or if its
    /// checkpoint is missing or invalid.
    pub fn finish(self, checkpoint: Option<&[u8]>) -> Result<VerifiedExtension, LogError> {
        if self.tree.size() < self.seen.seq {
            return Err(LogError::RolledBack { seen: self.seen.seq, found: self.tree.size() });
        }
        let policy = self.witness_policy.as_ref();
        let cosignature_times = match checkpoint {
            Some(text) => {
                let invalid = |problem| LogError::Checkpoint { problem };
                let text = std::str::from_utf8(text)
                    .map_err(|_| invalid(CheckpointError::from(NoteError::NotText)))?;
                let tree = (self.tree.size(), self.tree.root());
                witness::verify_checkpoint(text, tree, policy).map_err(invalid)?
            }
            None if policy.is_some() => return Err(LogError::MissingCheckpoint),
            None => Vec::new(),
        };
        Ok(VerifiedExtension { extension: self, cosignature_times })
    }
}

impl VerifiedExtension {
    /// Returns the state of the extended log, which a node must persist before it uses the log.
    pub fn high_water_mark(&self) -> HighWaterMark {
        let tree = &self.extension.tree;
        HighWaterMark { seq: tree.size(), root: tree.root() }
    }
}

/// Applies a newer statement about an image. A revocation is final.
pub(super) fn supersede(
    images: &mut BTreeMap<Digest, ImageState>,
    digest: Digest,
    state: ImageState,
) {
    match images.entry(digest) {
        Entry::Vacant(entry) => {
            entry.insert(state);
        }
        Entry::Occupied(mut entry) if !entry.get().is_revoked => {
            entry.insert(state);
        }
        Entry::Occupied(_) => {}
    }
}
