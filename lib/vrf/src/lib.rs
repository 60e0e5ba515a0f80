//! Verifiable random functions after RFC 9381, and one of draft-irtf-cfrg-vrf-05 for those who
//! verify on EVM chains.
//!
//! Invariants:
//! - Nothing is computed with a key or a proof before it was validated: secret keys of the
//!   Weierstrass curves lie between 1 and the order less one; public keys are on the curve,
//!   canonically encoded and not of small order (RFC 9381, section 5.4.5, always on); of a proof
//!   Gamma is a canonically encoded point and s is below the order (section 5.4.4).
//! - What touches a secret takes the same time whatever its value; what is public may not.
//!   docs/crypto.md says what is what.

#![forbid(unsafe_code)]

mod edwards;
mod sswu;
#[cfg(test)]
mod tests;
mod weierstrass;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A suite of RFC 9381, section 5.5; the last one is of draft-irtf-cfrg-vrf-05, as the crate `vrf`
/// and the contracts of vrf-solidity have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Suite {
    #[serde(rename = "ECVRF-P256-SHA256-TAI")]
    P256Tai,
    #[serde(rename = "ECVRF-P256-SHA256-SSWU")]
    P256Sswu,
    #[serde(rename = "ECVRF-EDWARDS25519-SHA512-TAI")]
    Ed25519Tai,
    #[serde(rename = "ECVRF-EDWARDS25519-SHA512-ELL2")]
    Ed25519Ell2,
    #[serde(rename = "draft-05:ECVRF-SECP256K1-SHA256-TAI")]
    Secp256k1Draft05,
}

/// A proof, and the output that it proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub pi: Vec<u8>,
    pub beta: Vec<u8>,
}

#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum VrfError {
    #[error("the public key is not valid for this suite (RFC 9381, section 5.4.5)")]
    PublicKey,
    #[error("the secret key is not valid for this suite")]
    SecretKey,
    #[error("the proof is not of the form that this suite has (RFC 9381, section 5.4.4)")]
    Form,
    #[error("no point was found for this alpha; the chance for that is 2^-256")]
    Encoding,
}

impl Suite {
    pub const ALL: [Self; 5] = [
        Self::P256Tai,
        Self::P256Sswu,
        Self::Ed25519Tai,
        Self::Ed25519Ell2,
        Self::Secp256k1Draft05,
    ];

    /// The suite's name in RFC 9381, section 5.5; the one of the draft says that it is of the
    /// draft.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256Tai => "ECVRF-P256-SHA256-TAI",
            Self::P256Sswu => "ECVRF-P256-SHA256-SSWU",
            Self::Ed25519Tai => "ECVRF-EDWARDS25519-SHA512-TAI",
            Self::Ed25519Ell2 => "ECVRF-EDWARDS25519-SHA512-ELL2",
            Self::Secp256k1Draft05 => "draft-05:ECVRF-SECP256K1-SHA256-TAI",
        }
    }

    /// suite_string (RFC 9381, section 5.5). The draft had none for secp256k1; 0xFE is what those
    /// have who use it.
    fn number(self) -> u8 {
        match self {
            Self::P256Tai => 0x01,
            Self::P256Sswu => 0x02,
            Self::Ed25519Tai => 0x03,
            Self::Ed25519Ell2 => 0x04,
            Self::Secp256k1Draft05 => 0xfe,
        }
    }

    /// RFC 9381 ends what it hashes with a zero byte and hashes the public key into the challenge;
    /// the draft did neither.
    fn is_draft(self) -> bool {
        self == Self::Secp256k1Draft05
    }
}

/// A secret key of 32 bytes with its public key. It is wiped from memory when it goes; copies that
/// the arithmetic makes are not.
pub struct SecretKey {
    suite: Suite,
    secret: Zeroizing<[u8; 32]>,
    public: Vec<u8>,
}

