//! Suites on Edwards25519 (RFC 9381, section 5.5): little-endian numbers, SHA-512, cofactor 8.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use curve25519_dalek::traits::{IsIdentity as _, VartimeMultiscalarMul as _};
use sha2::{Digest as _, Sha512};
use zeroize::{Zeroize as _, Zeroizing};

use crate::suite::{Proof, Suite, Trace, VrfError};

const PROOF_BYTES: usize = 80;
/// Domain separation tag of Elligator 2 (RFC 9380, section 3.1; RFC 9381, section 5.4.1.2).
const ELL2_DST: &[u8] = b"ECVRF_edwards25519_XMD:SHA-512_ELL2_NU_\x04";

/// Decodes a point from its canonical encoding. Points whose y is below 19 or whose x is zero also
/// have other encodings, which are rejected (RFC 8032, section 5.1.3).
pub(crate) fn decode(bytes: &[u8]) -> Option<EdwardsPoint> {
    let bytes: [u8; 32] = bytes.try_into().ok()?;
    let below_p =
        bytes[31] & 0x7f != 0x7f || bytes[1..31].iter().any(|b| *b != 0xff) || bytes[0] < 0xed;
    // Where y is 1 or -1, x is zero and its sign bit must not be set.
    let minus_one =
        bytes[0] == 0xec && bytes[1..31].iter().all(|b| *b == 0xff) && bytes[31] == 0xff;
    let one = bytes[0] == 1 && bytes[1..31].iter().all(|b| *b == 0) && bytes[31] == 0x80;
    if !below_p || minus_one || one {
        return None;
    }
    CompressedEdwardsY(bytes).decompress()
}

/// Expands a seed into the secret scalar and the prefix of nonces (RFC 8032, section 5.1.5). The
/// scalar is clamped and not reduced: it is below 2^255.
fn expand(secret: &[u8; 32]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let mut hash: [u8; 64] = Sha512::digest(secret).into();
    let (mut x, mut prefix) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
    x.copy_from_slice(&hash[..32]);
    prefix.copy_from_slice(&hash[32..]);
    hash.zeroize();
    *x = clamp_integer(*x);
    (x, prefix)
}

pub(crate) fn public_key(secret: &[u8; 32]) -> Vec<u8> {
    EdwardsPoint::mul_base_clamped(*expand(secret).0).compress().to_bytes().to_vec()
}

/// Computes the nonce k (RFC 9381, section 5.4.2.2).
pub(crate) fn nonce(secret: &[u8; 32], h: &[u8]) -> Scalar {
    let prefix = expand(secret).1;
    let mut hash: [u8; 64] = Sha512::new().chain_update(*prefix).chain_update(h).finalize().into();
    let k = Scalar::from_bytes_mod_order_wide(&hash);
    hash.zeroize();
    k
}

/// Computes H (RFC 9381, sections 5.4.1.1 and 5.4.1.2).
fn encode_to_curve(suite: Suite, salt: &[u8], alpha: &[u8]) -> Result<EdwardsPoint, VrfError> {
    if suite == Suite::Ed25519Ell2 {
        return Ok(EdwardsPoint::encode_to_curve::<Sha512>(&[salt, alpha], &[ELL2_DST]));
    }
    let prefix = Sha512::new()
        .chain_update([suite.suite_string(), 1])
        .chain_update(salt)
        .chain_update(alpha);
    (0..=u8::MAX)
        .find_map(|counter| {
            let hash = prefix.clone().chain_update([counter, 0]).finalize();
            let point =
                CompressedEdwardsY::from_slice(&hash[..32]).ok()?.decompress()?.mul_by_cofactor();
            (!point.is_identity()).then_some(point)
        })
        .ok_or(VrfError::Encoding)
}

/// Computes c in the encoding of a proof (RFC 9381, section 5.4.3).
fn challenge(suite: Suite, points: [&[u8]; 5]) -> [u8; 16] {
    let prefix = Sha512::new().chain_update([suite.suite_string(), 2]);
    let hash = points
        .into_iter()
        .fold(prefix, |hasher, point| hasher.chain_update(point))
        .chain_update([0])
        .finalize();
    let mut c = [0; 16];
    c.copy_from_slice(&hash[..16]);
    c
}

fn scalar(c: &[u8; 16]) -> Scalar {
    Scalar::from(u128::from_le_bytes(*c))
}

fn output(suite: Suite, gamma: &EdwardsPoint) -> Vec<u8> {
    let point = gamma.mul_by_cofactor().compress();
    Sha512::new()
        .chain_update([suite.suite_string(), 3])
        .chain_update(point.as_bytes())
        .chain_update([0])
        .finalize()
        .to_vec()
}

pub(crate) fn prove(
    suite: Suite,
    secret: &[u8; 32],
    public: &[u8],
    alpha: &[u8],
) -> Result<Trace, VrfError> {
    let x = expand(secret).0;
    let h = encode_to_curve(suite, public, alpha)?;
    let h_string = h.compress();
    let mut k = nonce(secret, h_string.as_bytes());
    // H has no component of small order, so the scalar may be reduced.
    let mut x = Scalar::from_bytes_mod_order(*x);
    let gamma = x * h;
    let [gamma_string, u, v] =
        EdwardsPoint::compress_batch(&[gamma, EdwardsPoint::mul_base(&k), k * h]);
    let c = challenge(
        suite,
        [public, h_string.as_bytes(), gamma_string.as_bytes(), u.as_bytes(), v.as_bytes()],
    );
    let s = k + scalar(&c) * x;
    k.zeroize();
    x.zeroize();
    let pi = [&gamma_string.as_bytes()[..], &c, s.as_bytes()].concat();
    Ok(Trace {
        proof: Proof { pi, beta: output(suite, &gamma) },
        #[cfg(test)]
        points: crate::suite::Points {
            h: h_string.as_bytes().to_vec(),
            u: u.as_bytes().to_vec(),
            v: v.as_bytes().to_vec(),
        },
    })
}

pub(crate) fn verify(
    suite: Suite,
    key: &[u8],
    y: &EdwardsPoint,
    alpha: &[u8],
    pi: &[u8],
) -> Result<Option<Vec<u8>>, VrfError> {
    let pi: &[u8; PROOF_BYTES] = pi.try_into().map_err(|_| VrfError::MalformedProof)?;
    let (gamma_string, rest) = pi.split_at(32);
    let gamma = decode(gamma_string).ok_or(VrfError::MalformedProof)?;
    let (c, s) = rest.split_first_chunk::<16>().ok_or(VrfError::MalformedProof)?;
    let s: [u8; 32] = s.try_into().map_err(|_| VrfError::MalformedProof)?;
    let s =
        Option::<Scalar>::from(Scalar::from_canonical_bytes(s)).ok_or(VrfError::MalformedProof)?;
    let h = encode_to_curve(suite, key, alpha)?;
    // Negating the points instead of c keeps the scalar at 128 bits.
    let c_scalar = scalar(c);
    let u = EdwardsPoint::vartime_double_scalar_mul_basepoint(&c_scalar, &-y, &s);
    let v = EdwardsPoint::vartime_multiscalar_mul([s, c_scalar], [h, -gamma]);
    let [h, u, v] = EdwardsPoint::compress_batch(&[h, u, v]);
    let actual = challenge(suite, [key, h.as_bytes(), gamma_string, u.as_bytes(), v.as_bytes()]);
    Ok((actual == *c).then(|| output(suite, &gamma)))
}
