//! Errors of the audit log.

use std::path::PathBuf;

use crate::tpm::{ResetCounts, TpmError};

/// Error of recording an event or of collecting evidence.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A file cannot be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A file is not an event log.
    #[error("invalid event log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: measure::LogError,
    },
    /// The TPM's reset counts changed since this boot's first event.
    #[error(
        "the TPM was reset while the node ran: expected {} resets and {} restarts, \
         found {} and {}; reboot the node",
        expected.reset, expected.restart, found.reset, found.restart
    )]
    TpmReset {
        /// Counts of this boot's first event.
        expected: ResetCounts,
        /// Counts of the TPM now.
        found: ResetCounts,
    },
    /// A register has another value than the logs replay to.
    #[error(
        "PCR {pcr} does not match the logs: expected {expected}, found {found}; \
         another program extended it, reboot the node"
    )]
    RegisterMismatch {
        /// Number of the register.
        pcr: u32,
        /// Value that the logs replay to, hex.
        expected: String,
        /// Value of the TPM, hex.
        found: String,
    },
}
