//! The checks of a log entry that need nothing of the log before it except for the approvers.
//!
//! Batches of lines can therefore be checked by several threads. [`crate::Extension`] then takes
//! the checked entries in their order.

use std::sync::Arc;

use super::error::{EntryError, LogError};
use super::types::{Digest, ImageState, MAX_ENTRIES, MAX_LINE_BYTES};
use crate::approver_key::{ApproverKey, SignatureBatch};
use crate::merkle::{self, Hash};
use crate::statement::{
    ApproversStatement, ImageStatement, LogEntry, SignatureError, Statement, Status,
};
use crate::trust_policy::Approvers;

/// Length of the text that is checked at a time, if its lines are shorter. A log that is rejected
/// costs at most the signatures of this many bytes beyond its first invalid line.
const BATCH_BYTES: usize = 32 * 1024;

/// Returns the first batch of a text: whole lines, at least one. A line without a newline counts as
/// one.
pub fn first_batch(text: &[u8]) -> &[u8] {
    let is_newline = |byte: &u8| *byte == b'\n';
    let head = &text[..text.len().min(BATCH_BYTES)];
    let end = match head.iter().rposition(is_newline) {
        _ if head.len() == text.len() => text.len(),
        Some(last) => last + 1,
        None => text.iter().position(is_newline).map_or(text.len(), |first| first + 1),
    };
    &text[..end]
}

/// Checks entries under the approvers of one place of a log.
#[derive(Debug, Clone)]
pub struct EntryChecker {
    pub(super) ledger: Arc<str>,
    pub(super) approvers: Arc<Approvers>,
}

/// Entries whose form and signatures are valid under the approvers of one place of a log, and the
/// first problem after them.
#[derive(Debug)]
pub struct CheckedEntries {
    pub(super) first_seq: u64,
    pub(super) approvers: Arc<Approvers>,
    pub(super) entries: Vec<CheckedEntry>,
    pub(super) error: Option<LogError>,
}

impl CheckedEntries {
    /// Returns the number of entries, without the one that has a problem.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Reports whether not even the first entry is valid.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reports whether an entry has a problem.
    pub fn has_error(&self) -> bool {
        self.error.is_some()
    }

    /// Returns the problem of the first invalid entry, if there is one.
    pub fn into_error(self) -> Option<LogError> {
        self.error
    }
}

#[derive(Debug)]
pub(super) struct CheckedEntry {
    pub(super) leaf: Hash,
    pub(super) signers: u8,
    pub(super) effect: Effect,
}

#[derive(Debug)]
pub(super) enum Effect {
    Image(Digest, ImageState),
    Approvers(Arc<Approvers>),
}

/// Signature of a batch: sequence number of its entry, and number of its approver.
type SignatureName = (u64, usize);

impl EntryChecker {
    /// Checks lines, each with its newline, that stand in the log from the entry `first_seq` on.
    /// Stops after the first problem, and after an entry that replaces the approvers.
    pub fn check(&self, first_seq: u64, text: &[u8]) -> CheckedEntries {
        let (mut entries, mut error, mut signatures) = (Vec::new(), None, SignatureBatch::new());
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        for (seq, line) in (first_seq..).zip(lines) {
            match self.check_line(seq, line, &mut signatures) {
                Ok(entry) => {
                    let is_last = matches!(entry.effect, Effect::Approvers(_));
                    entries.push(entry);
                    if is_last {
                        break;
                    }
                }
                Err(problem) => {
                    error = Some(problem);
                    break;
                }
            }
        }
        if let Some((seq, approver)) = signatures.find_invalid() {
            entries.truncate((seq - first_seq) as usize);
            let key = self.approvers.keys[approver].hex();
            error = Some(invalid(seq, self.invalid_signature(key)));
        }
        CheckedEntries { first_seq, approvers: self.approvers.clone(), entries, error }
    }

    fn invalid_signature(&self, key: &str) -> SignatureError {
        SignatureError::Invalid { key: key.to_owned(), ledger: self.ledger.to_string() }
    }

