//! Errors of a log.

use crate::checkpoint::CheckpointError;
use crate::statement::SignatureError;
use crate::trust_policy::TrustPolicyError;

use super::types::{MAX_ENTRIES, MAX_LINE_BYTES, MAX_LOG_BYTES};

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
        "the log is too long: expected at most {MAX_LOG_BYTES} bytes and {MAX_ENTRIES} lines of at \
         most {MAX_LINE_BYTES} bytes"
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
