//! Decides which image digests are approved.
//!
//! Invariants:
//! - A decision is a value. Anything unknown, unreadable, too old or signed by too few keys is
//!   [`Decision::Deny`] with a reason.
//! - Only signed bytes decide. A line that is not in canonical form is rejected, so that a log
//!   cannot carry unsigned data.
//! - Sequence numbers have no gaps. Compared with a [`HighWaterMark`], a log neither goes back nor
//!   forks.
//! - A revocation is final.
//! - If a node requires witnesses, a log that too few of them cosigned recently allows nothing.
//! - The crate has no I/O, no clock and no unsafe code.
//!
//! docs/ledger.md specifies the format.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod approver_key;
mod checkpoint;
mod decision;
#[cfg(feature = "ethereum")]
pub mod ethereum;
mod log;
pub mod merkle;
mod note;
mod statement;
mod trust_policy;
mod witness;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use decision::{ChainApproval, ChainReason, Decision, ImageApproval, Reason};
pub use log::{
    CheckedEntries, EntryChecker, EntryError, Extension, ForeignExtension, HighWaterMark, Log,
    LogError, MAX_ENTRIES, MAX_LINE_BYTES, MAX_LOG_BYTES, VerifiedExtension, first_batch,
    longer_copy, split_checkpoint,
};
pub use note::{MAX_NOTE_BYTES, NoteError, NoteKey, NoteKeyError, Role};
pub use statement::{
    ApproversStatement, Change, ImageStatement, LogEntry, Signature, SignatureError, Statement,
    Status,
};
pub use trust_policy::{TrustPolicy, TrustPolicyError};
pub use witness::{WitnessPolicy, WitnessPolicyError, valid_cosignatures};

pub use ed25519_dalek::{SigningKey, VerifyingKey};