impl SecretKey {
    /// Takes 32 bytes as they are: for the Weierstrass curves a number in big-endian order, for
    /// Edwards25519 a seed (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    /// [`VrfError::SecretKey`] if it has another length, or is zero or not below the order of the
    /// Weierstrass curves.
    pub fn new(suite: Suite, secret: &[u8]) -> Result<Self, VrfError> {
        let secret: Zeroizing<[u8; 32]> =
            Zeroizing::new(secret.try_into().map_err(|_| VrfError::SecretKey)?);
        let public = match suite {
            Suite::P256Tai | Suite::P256Sswu => {
                weierstrass::public_key::<weierstrass::P256>(&secret)?
            }
            Suite::Secp256k1Draft05 => weierstrass::public_key::<weierstrass::Secp256k1>(&secret)?,
            Suite::Ed25519Tai | Suite::Ed25519Ell2 => edwards::public_key(&secret),
        };
        Ok(Self { suite, secret, public })
    }

    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// 33 bytes (SEC 1, compressed) or 32 (RFC 8032).
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// RFC 9381, sections 5.1 and 5.2. The same alpha has always the same proof.
    ///
    /// # Errors
    /// [`VrfError::Encoding`], which does not happen.
    pub fn prove(&self, alpha: &[u8]) -> Result<Proof, VrfError> {
        self.steps(alpha).map(|steps| steps.proof)
    }

    fn steps(&self, alpha: &[u8]) -> Result<Steps, VrfError> {
        match self.suite {
            Suite::P256Tai | Suite::P256Sswu => weierstrass::prove::<weierstrass::P256>(
                self.suite,
                &self.secret,
                &self.public,
                alpha,
            ),
            Suite::Secp256k1Draft05 => weierstrass::prove::<weierstrass::Secp256k1>(
                self.suite,
                &self.secret,
                &self.public,
                alpha,
            ),
            Suite::Ed25519Tai | Suite::Ed25519Ell2 => {
                edwards::prove(self.suite, &self.secret, &self.public, alpha)
            }
        }
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKey").field("suite", &self.suite).finish_non_exhaustive()
    }
}

/// With the tests, also what the RFC's examples show beside the proof.
struct Steps {
    proof: Proof,
    #[cfg(test)]
    seen: Seen,
}

/// H, U and V encoded.
#[cfg(test)]
struct Seen {
    h: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
}

/// A public key that was validated (RFC 9381, section 5.4.5).
#[derive(Debug, Clone)]
pub struct PublicKey {
    suite: Suite,
    bytes: Vec<u8>,
    point: Point,
}

#[derive(Debug, Clone)]
enum Point {
    P256(<weierstrass::P256 as weierstrass::Curve>::Point),
    Secp256k1(<weierstrass::Secp256k1 as weierstrass::Curve>::Point),
    Edwards(curve25519_dalek::EdwardsPoint),
}

impl PublicKey {
    /// # Errors
    /// [`VrfError::PublicKey`] if it is not on the curve, not in its one encoding, the identity or
    /// of small order.
    pub fn new(suite: Suite, bytes: &[u8]) -> Result<Self, VrfError> {
        let point = match suite {
            Suite::P256Tai | Suite::P256Sswu => {
                weierstrass::decode::<weierstrass::P256>(bytes).map(Point::P256)
            }
            Suite::Secp256k1Draft05 => {
                weierstrass::decode::<weierstrass::Secp256k1>(bytes).map(Point::Secp256k1)
            }
            Suite::Ed25519Tai | Suite::Ed25519Ell2 => {
                edwards::decode(bytes).filter(|p| !p.is_small_order()).map(Point::Edwards)
            }
        };
        Ok(Self { suite, bytes: bytes.to_vec(), point: point.ok_or(VrfError::PublicKey)? })
    }

    pub fn suite(&self) -> Suite {
        self.suite
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The output if the proof holds, `None` if it does not (RFC 9381, section 5.3).
    ///
    /// # Errors
    /// [`VrfError::Form`] if it is no proof at all: another length, Gamma not on the curve, s not
    /// below the order.
    pub fn verify(&self, alpha: &[u8], pi: &[u8]) -> Result<Option<Vec<u8>>, VrfError> {
        match &self.point {
            Point::P256(point) => {
                weierstrass::verify::<weierstrass::P256>(self.suite, &self.bytes, *point, alpha, pi)
            }
            Point::Secp256k1(point) => weierstrass::verify::<weierstrass::Secp256k1>(
                self.suite,
                &self.bytes,
                *point,
                alpha,
                pi,
            ),
            Point::Edwards(point) => edwards::verify(self.suite, &self.bytes, point, alpha, pi),
        }
    }
}
