//! Platform configuration registers.

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Platform configuration register (PCR) of the SHA-256 bank, computed as the TPM does (TPM 2.0
/// Library, Part 1, 17.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pcr(pub Digest);

impl Pcr {
    /// Replaces the value by the SHA-256 of the value and `digest`.
    pub fn extend(&mut self, digest: &Digest) {
        self.0 = Sha256::new().chain_update(self.0).chain_update(digest).finalize().into();
    }
}
