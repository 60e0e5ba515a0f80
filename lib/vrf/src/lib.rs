//! Verifiable random functions after RFC 9381.
//!
//! Invariant: what a caller brings is validated here before the crate sees it: keys (section 5.4.5: not of small order,
//! canonically encoded) and proofs (section 5.4.4: s below the order; canonical point).

#![forbid(unsafe_code)]

use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity as _;
use serde::{Deserialize, Serialize};
use vrf_rfc9381::ec::edwards25519::tai::{EdVrfEdwards25519Tai, EdVrfEdwards25519TaiPublicKey, EdVrfEdwards25519TaiSecretKey};
use vrf_rfc9381::ec::p256::tai::{EcVrfP256Tai, EcVrfP256TaiPublicKey, EcVrfP256TaiSecretKey};
use vrf_rfc9381::{Prover, VRF, Verifier};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suite {
    #[serde(rename = "ECVRF-P256-SHA256-TAI")]
    P256Tai,
    #[serde(rename = "ECVRF-EDWARDS25519-SHA512-TAI")]
    Ed25519Tai,
}

/// A proof and what it proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub public_key: Vec<u8>,
    pub pi: Vec<u8>,
    pub beta: Vec<u8>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
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
    /// The suite's name in RFC 9381, section 5.5.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256Tai => "ECVRF-P256-SHA256-TAI",
            Self::Ed25519Tai => "ECVRF-EDWARDS25519-SHA512-TAI",
        }
    }

    /// Turns 32 uniform bytes into a secret key, if they are one (for P-256: from 1 to the order less one).
    pub fn check_secret(self, secret: &[u8; 32]) -> Result<(), VrfError> {
        match self {
            Self::P256Tai => EcVrfP256TaiSecretKey::from_slice(secret).map(|_| ()).map_err(|_| VrfError::SecretKey),
            // Any 32 bytes (RFC 8032, section 5.1.5).
            Self::Ed25519Tai => Ok(()),
        }
    }

    pub fn prove(self, secret: &[u8; 32], alpha: &[u8]) -> Result<Proof, VrfError> {
        match self {
            Self::P256Tai => {
                let prover = EcVrfP256TaiSecretKey::from_slice(secret).map_err(|_| VrfError::SecretKey)?;
                let pi = EcVrfP256Tai.prove(&prover, alpha).map_err(|_| VrfError::Encoding)?;
                let beta = EcVrfP256Tai.verify(&prover.verifier(), alpha, &pi).map_err(|_| VrfError::Encoding)?;
                Ok(Proof { public_key: p256_public(secret)?, pi, beta: beta.to_vec() })
            }
            Self::Ed25519Tai => {
                let prover = EdVrfEdwards25519TaiSecretKey::from_slice(secret).map_err(|_| VrfError::SecretKey)?;
                let pi = EdVrfEdwards25519Tai.prove(&prover, alpha).map_err(|_| VrfError::Encoding)?;
                let beta = EdVrfEdwards25519Tai.verify(&prover.verifier(), alpha, &pi).map_err(|_| VrfError::Encoding)?;
                Ok(Proof { public_key: ed25519_public(secret), pi, beta: beta.to_vec() })
            }
        }
    }

    /// The output if the proof holds, `None` if it does not.
    pub fn verify(self, public_key: &[u8], alpha: &[u8], pi: &[u8]) -> Result<Option<Vec<u8>>, VrfError> {
        match self {
            Self::P256Tai => {
                // The crate refuses c and s that are zero or not below the order, and points that are not on the curve.
                if pi.len() != 81 || !matches!(pi[0], 2 | 3) {
                    return Err(VrfError::Form);
                }
                if public_key.len() != 33 || !matches!(public_key[0], 2 | 3) {
                    return Err(VrfError::PublicKey);
                }
                let verifier = EcVrfP256TaiPublicKey::from_slice(public_key).map_err(|_| VrfError::PublicKey)?;
                Ok(EcVrfP256Tai.verify(&verifier, alpha, pi).ok().map(|beta| beta.to_vec()))
            }
            Self::Ed25519Tai => {
                let key = canonical(public_key).ok_or(VrfError::PublicKey)?;
                if key.mul_by_cofactor().is_identity() {
                    return Err(VrfError::PublicKey);
                }
                if pi.len() != 80 || canonical(&pi[..32]).is_none() {
                    return Err(VrfError::Form);
                }
                let s: [u8; 32] = pi[48..].try_into().map_err(|_| VrfError::Form)?;
                if bool::from(Scalar::from_canonical_bytes(s).is_none()) {
                    return Err(VrfError::Form);
                }
                let verifier = EdVrfEdwards25519TaiPublicKey::from_slice(public_key).map_err(|_| VrfError::PublicKey)?;
                Ok(EdVrfEdwards25519Tai.verify(&verifier, alpha, pi).ok().map(|beta| beta.to_vec()))
            }
        }
    }
}

/// A point in its one canonical encoding.
fn canonical(bytes: &[u8]) -> Option<curve25519_dalek::EdwardsPoint> {
    let compressed = CompressedEdwardsY::from_slice(bytes).ok()?;
    compressed.decompress().filter(|point| point.compress() == compressed)
}

fn ed25519_public(secret: &[u8; 32]) -> Vec<u8> {
    use sha2::Digest as _;
    let hash = sha2::Sha512::digest(secret);
    let mut x = [0; 32];
    x.copy_from_slice(&hash[..32]);
    curve25519_dalek::EdwardsPoint::mul_base_clamped(x).compress().to_bytes().to_vec()
}

fn p256_public(secret: &[u8; 32]) -> Result<Vec<u8>, VrfError> {
    use p256::elliptic_curve::sec1::ToSec1Point as _;
    let key = p256::SecretKey::from_slice(secret).map_err(|_| VrfError::SecretKey)?;
    Ok(key.public_key().to_sec1_point(true).as_bytes().to_vec())
}
