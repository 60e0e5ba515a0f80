//! The keys of modules: derived from one root key (crate::keys::root_key).
//!
//! Invariant: a key belongs to a module's name, to what that is bound to and to a purpose; a module
//! can ask for its own only. The root key leaves the TPM's protection in this process alone and is
//! never logged.

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

pub struct RootKey(Zeroizing<Vec<u8>>);

impl RootKey {
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For what trustd itself keeps, apart from everything of modules.
    pub fn own(&self) -> ModuleKeys {
        let mut base = Zeroizing::new([0; 32]);
        derive(&self.0, b"basalt-own-v1", &[], &mut base);
        ModuleKeys::of(base)
    }

    /// A tag over trustd's own state by which it knows it again (HKDF-SHA256 with the data in
    /// `info` is HMAC).
    pub fn tag(&self, what: &str, data: &[u8]) -> [u8; 32] {
        let hkdf = Hkdf::<Sha256>::new(Some(b"basalt-own-state-v1"), &self.0);
        let mut tag = [0; 32];
        // 32 bytes are always within what HKDF can give.
        let _ = hkdf.expand_multi_info(&[what.as_bytes(), b"\0", data], &mut tag);
        tag
    }

    /// The keys of a module; the same for the same name and binding, for as long as the root key
    /// is.
    pub fn module(&self, module: &str, binding: &Binding) -> ModuleKeys {
        let mut base = Zeroizing::new([0; 32]);
        let (kind, value): (&[u8], &[u8]) = match binding {
            Binding::Approvers(ledger) => (b"approvers", ledger),
            Binding::Image(digest) => (b"image", digest.as_bytes()),
        };
        derive(&self.0, b"basalt-module-v1", &[module.as_bytes(), kind, value], &mut base);
        ModuleKeys::of(base)
    }
}

/// What a module's keys depend on beside its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// [`ledger::TrustPolicy::identity`]
    Approvers(Digest),
    /// Of the manifest.
    Image(String),
}

/// HKDF-SHA256 (RFC 5869); in `info` each part has its length before it.
fn derive(key: &[u8], salt: &[u8], parts: &[&[u8]], to: &mut [u8; 32]) {
    let lengths: Vec<[u8; 4]> =
        parts.iter().map(|part| (part.len() as u32).to_be_bytes()).collect();
    let info: Vec<&[u8]> =
        lengths.iter().zip(parts).flat_map(|(length, part)| [&length[..], *part]).collect();
    // 32 bytes are always within what HKDF can give.
    let _ = Hkdf::<Sha256>::new(Some(salt), key).expand_multi_info(&info, to);
}

/// One module's keys, each made when it is first asked for.
pub struct ModuleKeys {
    base: Zeroizing<[u8; 32]>,
    vrf: [OnceLock<SecretKey>; Suite::ALL.len()],
    ed25519: OnceLock<SigningKey>,
    p256: OnceLock<p256::PrivateKey>,
}

impl ModuleKeys {
    fn of(base: Zeroizing<[u8; 32]>) -> Self {
        Self { base, vrf: Default::default(), ed25519: OnceLock::new(), p256: OnceLock::new() }
    }

    pub(super) fn derive(&self, parts: &[&[u8]], to: &mut [u8; 32]) {
        derive(&*self.base, b"basalt-key-v1", parts, to);
    }

    /// With a counter, for the rare output that is no key.
    fn find<K>(&self, what: &[u8], name: &[u8], key: impl Fn(&[u8; 32]) -> Option<K>) -> K {
        let mut secret = Zeroizing::new([0; 32]);
        let mut counter = 0u32;
        loop {
            self.derive(&[what, name, &counter.to_be_bytes()], &mut secret);
            if let Some(key) = key(&secret) {
                return key;
            }
            counter += 1;
        }
    }

    pub fn vrf(&self, suite: Suite) -> &SecretKey {
        let at = Suite::ALL.iter().position(|s| *s == suite).unwrap_or_default();
        self.vrf[at].get_or_init(|| {
            self.find(b"vrf", suite.name().as_bytes(), |secret| SecretKey::new(suite, secret).ok())
        })
    }

    /// Public key and signature.
    pub fn sign(&self, algorithm: Algorithm, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
        match algorithm {
            Algorithm::Ed25519 => {
                let key = self.ed25519.get_or_init(|| {
                    self.find(b"sign", b"ed25519", |secret| Some(SigningKey::from_bytes(secret)))
                });
                (key.verifying_key().as_bytes().to_vec(), sign::ed25519(key, data))
            }
            Algorithm::EcdsaP256 => {
                let key = self.p256.get_or_init(|| {
                    self.find(b"sign", b"p256", |secret| p256::PrivateKey::decode(secret))
                });
                (sign::p256_public(key), sign::ecdsa(key, data))
            }
        }
    }

    /// The key of a message authentication code (HMAC, RFC 2104); each label has another one.
    pub fn mac(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(&[b"hmac", label], &mut key);
        key
    }
}

/// From the TPM's generator and the kernel's together: somebody who listens on the TPM's bus, or
/// who knows one of them, knows nothing of it.
pub async fn random(tpm: &Tpm, bytes: usize) -> Result<Vec<u8>, TpmError> {
    let mut random = tpm.random(bytes).await?;
    let mut ours = Zeroizing::new(vec![0; bytes]);
    let filled = SystemRandom::new().fill(&mut ours);
    filled.map_err(|_| TpmError::Answer {
        what: "random numbers",
        problem: "the kernel has none".into(),
    })?;
    random.iter_mut().zip(ours.iter()).for_each(|(byte, other)| *byte ^= other);
    Ok(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_module_binding_and_purpose_and_stay_the_same() {
        let root = RootKey::from_bytes(&[7; 32]);
        let all = |module: &str, binding: &Binding| {
            let keys = root.module(module, binding);
            let mut all: Vec<Vec<u8>> =
                Suite::ALL.iter().map(|suite| keys.vrf(*suite).public_key().to_vec()).collect();
            all.extend(
                [Algorithm::Ed25519, Algorithm::EcdsaP256]
                    .map(|algorithm| keys.sign(algorithm, b"").0),
            );
            all.extend([b"", &b"label"[..]].map(|label| keys.mac(label).to_vec()));
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
        let other = RootKey::from_bytes(&[8; 32]).module("a", &bindings[0]).mac(b"").to_vec();
        assert!(seen.insert(other));
    }
}