    /// Checks one line. Its signatures are valid only if the batch is.
    fn check_line(
        &self,
        expected: u64,
        line: &[u8],
        signatures: &mut SignatureBatch<SignatureName>,
    ) -> Result<CheckedEntry, LogError> {
        let not_canonical = || LogError::NotCanonical { line: expected as usize };
        let text = line.strip_suffix(b"\n");
        if line.len() > MAX_LINE_BYTES || expected > MAX_ENTRIES {
            return Err(LogError::TooLong);
        }
        let text = text.ok_or_else(not_canonical)?;
        let entry: LogEntry = serde_json::from_slice(text)
            .map_err(|error| invalid(expected, EntryError::Json(error.to_string())))?;
        if entry.line().as_bytes() != text {
            return Err(not_canonical());
        }
        let message = entry.statement.signed_bytes(&self.ledger);
        self.collect_signatures(expected, &entry, &message, signatures)
            .map_err(|error| invalid(expected, error))?;
        let (found, statement) = (entry.signatures.len(), entry.statement);
        let line = expected as usize;
        if statement.seq() != expected {
            return Err(LogError::Sequence { line, expected, found: statement.seq() });
        }
        let required = self.approvers.required_signatures(&statement);
        if found < required {
            return Err(LogError::Signatures { line, found, required });
        }
        // There are no more signatures than approvers, at most 64.
        let signers = u8::try_from(found).unwrap_or(u8::MAX);
        let effect = self.effect(expected, statement, signers)?;
        Ok(CheckedEntry { leaf: merkle::leaf_hash(&message), signers, effect })
    }

    /// Adds the signatures of an entry to a batch. Each must be by another one of the approvers.
    fn collect_signatures(
        &self,
        seq: u64,
        entry: &LogEntry,
        message: &[u8],
        signatures: &mut SignatureBatch<SignatureName>,
    ) -> Result<(), SignatureError> {
        for (n, signature) in entry.signatures.iter().enumerate() {
            let key = &signature.key;
            if entry.signatures[..n].iter().any(|s| s.key == *key) {
                return Err(SignatureError::Repeated { key: key.clone() });
            }
            let is_signer = |approver: &Arc<ApproverKey>| approver.hex() == key;
            let approver = self.approvers.keys.iter().position(is_signer);
            let raw: Option<[u8; 64]> =
                measure::unhex(&signature.sig).and_then(|bytes| bytes.try_into().ok());
            let is_added = approver.zip(raw).is_some_and(|(approver, raw)| {
                signatures.push(&self.approvers.keys[approver], message, &raw, (seq, approver))
            });
            if !is_added {
                return Err(self.invalid_signature(key));
            }
        }
        Ok(())
    }

    fn effect(&self, seq: u64, statement: Statement, signers: u8) -> Result<Effect, LogError> {
        match statement {
            Statement::Image(image) => {
                let digest = parse_digest(&image.digest).map_err(|error| invalid(seq, error))?;
                let ImageStatement { exp, iat, status, .. } = image;
                if exp <= iat {
                    return Err(LogError::Times { line: seq as usize, iat, exp });
                }
                // There are at most MAX_ENTRIES entries.
                let seq = u32::try_from(seq).map_err(|_| LogError::TooLong)?;
                let is_revoked = status == Status::Revoked;
                Ok(Effect::Image(digest, ImageState { exp, iat, seq, signers, is_revoked }))
            }
            Statement::Approvers(ApproversStatement { approvers, threshold, .. }) => {
                let approvers = Approvers::new(&approvers, threshold)
                    .map_err(|error| invalid(seq, error))?
                    .sharing_keys_with(&self.approvers);
                Ok(Effect::Approvers(Arc::new(approvers)))
            }
        }
    }
}

fn invalid(seq: u64, problem: impl Into<EntryError>) -> LogError {
    LogError::InvalidEntry { line: seq as usize, problem: problem.into() }
}

/// Parses `sha256:` and 64 hex digits.
pub(super) fn parse_digest(text: &str) -> Result<Digest, config::InvalidValue> {
    config::check_digest(text)?;
    let hex = text.strip_prefix("sha256:").and_then(measure::unhex);
    // A digest that passes the check has 64 hex digits.
    Ok(hex.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::first_batch;

    #[test]
    fn batches_have_whole_lines() {
        assert_eq!(first_batch(b""), b"");
        assert_eq!(first_batch(b"a\nb"), b"a\nb");
        let line = [&[b'x'; 20_000][..], b"\n"].concat();
        assert_eq!(first_batch(&line.repeat(3)), &line[..]);
        let long = [&[b'x'; 70_000][..], b"\n"].concat();
        assert_eq!(first_batch(&[&long[..], b"b\n"].concat()), &long[..]);
        assert_eq!(first_batch(&line.repeat(3)[..60_000])[..], line);
    }
}
