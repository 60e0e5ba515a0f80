//! Errors of the root key.

use std::path::PathBuf;

use policy::{EscrowError, PolicyError, PolicyMismatch};

use super::derive::ROOT_KEY_BYTES;
use crate::tpm::TpmError;
use crate::util::atomic_file;

/// Reason why a node is locked: it has no root key, and starting again would not help.
#[derive(Debug, thiserror::Error)]
pub enum LockReason {
    /// No policy authorises this boot.
    #[error(
        "no policy of {signer} lets this boot (PCR 14 {pcr14}) unseal the root key: {attempts}; \
         the signer of the image makes one with trustctl policy sign, then send it with \
         trustctl policy send"
    )]
    Policy {
        /// Public key whose policies count, hex.
        signer: String,
        /// Value of PCR 14, hex.
        pcr14: String,
        /// Each place that was searched, with its problem.
        attempts: String,
    },
    /// The TPM does not unseal the root key.
    #[error(
        "cannot unseal {path} (if the TPM was exchanged or cleared, restore the root key with the \
         recovery key: trustctl recovery restore)"
    )]
    Tpm {
        /// The file with the sealed key.
        path: PathBuf,
        /// Cause.
        source: TpmError,
    },
    /// The file with the sealed key is damaged.
    #[error(
        "{path} is damaged: {problem}; restore the root key with the recovery key: \
         trustctl recovery restore"
    )]
    Damaged {
        /// The file with the sealed key.
        path: PathBuf,
        /// Description of the problem.
        problem: &'static str,
    },
    /// The node waits for its root key instead of generating one.
    #[error(
        "there is no root key, and with keys.restore in node.toml the node waits for one: \
         trustctl recovery restore"
    )]
    AwaitingRestore,
}

/// Error of opening or sealing the root key.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The node is locked.
    #[error(transparent)]
    Locked(#[from] LockReason),
    /// The TPM failed; a later attempt can succeed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] atomic_file::PathError),
    /// The escrow cannot be made.
    #[error("cannot make the root key's escrow")]
    Escrow(#[from] EscrowError),
}

/// Reason why policies or a root key from outside are rejected.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The policies are malformed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policies are of another signer.
    #[error("the policies are not for this node")]
    Signer(#[source] PolicyMismatch),
    /// The node has no recovery key.
    #[error("node.toml has no keys.recovery, so no root key can be restored to this node")]
    NoRecoveryKey,
    /// The node has its root key.
    #[error("this node has its root key")]
    AlreadyPresent,
    /// The root key has the wrong length.
    #[error("invalid root key: expected {ROOT_KEY_BYTES} bytes, found {0}")]
    KeyLength(usize),
    /// The root key cannot be opened or sealed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}
