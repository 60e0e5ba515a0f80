//! Who may unseal a node's root key: boots for which an image's builder signed a policy, and
//! whoever has the key of its escrow.
//!
//! Invariants:
//! - What is signed is what the TPM itself checks (TPM2_PolicyAuthorize): no program that reads a
//!   policy has to be believed.
//! - A policy allows one value of PCR 14: one image, on one board, with one file of settings.
//! - No I/O, no clock, no unsafe.
//!
//! The exact bytes are specified in docs/crypto.md.
#![forbid(unsafe_code)]

mod escrow;
mod policies;
mod signer;

pub use escrow::{Escrow, EscrowError, RecoveryKey, RecoveryPublic};
pub use policies::{Approved, Missing, Policies, PolicyError, SignedPolicy};
pub use signer::{NotAKey, PublicKey, Signer};

/// As it is called beside an image and on its boot partition.
pub const FILE: &str = "policies.json";
