//! Public areas (TPMT_PUBLIC, TPM 2.0 Library, Part 2, 12.2.4) of the two kinds of keys that a node
//! shows: the attestation key and the endorsement key.

use p256::PublicKey;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Start of a public area: type ECC, name algorithm SHA-256.
const ECC_SHA256: [u8; 4] = [0x00, 0x23, 0x00, 0x0b];
/// Rest of an attestation key's public area, up to its point: fixedTPM, fixedParent,
/// sensitiveDataOrigin, userWithAuth, noDA, restricted, sign (Part 2, 8.3); no policy; no symmetric
/// cipher; ECDSA with SHA-256 on NIST P-256; no key derivation.
const ATTESTATION: [u8; 18] = [
    0x00, 0x05, 0x04, 0x72, 0x00, 0x00, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10,
    0x00, 0x20,
];
/// Attributes of an endorsement key: fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy,
/// restricted, decrypt (template L-2 of the TCG EK Credential Profile 2.3, B.3.4).
const ENDORSEMENT_ATTRIBUTES: [u8; 4] = [0x00, 0x03, 0x00, 0xb2];
/// Policy of an endorsement key: TPM2_PolicySecret of the endorsement hierarchy (same template).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// Parameters of an endorsement key: AES-128 in CFB mode, no scheme, NIST P-256, no key derivation,
/// and the length of x.
const ENDORSEMENT: [u8; 14] =
    [0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x00, 0x03, 0x00, 0x10, 0x00, 0x20];

/// Error of parsing a public area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unexpected kind of {key}: expected {expected}")]
pub struct KeyError {
    key: &'static str,
    expected: &'static str,
}

/// Public area of a key and the point in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmKey {
    public_area: Vec<u8>,
    point: PublicKey,
}

impl TpmKey {
    /// Parses the public area of an attestation key: it signs only structures that the TPM itself
    /// made (restricted), and it cannot leave the TPM.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError`] for any other kind of key.
    pub fn attestation(area: &[u8]) -> Result<Self, KeyError> {
        let expected = "a restricted ECDSA P-256 key that is fixed to its TPM";
        Self::parse(area, &[&ECC_SHA256[..], &ATTESTATION].concat())
            .ok_or(KeyError { key: "attestation key", expected })
    }

    /// Parses the public area of an endorsement key, which the TPM's manufacturer certifies.
    ///
    /// # Errors
    ///
    /// Returns [`KeyError`] for any other kind of key.
    pub fn endorsement(area: &[u8]) -> Result<Self, KeyError> {
        let expected = "template L-2 of the TCG EK Credential Profile (ECC P-256)";
        let policy = [&[0x00, 0x20], &ENDORSEMENT_POLICY[..]].concat();
        let head = [&ECC_SHA256[..], &ENDORSEMENT_ATTRIBUTES, &policy, &ENDORSEMENT].concat();
        Self::parse(area, &head).ok_or(KeyError { key: "endorsement key", expected })
    }

    fn parse(area: &[u8], head: &[u8]) -> Option<Self> {
        let point = area.strip_prefix(head)?;
        // The head includes the length of x. The length of y is between the two numbers.
        let (x, rest) = point.split_first_chunk::<32>()?;
        let y: &[u8; 32] = rest.strip_prefix(&[0x00, 0x20])?.try_into().ok()?;
        let point = PublicKey::from_sec1_bytes(&[&[4], &x[..], y].concat()).ok()?;
        Some(Self { public_area: area.to_vec(), point })
    }

    #[cfg(test)]
    pub(crate) fn from_point(sec1: &[u8]) -> Self {
        Self::attestation(
            &[&ECC_SHA256[..], &ATTESTATION, &sec1[1..33], &[0x00, 0x20], &sec1[33..]].concat(),
        )
        .expect("a point")
    }

    /// Returns the public area (TPMT_PUBLIC).
    pub fn public_area(&self) -> &[u8] {
        &self.public_area
    }

    /// Returns the point.
    pub fn point(&self) -> &PublicKey {
        &self.point
    }

    /// Returns the point in SEC 1 uncompressed form.
    pub fn sec1(&self) -> Vec<u8> {
        self.point.to_sec1_point(false).as_bytes().to_vec()
    }

    /// Returns the TPM name of the key: the number of the hash algorithm and the digest of the
    /// public area (Part 1, 16 "Names").
    pub fn name(&self) -> [u8; 34] {
        let mut name = [0; 34];
        name[1] = 0x0b;
        let digest: Digest = Sha256::digest(&self.public_area).into();
        name[2..].copy_from_slice(&digest);
        name
    }
}
