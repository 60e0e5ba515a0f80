//! Errors of the ledger on this node.

use std::path::PathBuf;

use ledger::ethereum::ChainError;
use ledger::{ForeignExtension, LogError};

use crate::tpm::TpmError;

const RESET_HINT: &str = "if you know the cause (a new card, an exchanged or cleared TPM): \
                          trustctl log reset, which is recorded in PCR 15";

/// Reason why the ledger cannot be used, or why a log or a bundle is rejected.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The log is invalid.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The bundle or the state of the chain is invalid.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The node follows no chain.
    #[error("the ledger of this node has the kind \"log\", so it follows no chain")]
    NoChain,
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The disk or the TPM does not answer.
    #[error(
        "the state of the ledger was not persisted within {seconds} s, because the disk or the TPM \
         does not answer; its revocations are in force, its approvals are not"
    )]
    NotPersisted {
        /// Time that was waited for.
        seconds: u64,
    },
    /// A file cannot be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file with the high-water marks is not the newest one that this node wrote.
    #[error(
        "the high-water mark of the ledger, {path}, cannot be used: {problem}; until it can, this \
         node approves nothing; {RESET_HINT}"
    )]
    HighWaterMark {
        /// The file.
        path: PathBuf,
        /// Description of the problem.
        problem: String,
    },
    /// The persisted state of the chain is not the one that the high-water mark names.
    #[error(
        "the persisted state of the chain, {path}, is missing or altered: it was lost, or an older \
         state was restored; {RESET_HINT}; the node then follows the chain from the image's \
         checkpoint, which must be at most two weeks old"
    )]
    ChainState {
        /// The file.
        path: PathBuf,
    },
    /// The image's log and the persisted log contradict each other.
    #[error(
        "the log of the image and the log on the data partition are not a shorter and a longer \
         copy of one log: one of them is forged or of another ledger"
    )]
    Fork,
    /// The log in force cannot be used.
    #[error(transparent)]
    Unusable(std::sync::Arc<AdmissionError>),
    /// The log changed while another text was verified against it.
    #[error(transparent)]
    Foreign(#[from] ForeignExtension),
    /// The write hung, and a later one was made instead.
    #[error("a later state was persisted instead")]
    Superseded,
    /// The text of a log cannot be read to its end.
    #[error("the log cannot be read to its end")]
    Input(#[source] std::io::Error),
    /// A thread cannot be started, or it failed.
    #[error("a background task failed")]
    Background(#[source] std::io::Error),
    /// Nothing was read yet.
    #[error("it was not read yet")]
    NotRead,
}
