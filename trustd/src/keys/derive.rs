//! Derivation of the modules' keys from one root key.
//!
//! Invariants:
//! - A key is determined by the root key, a module's name, the module's [`Binding`] and a purpose.
//!   A module can use only its own keys.
//! - The root key leaves the TPM's protection only in this process, and is never logged.

use std::sync::OnceLock;

use crrl::p256;
use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use measure::Digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::Sha256;
use vrf::{SecretKey, Suite};
use zeroize::Zeroizing;

use super::sign::{self, Algorithm};
use crate::tpm::{Tpm, TpmError};

/// Length of a root key in bytes.
pub const ROOT_KEY_BYTES: usize = 32;

/// A root key, from which all other keys are derived.
pub struct RootKey(Zeroizing<Vec<u8>>);

impl RootKey {
    /// Copies the key from `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Derives the keys of trustd itself, which no module has.
    pub fn derive_own_keys(&self) -> ModuleKeys {
        let mut base = Zeroizing::new([0; 32]);
        derive(&self.0, b"basalt-own-v1", &[], &mut base);
        ModuleKeys::new(base)
    }

    /// Computes an authentication tag over trustd's own state (HKDF-SHA256 with the data in `info`
    /// is HMAC). `purpose` separates the kinds of state.
    pub fn compute_tag(&self, purpose: &str, data: &[u8]) -> [u8; 32] {
        let hkdf = Hkdf::<Sha256>::new(Some(b"basalt-own-state-v1"), &self.0);
        let mut tag = [0; 32];
        // HKDF-SHA256 can output up to 8160 bytes, so 32 never fail.
        let _ = hkdf.expand_multi_info(&[purpose.as_bytes(), b"\0", data], &mut tag);
        tag
    }

    /// Derives the keys of a module. The same name and binding give the same keys as long as the
    /// root key lasts.
    pub fn derive_module_keys(&self, module: &str, binding: &Binding) -> ModuleKeys {
        let mut base = Zeroizing::new([0; 32]);
        let (kind, value): (&[u8], &[u8]) = match binding {
            Binding::Approvers(ledger) => (b"approvers", ledger),
            Binding::Image(digest) => (b"image", digest.as_bytes()),
        };
        derive(&self.0, b"basalt-module-v1", &[module.as_bytes(), kind, value], &mut base);
        ModuleKeys::new(base)
    }
}

/// Property that a module's keys depend on, in addition to the module's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// The approvers: [`ledger::TrustPolicy::identity`].
    Approvers(Digest),
    /// The image: digest of its manifest.
    Image(String),
}

/// Derives 32 bytes with HKDF-SHA256 (RFC 5869). In `info` each part is preceded by its length as
/// four bytes, big endian.
fn derive(key: &[u8], salt: &[u8], parts: &[&[u8]], out: &mut [u8; 32]) {
    let lengths: Vec<[u8; 4]> =
        parts.iter().map(|part| (part.len() as u32).to_be_bytes()).collect();
    let info: Vec<&[u8]> =
        lengths.iter().zip(parts).flat_map(|(length, part)| [&length[..], *part]).collect();
    // HKDF-SHA256 can output up to 8160 bytes, so 32 never fail.
    let _ = Hkdf::<Sha256>::new(Some(salt), key).expand_multi_info(&info, out);
}

/// Keys of one module, each derived at its first use.
pub struct ModuleKeys {
    base: Zeroizing<[u8; 32]>,
    vrf: [OnceLock<SecretKey>; Suite::ALL.len()],
    ed25519: OnceLock<SigningKey>,
    p256: OnceLock<p256::PrivateKey>,
}

impl ModuleKeys {
    fn new(base: Zeroizing<[u8; 32]>) -> Self {
        Self { base, vrf: Default::default(), ed25519: OnceLock::new(), p256: OnceLock::new() }
    }

    pub(super) fn derive(&self, parts: &[&[u8]], out: &mut [u8; 32]) {
        derive(&*self.base, b"basalt-key-v1", parts, out);
    }

