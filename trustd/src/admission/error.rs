//! Why the ledger cannot be used, or does not take what was brought.

use std::path::PathBuf;

use ledger::LogError;
use ledger::ethereum::ChainError;

use crate::tpm::TpmError;

const RESET: &str = "If you know why (a new card, a TPM that was exchanged or cleared): trustctl log reset, which is recorded for all to see";

#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("this node's ledger is of the kind \"log\": it follows no chain")]
    NoChain,
    #[error(transparent)]
    Tpm(#[from] TpmError),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}, which says how far this node has seen the ledger, cannot be used: {problem}; until then nothing is approved. {RESET}"
    )]
    HighWater { path: PathBuf, problem: String },
    #[error(
        "the log of the image and the log on the data partition are not two stages of one log; one of them is forged or of another ledger"
    )]
    Fork,
}
