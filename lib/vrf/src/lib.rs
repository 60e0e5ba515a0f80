//! Verifiable random functions: the suites of RFC 9381 on P-256 and Edwards25519, and the one of
//! draft-irtf-cfrg-vrf-05 on secp256k1 that contracts on EVM chains verify.
//!
//! Invariants:
//! - Keys and proofs are validated before they are used:
//!   - A secret key of a Weierstrass curve is between 1 and the order minus one.
//!   - A public key is on the curve, canonically encoded and not of small order (RFC 9381, section
//!     5.4.5; the check is always on).
//!   - The Gamma of a proof is a canonically encoded point, and its s is below the order (section
//!     5.4.4).
//! - Operations on secrets take constant time. Operations on public data may not; docs/crypto.md
//!   lists both.
//! - The crate does no I/O.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod edwards;
mod sswu;
mod suite;
#[cfg(test)]
mod tests;
mod weierstrass;

use zeroize::Zeroizing;

use suite::Trace;
pub use suite::{Proof, Suite, VrfError};

/// A secret key of 32 bytes with its public key. Dropping it wipes the key from memory, but not the
/// copies that the arithmetic makes.
pub struct SecretKey {
    suite: Suite,
    secret: Zeroizing<[u8; 32]>,
    public: Vec<u8>,
}

impl SecretKey {
    /// Creates a key from 32 bytes: a big-endian number for the Weierstrass curves, a seed for
    /// Edwards25519 (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    ///
    /// Returns [`VrfError::SecretKey`] for any other length, and on the Weierstrass curves for zero
    /// and for numbers that are not below the order.
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

    /// Returns the suite of the key.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Returns the public key: 33 bytes (SEC 1, compressed) or 32 bytes (RFC 8032).
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// Computes proof and output for `alpha` (RFC 9381, sections 5.1 and 5.2). The same `alpha`
    /// always has the same proof.
    ///
    /// # Errors
    ///
    /// Returns [`VrfError::Encoding`] with a probability of 2^-256.
    pub fn prove(&self, alpha: &[u8]) -> Result<Proof, VrfError> {
        self.trace(alpha).map(|trace| trace.proof)
    }

    fn trace(&self, alpha: &[u8]) -> Result<Trace, VrfError> {
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

/// A validated public key (RFC 9381, section 5.4.5).
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
    /// Decodes and validates a public key.
    ///
    /// # Errors
    ///
    /// Returns [`VrfError::PublicKey`] if the bytes are not the canonical encoding of a point on
    /// the curve, or if the point is the identity or of small order.
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

    /// Returns the suite of the key.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Returns the encoded key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Verifies a proof (RFC 9381, section 5.3). Returns the output if the proof is valid, and
    /// `None` if it is not.
    ///
    /// # Errors
    ///
    /// Returns [`VrfError::MalformedProof`] if the proof does not decode: it has the wrong length,
    /// Gamma is not on the curve, or s is not below the order.
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