    /// Derives a key with a counter, and increments the counter until the output is a valid key,
    /// which the first output almost always is.
    fn derive_valid<K>(
        &self,
        purpose: &[u8],
        name: &[u8],
        parse: impl Fn(&[u8; 32]) -> Option<K>,
    ) -> K {
        let mut secret = Zeroizing::new([0; 32]);
        let mut counter = 0u32;
        loop {
            self.derive(&[purpose, name, &counter.to_be_bytes()], &mut secret);
            if let Some(key) = parse(&secret) {
                return key;
            }
            counter += 1;
        }
    }

    /// Returns the key of a verifiable random function.
    pub fn vrf_key(&self, suite: Suite) -> &SecretKey {
        let at = Suite::ALL.iter().position(|s| *s == suite).unwrap_or_default();
        self.vrf[at].get_or_init(|| {
            self.derive_valid(b"vrf", suite.name().as_bytes(), |secret| {
                SecretKey::new(suite, secret).ok()
            })
        })
    }

    /// Signs data. Returns the public key and the signature.
    pub fn sign(&self, algorithm: Algorithm, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
        match algorithm {
            Algorithm::Ed25519 => {
                let key = self.ed25519.get_or_init(|| {
                    self.derive_valid(b"sign", b"ed25519", |secret| {
                        Some(SigningKey::from_bytes(secret))
                    })
                });
                (key.verifying_key().as_bytes().to_vec(), sign::sign_ed25519(key, data))
            }
            Algorithm::EcdsaP256 => {
                let key = self.p256.get_or_init(|| {
                    self.derive_valid(b"sign", b"p256", |secret| p256::PrivateKey::decode(secret))
                });
                (sign::encode_p256_public_key(key), sign::sign_ecdsa_p256(key, data))
            }
        }
    }

    /// Derives the key of a message authentication code (HMAC, RFC 2104). Each label has its own.
    pub fn mac_key(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(&[b"hmac", label], &mut key);
        key
    }
}

/// Returns random bytes from the TPM's generator and the kernel's, combined by XOR. An attacker who
/// listens on the TPM's bus, or knows the output of one generator, learns nothing about the result.
///
/// # Errors
/// [`TpmError`] if one of the generators fails.
pub async fn generate_random(tpm: &Tpm, len: usize) -> Result<Vec<u8>, TpmError> {
    let mut random = tpm.get_random(len).await?;
    let mut kernel = Zeroizing::new(vec![0; len]);
    SystemRandom::new().fill(&mut kernel).map_err(|_| TpmError::KernelRandom)?;
    random.iter_mut().zip(kernel.iter()).for_each(|(byte, other)| *byte ^= other);
    Ok(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_stable_and_differ_by_module_binding_and_purpose() {
        let root = RootKey::from_bytes(&[7; 32]);
        let all = |module: &str, binding: &Binding| {
            let keys = root.derive_module_keys(module, binding);
            let mut all: Vec<Vec<u8>> =
                Suite::ALL.iter().map(|suite| keys.vrf_key(*suite).public_key().to_vec()).collect();
            all.extend(
                [Algorithm::Ed25519, Algorithm::EcdsaP256]
                    .map(|algorithm| keys.sign(algorithm, b"").0),
            );
            all.extend([b"", &b"label"[..]].map(|label| keys.mac_key(label).to_vec()));
            all
        };
        let bindings = [
            Binding::Approvers([1; 32]),
            Binding::Approvers([2; 32]),
            Binding::Image("sha256:aa".into()),
            Binding::Image(String::from_utf8(vec![1; 32]).unwrap()),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for (module, binding) in bindings.iter().flat_map(|b| [("a", b), ("b", b)]) {
            assert_eq!(all(module, binding), all(module, binding));
            assert!(
                all(module, binding).into_iter().all(|key| seen.insert(key)),
                "{module} {binding:?}"
            );
        }
        let other = RootKey::from_bytes(&[8; 32])
            .derive_module_keys("a", &bindings[0])
            .mac_key(b"")
            .to_vec();
        assert!(seen.insert(other));
    }
}
