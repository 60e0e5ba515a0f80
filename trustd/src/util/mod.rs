//! Small helpers that know nothing of the TPM, the ledger or the engine.

pub mod atomic_file;
pub mod clock;
pub mod error_chain;
pub mod failpoint;
pub mod init_client;
pub mod lock;
pub(crate) mod low_priority;
pub mod parallel;
