//! TPM2_MakeCredential without a TPM (TPM 2.0 Library, Part 1, 24 "Credential Protection" and Annex
//! C.6; Part 3, 12.6). Only the TPM that has the endorsement key can decrypt the secret, and only
//! if it also has the named key. A verifier that gets the secret back knows that both keys are in
//! one TPM.

use aes::Aes128;
use cfb_mode::BufEncryptor;
use cfb_mode::cipher::KeyIvInit as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use p256::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::{NonZeroScalar, PublicKey};
use sha2::{Digest as _, Sha256};

use crate::TpmKey;

/// Input of TPM2_ActivateCredential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPMS_ID_OBJECT, the content of TPM2B_ID_OBJECT.
    pub blob: Vec<u8>,
    /// TPMS_ECC_POINT, the content of TPM2B_ENCRYPTED_SECRET.
    pub seed: Vec<u8>,
}

/// Error of random bytes that are not a secret key of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the random bytes are not a secret key of P-256; retry with other bytes")]
pub struct InvalidEphemeralKey;

/// Returns the bytes with their length in front (TPM2B).
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// Encrypts `secret` to the TPM that has the endorsement key, on condition that it also has the key
/// of this TPM name. `ephemeral` must be fresh random bytes.
///
/// # Errors
///
/// Returns [`InvalidEphemeralKey`] for about one of 2^32 values of `ephemeral`.
pub fn make_credential(
    endorsement: &TpmKey,
    name: &[u8],
    secret: &[u8; 32],
    ephemeral: &[u8; 32],
) -> Result<Credential, InvalidEphemeralKey> {
    let ephemeral = Option::<NonZeroScalar>::from(NonZeroScalar::from_repr((*ephemeral).into()))
        .ok_or(InvalidEphemeralKey)?;
    let z = diffie_hellman(ephemeral, endorsement.point().as_affine());
    let (ours, theirs) = (xy(&PublicKey::from_secret_scalar(&ephemeral)), xy(endorsement.point()));
    let seed = kdfe(z.raw_secret_bytes(), b"IDENTITY\0", &ours.0, &theirs.0);

    let mut body = sized(secret);
    let key = kdfa(&seed, b"STORAGE\0", name, 128);
    let mut cipher = BufEncryptor::<Aes128>::new_from_slices(&key[..16], &[0; 16])
        .map_err(|_| InvalidEphemeralKey)?;
    cipher.encrypt(&mut body);
    let key = kdfa(&seed, b"INTEGRITY\0", &[], 256);
    let integrity = mac(&key, &[&body, name]);
    Ok(Credential {
        blob: [sized(&integrity), body].concat(),
        seed: [sized(&ours.0), sized(&ours.1)].concat(),
    })
}

fn xy(point: &PublicKey) -> ([u8; 32], [u8; 32]) {
    let (mut x, mut y) = ([0; 32], [0; 32]);
    let encoded = point.to_sec1_point(false);
    x.copy_from_slice(&encoded.as_bytes()[1..33]);
    y.copy_from_slice(&encoded.as_bytes()[33..]);
    (x, y)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC accepts keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Implements KDFa (Part 1, 11.4.10.2) for at most one block.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> [u8; 32] {
    mac(key, &[&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
}

/// Implements KDFe for ECDH (Part 1, 11.4.10.3) for one block.
fn kdfe(z: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(z)
        .chain_update(label)
        .chain_update(u)
        .chain_update(v)
        .finalize()
        .into()
}
