//! Keys that sign policies: ECDSA on NIST P-256, which every TPM 2.0 verifies (TCG PC Client
//! Platform TPM Profile, 4.3).

use crrl::p256;
use hkdf::Hkdf;
use measure::{Digest, PLATFORM_PCR, Pcr};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Part of every signature (policyRef), so that a signature for another purpose is no policy.
pub(crate) const REFERENCE: &[u8] = b"basalt-policy-v1";

/// Head of the public area (TPM 2.0 Library, Part 2, 12.2.4 TPMT_PUBLIC): type ECC, name algorithm
/// SHA-256; userWithAuth and sign; no policy; no symmetric cipher; ECDSA with SHA-256 on NIST
/// P-256; no key derivation.
const PUBLIC_AREA_HEAD: [u8; 22] = [
    0x00, 0x23, 0x00, 0x0b, 0x00, 0x04, 0x00, 0x40, 0x00, 0x00, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b,
    0x00, 0x03, 0x00, 0x10, 0x00, 0x20,
];
/// Command code of TPM2_PolicyAuthorize (Part 2, 6.5.2).
const POLICY_AUTHORIZE: [u8; 4] = [0x00, 0x00, 0x01, 0x6a];
/// Command code of TPM2_PolicyPCR (Part 2, 6.5.2).
const POLICY_PCR: [u8; 4] = [0x00, 0x00, 0x01, 0x7f];

/// Policy for one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedPolicy {
    /// Name of the board; for readers only, not signed.
    pub board: String,
    /// Value of PCR 14 (SHA-256 bank), hex.
    pub pcr14: String,
    /// ECDSA signature, r and s of 32 bytes each, hex.
    pub signature: String,
}

/// Private key that signs policies.
pub struct Signer(p256::PrivateKey);

impl Signer {
    /// Derives the signer from the builder key, which signs the manifests of images. The builder
    /// has one secret to protect.
    pub fn from_builder_key(secret: &[u8; 32]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"basalt-policy-signer-v1"), secret);
        let mut scalar = Zeroizing::new([0; 32]);
        let mut counter = 0u32;
        // About one of 2^32 values is not a valid key; the next counter yields another value.
        loop {
            // Expanding to 32 bytes cannot fail: HKDF-SHA256 yields up to 8160 bytes.
            let _ = hkdf.expand(&counter.to_be_bytes(), &mut *scalar);
            if let Some(key) = p256::PrivateKey::decode(&*scalar) {
                return Self(key);
            }
            counter += 1;
        }
    }

    /// Returns the public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.to_public_key().encode_uncompressed())
    }

    /// Signs a policy that authorises a boot with this value of PCR 14 to unseal the root key. The
    /// signature is deterministic (RFC 6979).
    pub fn sign(&self, board: &str, pcr14: &Pcr) -> SignedPolicy {
        let signature = self.0.sign_hash(&authorized_hash(&pcr_policy(pcr14)), &[]);
        SignedPolicy {
            board: board.to_owned(),
            pcr14: measure::hex(&pcr14.0),
            signature: measure::hex(&signature),
        }
    }
}

/// Error of decoding a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a point of NIST P-256 in SEC 1 uncompressed form, 130 lower-case hex digits that \
     begin with 04"
)]
pub struct InvalidPublicKey;

/// Public key of a policy signer: a point of NIST P-256 in SEC 1 uncompressed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// Decodes a key from 65 bytes.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidPublicKey`] if the bytes are not a point of the curve.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidPublicKey> {
        let bytes: [u8; 65] = bytes.try_into().map_err(|_| InvalidPublicKey)?;
        p256::PublicKey::decode(&bytes).map(|_| Self(bytes)).ok_or(InvalidPublicKey)
    }

    /// Decodes a key from lower-case hex.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidPublicKey`] if the text is not hex, or not a point of the curve.
    pub fn from_hex(text: &str) -> Result<Self, InvalidPublicKey> {
        Self::from_bytes(&measure::unhex(text).ok_or(InvalidPublicKey)?)
    }

    /// Returns the key as hex.
    pub fn hex(&self) -> String {
        measure::hex(&self.0)
    }

    /// Returns the key.
    pub fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }

    /// Returns the public area (TPMT_PUBLIC) for TPM2_LoadExternal.
    pub fn public_area(&self) -> Vec<u8> {
        [&PUBLIC_AREA_HEAD[..], &self.0[1..33], &[0x00, 0x20], &self.0[33..]].concat()
    }

    /// Returns the TPM name of the key: the number of the hash algorithm and the digest of the
    /// public area (Part 1, 16 "Names").
    pub fn name(&self) -> [u8; 34] {
        let mut name = [0; 34];
        name[1] = 0x0b;
        name[2..].copy_from_slice(&Sha256::digest(self.public_area()));
        name
    }

    /// Returns the authorisation policy of an object that any policy signed by this key unlocks:
    /// TPM2_PolicyAuthorize (Part 3, 23.16).
    pub fn authorization_policy(&self) -> Digest {
        let inner = Sha256::new()
            .chain_update([0; 32])
            .chain_update(POLICY_AUTHORIZE)
            .chain_update(self.name())
            .finalize();
        Sha256::new().chain_update(inner).chain_update(REFERENCE).finalize().into()
    }

    /// Reports whether `signature` is this key's signature of a policy.
    pub(crate) fn verifies(&self, policy: &Digest, signature: &[u8; 64]) -> bool {
        p256::PublicKey::decode(&self.0)
            .is_some_and(|key| key.verify_hash(signature, &authorized_hash(policy)))
    }
}

/// Returns the digest of the policy that PCR 14 (SHA-256) has this value: TPM2_PolicyPCR (Part 3,
/// 23.7).
pub(crate) fn pcr_policy(pcr14: &Pcr) -> Digest {
    // TPML_PCR_SELECTION: one bank, SHA-256, three bytes with one bit per register.
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

/// Returns the digest that a signer signs (aHash of Part 3, 23.16).
pub(crate) fn authorized_hash(policy: &Digest) -> Digest {
    Sha256::new().chain_update(policy).chain_update(REFERENCE).finalize().into()
}
