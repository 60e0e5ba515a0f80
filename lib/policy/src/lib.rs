//! Access to a node's root key: policies, with which an image's builder authorises boots to unseal
//! it, and escrow, an encrypted copy for the recovery key.
//!
//! Invariants:
//! - The signature of a policy is the one that the TPM checks (TPM2_PolicyAuthorize), so no program
//!   that reads policies has to be trusted.
//! - A policy allows one value of PCR 14: one image, on one board, with one file of settings.
//! - The crate has no I/O, no clock and no unsafe code.
//!
//! docs/crypto.md specifies the exact bytes.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod escrow;
mod policies;
mod signer;

pub use escrow::{Escrow, EscrowError, RecoveryKey, RecoveryPublicKey};
pub use policies::{AuthorizedPolicy, Policies, PolicyError, PolicyMismatch};
pub use signer::{InvalidPublicKey, PublicKey, SignedPolicy, Signer};

/// Name of the file with policies, next to an image and on its boot partition.
pub const FILE_NAME: &str = "policies.json";
