//! Keys that sign policies: ECDSA on NIST P-256, which every TPM 2.0 verifies (TCG PC Client
//! Platform TPM Profile, 4.3).

use crrl::p256;
use hkdf::Hkdf;
use measure::{Digest, PLATFORM_PCR, Pcr};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::SignedPolicy;

/// Part of every signature, so that none that was made for something else counts.
pub(crate) const REFERENCE: &[u8] = b"basalt-policy-v1";

/// type ECC, name algorithm SHA-256; userWithAuth and sign; no policy; no symmetric cipher; ECDSA
/// with SHA-256 on NIST P-256; no key derivation (TPM 2.0 Library, Part 2, 12.2.4 TPMT_PUBLIC).
const AREA: [u8; 22] = [
    0x00, 0x23, 0x00, 0x0b, 0x00, 0x04, 0x00, 0x40, 0x00, 0x00, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b,
    0x00, 0x03, 0x00, 0x10, 0x00, 0x20,
];
/// Part 2, 6.5.2.
const POLICY_AUTHORIZE: [u8; 4] = [0x00, 0x00, 0x01, 0x6a];
const POLICY_PCR: [u8; 4] = [0x00, 0x00, 0x01, 0x7f];

/// Whoever signs policies.
pub struct Signer(p256::PrivateKey);

impl Signer {
    /// The builder's: derived from the key that signs the manifests of images, so that whoever has
    /// that one has this one.
    pub fn of_builder(secret: &[u8; 32]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"basalt-policy-signer-v1"), secret);
        let mut scalar = Zeroizing::new([0; 32]);
        let mut counter = 0u32;
        // Some of 2^32 values are no key.
        loop {
            // 32 bytes are always within what HKDF can give.
            let _ = hkdf.expand(&counter.to_be_bytes(), &mut *scalar);
            if let Some(key) = p256::PrivateKey::decode(&*scalar) {
                return Self(key);
            }
            counter += 1;
        }
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.to_public_key().encode_uncompressed())
    }

    /// Lets a boot that ends with this value of PCR 14 unseal. The same for the same value: nonces
    /// after RFC 6979.
    pub fn sign(&self, board: &str, pcr14: &Pcr) -> SignedPolicy {
        let signature = self.0.sign_hash(&to_sign(&pcr_policy(pcr14)), &[]);
        SignedPolicy {
            board: board.to_owned(),
            pcr14: measure::hex(&pcr14.0),
            signature: measure::hex(&signature),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a point of NIST P-256 in SEC 1's uncompressed form: 130 lower-case hex digits that begin with 04"
)]
pub struct NotAKey;

/// Whose policies count: SEC 1, uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// # Errors
    /// [`NotAKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAKey> {
        let bytes: [u8; 65] = bytes.try_into().map_err(|_| NotAKey)?;
        p256::PublicKey::decode(&bytes).map(|_| Self(bytes)).ok_or(NotAKey)
    }

    /// # Errors
    /// [`NotAKey`].
    pub fn from_hex(text: &str) -> Result<Self, NotAKey> {
        Self::from_bytes(&measure::unhex(text).ok_or(NotAKey)?)
    }

    pub fn hex(&self) -> String {
        measure::hex(&self.0)
    }

    pub fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }

    /// TPMT_PUBLIC, as TPM2_LoadExternal takes it.
    pub fn area(&self) -> Vec<u8> {
        [&AREA[..], &self.0[1..33], &[0x00, 0x20], &self.0[33..]].concat()
    }

    /// The algorithm's number and the digest of the public area (Part 1, 16 "Names").
    pub fn name(&self) -> [u8; 34] {
        let mut name = [0; 34];
        name[1] = 0x0b;
        name[2..].copy_from_slice(&Sha256::digest(self.area()));
        name
    }

    /// The policy of an object that any policy signed by this key unlocks: TPM2_PolicyAuthorize
    /// (Part 3, 23.16).
    pub fn authorises(&self) -> Digest {
        let inner = Sha256::new()
            .chain_update([0; 32])
            .chain_update(POLICY_AUTHORIZE)
            .chain_update(self.name())
            .finalize();
        Sha256::new().chain_update(inner).chain_update(REFERENCE).finalize().into()
    }

    pub(crate) fn signed(&self, policy: &Digest, signature: &[u8; 64]) -> bool {
        p256::PublicKey::decode(&self.0)
            .is_some_and(|key| key.verify_hash(signature, &to_sign(policy)))
    }
}

/// The policy that PCR 14 (SHA-256) has this value: TPM2_PolicyPCR (Part 3, 23.7).
pub(crate) fn pcr_policy(pcr14: &Pcr) -> Digest {
    // TPML_PCR_SELECTION: one bank, SHA-256, three bytes with one bit for each register.
    let mut selection = [0, 0, 0, 1, 0x00, 0x0b, 3, 0, 0, 0];
    selection[7 + (PLATFORM_PCR / 8) as usize] = 1 << (PLATFORM_PCR % 8);
    let values = Sha256::digest(pcr14.0);
    Sha256::new()
        .chain_update([0; 32])
        .chain_update(POLICY_PCR)
        .chain_update(selection)
        .chain_update(values)
        .finalize()
        .into()
}

/// What a signer signs (aHash of Part 3, 23.16).
pub(crate) fn to_sign(policy: &Digest) -> Digest {
    Sha256::new().chain_update(policy).chain_update(REFERENCE).finalize().into()
}
