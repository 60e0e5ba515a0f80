//! TPM2_MakeCredential without a TPM (TPM 2.0 Library, Part 1, 24 "Credential Protection" and Annex
//! C.6; Part 3, 12.6): a secret that only the TPM with an endorsement key can read, and only if it
//! also holds a key of a certain name. Who gets it back knows that both are in one TPM.

use aes::Aes128;
use cfb_mode::BufEncryptor;
use cfb_mode::cipher::KeyIvInit as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use p256::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::{NonZeroScalar, PublicKey};
use sha2::{Digest as _, Sha256};

use crate::TpmKey;

/// For TPM2_ActivateCredential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPMS_ID_OBJECT: what TPM2B_ID_OBJECT has after its length.
    pub blob: Vec<u8>,
    /// TPMS_ECC_POINT: what TPM2B_ENCRYPTED_SECRET has after its length.
    pub seed: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the random bytes for the ephemeral key are not a number of this curve; take others")]
pub struct Unlucky;

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// `secret` for the TPM of `endorsement` if it holds the key of this name. `ephemeral` must be
/// fresh random bytes.
///
/// # Errors
/// [`Unlucky`], once in 2^32 cases.
pub fn make_credential(
    endorsement: &TpmKey,
    name: &[u8],
    secret: &[u8; 32],
    ephemeral: &[u8; 32],
) -> Result<Credential, Unlucky> {
    let ephemeral = Option::<NonZeroScalar>::from(NonZeroScalar::from_repr((*ephemeral).into()))
        .ok_or(Unlucky)?;
    let z = diffie_hellman(ephemeral, endorsement.point().as_affine());
    let (ours, theirs) = (xy(&PublicKey::from_secret_scalar(&ephemeral)), xy(endorsement.point()));
    let seed = kdfe(z.raw_secret_bytes(), b"IDENTITY\0", &ours.0, &theirs.0);

    let mut body = sized(secret);
    let key = kdfa(&seed, b"STORAGE\0", name, 128);
    let mut cipher =
        BufEncryptor::<Aes128>::new_from_slices(&key[..16], &[0; 16]).map_err(|_| Unlucky)?;
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
    // A key of any length is one.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Part 1, 11.4.10.2 "KDFa()", for at most one block.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> [u8; 32] {
    mac(key, &[&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
}

/// Part 1, 11.4.10.3 "KDFe for ECDH", for one block.
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
