use sha2::{Digest as _, Sha256};

use crate::Digest;

/// A platform configuration register of the SHA-256 bank, as the TPM computes it (TPM 2.0 Library,
/// Part 1, 17.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pcr(pub Digest);

impl Pcr {
    pub fn extend(&mut self, digest: &Digest) {
        self.0 = Sha256::new().chain_update(self.0).chain_update(digest).finalize().into();
    }
}
