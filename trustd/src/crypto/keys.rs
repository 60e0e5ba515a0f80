//! The keys of modules: derived from one root key, which the TPM seals.
//!
//! Invariant: a key belongs to a module's name and a suite; a module can ask for its own only. The root key leaves the
//! TPM's protection in this process alone and is never logged.

use std::path::Path;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::tpm::{Sealed, Tpm, TpmError};
use vrf::{SecretKey, Suite};

pub struct RootKey(Zeroizing<Vec<u8>>);

const ROOT_BYTES: usize = 32;

impl RootKey {
    /// Unseals the root key, or makes and seals one at the first start.
    pub async fn open(tpm: &Tpm, path: &Path) -> Result<Self, TpmError> {
        let unusable = |problem: String| TpmError::Sealed { path: path.to_owned(), problem };
        match std::fs::read(path) {
            Ok(bytes) => {
                let sealed = decode(&bytes).ok_or_else(|| unusable("it is not a sealed key".into()))?;
                let secret = tpm.unseal(sealed).await.map_err(|e| unusable(format!("{e}; was the TPM exchanged or cleared?")))?;
                Ok(Self(Zeroizing::new(secret)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secret = Zeroizing::new(tpm.random(ROOT_BYTES).await?);
                let sealed = tpm.seal(secret.to_vec()).await?;
                crate::files::write(path, &encode(&sealed)).map_err(|e| unusable(e.to_string()))?;
                Ok(Self(secret))
            }
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// A tag over trustd's own state by which it knows it again (HKDF-SHA256 with the data in `info` is HMAC).
    pub fn tag(&self, what: &str, data: &[u8]) -> [u8; 32] {
        let hkdf = Hkdf::<Sha256>::new(Some(b"basalt-own-state-v1"), &self.0);
        let mut tag = [0; 32];
        // 32 bytes are always within what HKDF can give.
        let _ = hkdf.expand_multi_info(&[what.as_bytes(), b"\0", data], &mut tag);
        tag
    }

    /// The secret key of a module for a suite: HKDF-SHA256 (RFC 5869) with a counter, for the rare output that is no key.
    pub fn vrf(&self, module: &str, suite: Suite) -> SecretKey {
        let hkdf = Hkdf::<Sha256>::new(Some(b"basalt-module-keys-v1"), &self.0);
        let mut secret = Zeroizing::new([0; 32]);
        let mut counter = 0u32;
        loop {
            let info = [b"vrf\0", suite.name().as_bytes(), b"\0", module.as_bytes(), b"\0", &counter.to_be_bytes()];
            // 32 bytes are always within what HKDF can give; were they not, zero is no key.
            let _ = hkdf.expand_multi_info(&info, &mut secret[..]);
            if let Ok(key) = SecretKey::new(suite, &*secret) {
                return key;
            }
            counter += 1;
        }
    }
}

/// Two parts, each with its length before it.
fn encode(sealed: &Sealed) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in [&sealed.public, &sealed.private] {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Sealed> {
    fn part(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        Some((part.to_vec(), rest))
    }
    let (public, rest) = part(bytes)?;
    let (private, rest) = part(rest)?;
    rest.is_empty().then_some(Sealed { public, private })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_module_and_suite_and_stay_the_same() {
        let root = RootKey(Zeroizing::new(vec![7; 32]));
        let key = |module: &str, suite| root.vrf(module, suite).public_key().to_vec();
        for suite in Suite::ALL {
            assert_eq!(key("a", suite), key("a", suite));
            assert_ne!(key("a", suite), key("b", suite));
        }
        assert_ne!(key("a", Suite::P256Tai), key("a", Suite::P256Sswu));
        assert_ne!(key("a", Suite::Ed25519Tai), key("a", Suite::Ed25519Ell2));
    }

    #[test]
    fn a_damaged_file_is_not_a_sealed_key() {
        let good = encode(&Sealed { public: vec![1; 5], private: vec![2; 6] });
        assert!(decode(&good).is_some());
        for end in 0..good.len() {
            assert!(decode(&good[..end]).is_none());
        }
        assert!(decode(&[&good[..], &[0]].concat()).is_none());
    }
}
