//! Signatures: Ed25519 (RFC 8032), and ECDSA on P-256 with SHA-256 (FIPS 186-5) and deterministic
//! nonces (RFC 6979).

use crrl::p256;
use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ed25519. Public key: 32 bytes; signature: 64 bytes.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// ECDSA on P-256 with SHA-256. Public key: SEC 1; signature: r and s, 32 bytes each.
    #[serde(rename = "ecdsa-p256-sha256")]
    EcdsaP256,
}

/// Error of verifying a signature that cannot be valid for any data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The public key is invalid.
    #[error(
        "the public key is not valid for this algorithm: expected 32 bytes (ed25519, not of small \
         order) or a point in SEC 1 form (ecdsa-p256-sha256)"
    )]
    PublicKey,
    /// The signature has another form than the algorithm's signatures.
    #[error("the signature does not have the form of this algorithm: expected 64 bytes")]
    Form,
}

pub(super) fn encode_p256_public_key(key: &p256::PrivateKey) -> Vec<u8> {
    key.to_public_key().encode_compressed().to_vec()
}

pub(super) fn sign_ed25519(key: &ed25519_dalek::SigningKey, data: &[u8]) -> Vec<u8> {
    key.sign(data).to_bytes().to_vec()
}

pub(super) fn sign_ecdsa_p256(key: &p256::PrivateKey, data: &[u8]) -> Vec<u8> {
    key.sign_hash(&Sha256::digest(data), &[]).to_vec()
}

/// Reports whether a signature of `data` is valid.
///
/// # Errors
/// [`SignError`] if the key or the signature is malformed.
pub fn verify(
    algorithm: Algorithm,
    public_key: &[u8],
    data: &[u8],
    signature: &[u8],
) -> Result<bool, SignError> {
    match algorithm {
        Algorithm::Ed25519 => {
            let key: [u8; 32] = public_key.try_into().map_err(|_| SignError::PublicKey)?;
            let key = VerifyingKey::from_bytes(&key)
                .ok()
                .filter(|key| !key.is_weak())
                .ok_or(SignError::PublicKey)?;
            let signature = Signature::from_slice(signature).map_err(|_| SignError::Form)?;
            Ok(key.verify_strict(data, &signature).is_ok())
        }
        Algorithm::EcdsaP256 => {
            let key = p256::PublicKey::decode(public_key).ok_or(SignError::PublicKey)?;
            // The library accepts shorter signatures, too.
            let signature: &[u8; 64] = signature.try_into().map_err(|_| SignError::Form)?;
            Ok(key.verify_hash(signature, &Sha256::digest(data)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        measure::unhex(hex).unwrap()
    }

    /// Vectors: RFC 6979, appendix A.2.5, SHA-256, and RFC 8032, section 7.1, test 2.
    #[test]
    fn signatures_match_the_published_test_vectors() {
        let key = p256::PrivateKey::decode(&bytes(
            "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
        ))
        .unwrap();
        let signature = sign_ecdsa_p256(&key, b"sample");
        assert_eq!(
            measure::hex(&signature),
            "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716\
             f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
        );
        let public = encode_p256_public_key(&key);
        assert_eq!(
            measure::hex(&public),
            "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
        );
        assert_eq!(verify(Algorithm::EcdsaP256, &public, b"sample", &signature), Ok(true));

        let secret: [u8; 32] =
            bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
                .try_into()
                .unwrap();
        let key = ed25519_dalek::SigningKey::from_bytes(&secret);
        let signature = sign_ed25519(&key, &[0x72]);
        assert_eq!(
            measure::hex(&signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        assert_eq!(
            verify(Algorithm::Ed25519, key.verifying_key().as_bytes(), &[0x72], &signature),
            Ok(true)
        );
    }

    #[test]
    fn altered_signatures_and_malformed_keys_are_rejected() {
        let p256 = p256::PrivateKey::decode(&[7; 32]).unwrap();
        let edwards = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let cases = [
            (Algorithm::EcdsaP256, encode_p256_public_key(&p256), sign_ecdsa_p256(&p256, b"data")),
            (
                Algorithm::Ed25519,
                edwards.verifying_key().as_bytes().to_vec(),
                sign_ed25519(&edwards, b"data"),
            ),
        ];
        for (algorithm, public, good) in cases {
            assert_eq!(verify(algorithm, &public, b"data", &good), Ok(true));
            assert_eq!(verify(algorithm, &public, b"date", &good), Ok(false));
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(
                    verify(algorithm, &public, b"data", &bad),
                    Ok(true),
                    "{algorithm:?} {bit}"
                );
            }
            for length in [0, 32, 62, 63, 65, 128] {
                let bad: Vec<u8> = good.iter().copied().chain([0; 64]).take(length).collect();
                assert_eq!(verify(algorithm, &public, b"data", &bad), Err(SignError::Form));
            }
            assert_ne!(verify(algorithm, &public, b"data", &[0; 64]), Ok(true));
            for key in
                [vec![], vec![0; 32], vec![0; 33], vec![0; 65], vec![0], public[1..].to_vec()]
            {
                assert_eq!(
                    verify(algorithm, &key, b"data", &good),
                    Err(SignError::PublicKey),
                    "{key:?}"
                );
            }
        }
    }
}
