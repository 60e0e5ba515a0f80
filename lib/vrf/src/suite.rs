//! The suites, and the types that they have in common.

use serde::{Deserialize, Serialize};

/// A suite of RFC 9381, section 5.5, or of draft-irtf-cfrg-vrf-05 in the form of the crate `vrf`
/// and of the contracts of vrf-solidity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Suite {
    /// P-256, SHA-256, try-and-increment.
    #[serde(rename = "ECVRF-P256-SHA256-TAI")]
    P256Tai,
    /// P-256, SHA-256, simplified SWU map.
    #[serde(rename = "ECVRF-P256-SHA256-SSWU")]
    P256Sswu,
    /// Edwards25519, SHA-512, try-and-increment.
    #[serde(rename = "ECVRF-EDWARDS25519-SHA512-TAI")]
    Ed25519Tai,
    /// Edwards25519, SHA-512, Elligator 2.
    #[serde(rename = "ECVRF-EDWARDS25519-SHA512-ELL2")]
    Ed25519Ell2,
    /// secp256k1, SHA-256, try-and-increment, in the form of the draft.
    #[serde(rename = "draft-05:ECVRF-SECP256K1-SHA256-TAI")]
    Secp256k1Draft05,
}

/// A proof and the output that it proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Proof: 81 bytes on the Weierstrass curves, 80 on Edwards25519.
    pub pi: Vec<u8>,
    /// Output: 32 bytes with SHA-256, 64 with SHA-512.
    pub beta: Vec<u8>,
}

/// Error of a VRF operation.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum VrfError {
    /// The public key is not a point that the suite allows.
    #[error("invalid public key for this suite (RFC 9381, section 5.4.5)")]
    PublicKey,
    /// The secret key has the wrong length or is out of range.
    #[error("invalid secret key for this suite: expected 32 bytes within the range of the curve")]
    SecretKey,
    /// The proof does not decode.
    #[error("malformed proof for this suite (RFC 9381, section 5.4.4)")]
    MalformedProof,
    /// Try-and-increment found no point within 256 attempts.
    #[error("no point found for this alpha in 256 attempts; the probability is 2^-256")]
    Encoding,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 5] = [
        Self::P256Tai,
        Self::P256Sswu,
        Self::Ed25519Tai,
        Self::Ed25519Ell2,
        Self::Secp256k1Draft05,
    ];

    /// Returns the name of RFC 9381, section 5.5. The name of the draft's suite begins with
    /// `draft-05:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256Tai => "ECVRF-P256-SHA256-TAI",
            Self::P256Sswu => "ECVRF-P256-SHA256-SSWU",
            Self::Ed25519Tai => "ECVRF-EDWARDS25519-SHA512-TAI",
            Self::Ed25519Ell2 => "ECVRF-EDWARDS25519-SHA512-ELL2",
            Self::Secp256k1Draft05 => "draft-05:ECVRF-SECP256K1-SHA256-TAI",
        }
    }

    /// Returns suite_string (RFC 9381, section 5.5). The draft defines none for secp256k1; its
    /// implementations use 0xFE.
    pub(crate) fn suite_string(self) -> u8 {
        match self {
            Self::P256Tai => 0x01,
            Self::P256Sswu => 0x02,
            Self::Ed25519Tai => 0x03,
            Self::Ed25519Ell2 => 0x04,
            Self::Secp256k1Draft05 => 0xfe,
        }
    }

    /// Reports whether the suite follows the draft. RFC 9381 ends hash inputs with a zero byte and
    /// hashes the public key into the challenge; the draft does neither.
    pub(crate) fn is_draft(self) -> bool {
        self == Self::Secp256k1Draft05
    }
}

/// A proof; in tests also the intermediate values that the examples of the RFC list.
pub(crate) struct Trace {
    pub(crate) proof: Proof,
    #[cfg(test)]
    pub(crate) points: Points,
}

/// The points H, U and V, encoded.
#[cfg(test)]
pub(crate) struct Points {
    pub(crate) h: Vec<u8>,
    pub(crate) u: Vec<u8>,
    pub(crate) v: Vec<u8>,
}
