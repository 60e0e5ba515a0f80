//! Which image digests are approved.
//!
//! Invariants:
//! - A decision is a value. Unknown, unreadable, too old, too few signatures: all are `Deny` with a
//!   reason.
//! - Only signed bytes decide. A line that is not the canonical form of what it says is refused, so
//!   nothing unsigned can ride along.
//! - The sequence has no gaps and, against a [`HighWater`], never goes back nor forks.
//! - A revocation is final.
//! - Where a node asks for witnesses, a log that too few of them saw, or saw too long ago, allows
//!   nothing.
//! - No I/O, no clock, no unsafe.
//!
//! The format is specified in docs/ledger.md.
#![forbid(unsafe_code)]

mod checkpoint;
mod decision;
#[cfg(feature = "ethereum")]
pub mod ethereum;
mod log;
pub mod merkle;
mod note;
mod statement;

pub use checkpoint::{Checkpoint, Witnessing, cosignatures};
pub use decision::{ChainEvidence, ChainReason, Decision, Evidence, Reason};
pub use log::{HighWater, Log, LogError, TrustPolicy, longer, parts};
pub use note::{NoteKey, Role};
pub use statement::{
    ApproversStatement, Change, ImageStatement, LogEntry, Signature, Statement, Status,
};

pub use ed25519_dalek::{SigningKey, VerifyingKey};
