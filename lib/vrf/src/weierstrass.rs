//! Suites on P-256 and secp256k1: big-endian numbers, SHA-256, cofactor 1.

use std::ops::{Add, Mul, Neg};

use crrl::{p256, secp256k1};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::sswu;
use crate::suite::{Proof, Suite, Trace, VrfError};

const PROOF_BYTES: usize = 81;
const POINT_BYTES: usize = 33;

/// A curve of prime order. Multiplications take constant time, except those named vartime.
pub(crate) trait Curve {
    type Point: Copy
        + std::fmt::Debug
        + Add<Output = Self::Point>
        + Neg<Output = Self::Point>
        + Mul<Self::Scalar, Output = Self::Point>;
    type Scalar: Copy + Add<Output = Self::Scalar> + Mul<Output = Self::Scalar>;
    const NEUTRAL: Self::Point;

    fn decode(bytes: &[u8; POINT_BYTES]) -> Option<Self::Point>;
    fn encode(point: Self::Point) -> [u8; POINT_BYTES];
    fn is_neutral(point: Self::Point) -> bool;
    fn double(point: Self::Point) -> Self::Point;
    fn mulgen(scalar: Self::Scalar) -> Self::Point;
    /// Computes a P + b G.
    fn mul_add_mulgen_vartime(point: Self::Point, a: Self::Scalar, b: Self::Scalar) -> Self::Point;
    /// Decodes a scalar; returns `None` if the number is not below the order.
    fn scalar(little_endian: &[u8; 32]) -> Option<Self::Scalar>;
    fn reduced(little_endian: &[u8; 32]) -> Self::Scalar;
    fn scalar_bytes(scalar: Self::Scalar) -> [u8; 32];
}

macro_rules! curve {
    ($name:ident, $module:ident) => {
        #[derive(Debug)]
        pub(crate) struct $name;

        impl Curve for $name {
            type Point = $module::Point;
            type Scalar = $module::Scalar;
            const NEUTRAL: Self::Point = $module::Point::NEUTRAL;

            fn decode(bytes: &[u8; POINT_BYTES]) -> Option<Self::Point> {
                $module::Point::decode(bytes)
            }

            fn encode(point: Self::Point) -> [u8; POINT_BYTES] {
                point.encode_compressed()
            }

            fn is_neutral(point: Self::Point) -> bool {
                point.isneutral() != 0
            }

            fn double(point: Self::Point) -> Self::Point {
                point.double()
            }

            fn mulgen(scalar: Self::Scalar) -> Self::Point {
                $module::Point::mulgen(&scalar)
            }

            fn mul_add_mulgen_vartime(
                point: Self::Point,
                a: Self::Scalar,
                b: Self::Scalar,
            ) -> Self::Point {
                point.mul_add_mulgen_vartime(&a, &b)
            }

            fn scalar(little_endian: &[u8; 32]) -> Option<Self::Scalar> {
                $module::Scalar::decode(little_endian)
            }

            fn reduced(little_endian: &[u8; 32]) -> Self::Scalar {
                $module::Scalar::decode_reduce(little_endian)
            }

            fn scalar_bytes(scalar: Self::Scalar) -> [u8; 32] {
                scalar.encode()
            }
        }
    };
}

curve!(P256, p256);
curve!(Secp256k1, secp256k1);

fn reversed(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes.reverse();
    bytes
}

/// Decodes a point from its compressed form (SEC 1, section 2.3.3). The point at infinity has no
/// such form.
pub(crate) fn decode<C: Curve>(bytes: &[u8]) -> Option<C::Point> {
    C::decode(bytes.try_into().ok()?)
}

/// Decodes a secret key, a number from 1 to the order minus one.
fn secret_scalar<C: Curve>(secret: &[u8; 32]) -> Result<C::Scalar, VrfError> {
    let little_endian = Zeroizing::new(reversed(*secret));
    if little_endian.iter().fold(0, |all, byte| all | byte) == 0 {
        return Err(VrfError::SecretKey);
    }
    C::scalar(&little_endian).ok_or(VrfError::SecretKey)
}

pub(crate) fn public_key<C: Curve>(secret: &[u8; 32]) -> Result<Vec<u8>, VrfError> {
    Ok(C::encode(C::mulgen(secret_scalar::<C>(secret)?)).to_vec())
}

/// Returns the end of a hash input: a zero byte in RFC 9381, nothing in the draft.
fn suffix(suite: Suite) -> &'static [u8] {
    if suite.is_draft() { &[] } else { &[0] }
}

/// Computes H and its encoding (RFC 9381, sections 5.4.1.1 and 5.4.1.2).
fn encode_to_curve<C: Curve>(
    suite: Suite,
    salt: &[u8],
    alpha: &[u8],
) -> Result<(C::Point, [u8; POINT_BYTES]), VrfError> {
    let from = |string: [u8; POINT_BYTES]| C::decode(&string).map(|point| (point, string));
    if suite == Suite::P256Sswu {
        return from(sswu::encode_to_curve(salt, alpha)).ok_or(VrfError::Encoding);
    }
    let prefix = Sha256::new()
        .chain_update([suite.suite_string(), 1])
        .chain_update(salt)
        .chain_update(alpha);
    (0..=u8::MAX)
        .find_map(|counter| {
            let mut string = [2; POINT_BYTES];
            string[1..].copy_from_slice(
                &prefix.clone().chain_update([counter]).chain_update(suffix(suite)).finalize(),
            );
            from(string)
        })
        .ok_or(VrfError::Encoding)
}

/// Computes the nonce k (RFC 6979, section 3.2, with SHA-256; the message is H).
fn nonce<C: Curve>(secret: &[u8; 32], h: &[u8; POINT_BYTES]) -> Result<C::Scalar, VrfError> {
    let hash = C::reduced(&reversed(Sha256::digest(h).into()));
    let hash = reversed(C::scalar_bytes(hash));
    let (mut key, mut v) = (Zeroizing::new([0; 32]), Zeroizing::new([1; 32]));
    let mac = |key: &[u8; 32], parts: &[&[u8]]| -> Result<Zeroizing<[u8; 32]>, VrfError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| VrfError::SecretKey)?;
        parts.iter().for_each(|part| mac.update(part));
        Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
    };
    for round in [0, 1] {
        key = mac(&key, &[&*v, &[round], secret, &hash])?;
        v = mac(&key, &[&*v])?;
    }
    loop {
        v = mac(&key, &[&*v])?;
        // A further round is needed in at most one of 2^32 cases.
        if let Ok(k) = secret_scalar::<C>(&v) {
            return Ok(k);
        }
        key = mac(&key, &[&*v, &[0]])?;
        v = mac(&key, &[&*v])?;
    }
}

#[cfg(test)]
pub(crate) fn nonce_bytes(secret: &[u8; 32], h: &[u8]) -> [u8; 32] {
    reversed(P256::scalar_bytes(
        nonce::<P256>(secret, h.try_into().expect("a point")).expect("a nonce"),
    ))
}

/// Computes c in the encoding of a proof (RFC 9381, section 5.4.3). The draft omits the public key.
fn challenge(suite: Suite, key: &[u8], points: [&[u8; POINT_BYTES]; 4]) -> [u8; 16] {
    let mut hasher = Sha256::new().chain_update([suite.suite_string(), 2]);
    if !suite.is_draft() {
        hasher.update(key);
    }
    points.iter().for_each(|point| hasher.update(point));
    hasher.update(suffix(suite));
    let mut c = [0; 16];
    c.copy_from_slice(&hasher.finalize()[..16]);
    c
}

fn challenge_scalar<C: Curve>(c: &[u8; 16]) -> C::Scalar {
    let mut little_endian = [0; 32];
    for (to, from) in little_endian.iter_mut().zip(c.iter().rev()) {
        *to = *from;
    }
    // 128 bits are below the order, so nothing is reduced.
    C::reduced(&little_endian)
}

fn output(suite: Suite, gamma: &[u8; POINT_BYTES]) -> Vec<u8> {
    Sha256::new()
        .chain_update([suite.suite_string(), 3])
        .chain_update(gamma)
        .chain_update(suffix(suite))
        .finalize()
        .to_vec()
}

pub(crate) fn prove<C: Curve>(
    suite: Suite,
    secret: &[u8; 32],
    public: &[u8],
    alpha: &[u8],
) -> Result<Trace, VrfError> {
    let x = secret_scalar::<C>(secret)?;
    let (h, h_string) = encode_to_curve::<C>(suite, public, alpha)?;
    let gamma = C::encode(h * x);
    let k = nonce::<C>(secret, &h_string)?;
    let (u, v) = (C::encode(C::mulgen(k)), C::encode(h * k));
    let c = challenge(suite, public, [&h_string, &gamma, &u, &v]);
    let mut s = C::scalar_bytes(k + challenge_scalar::<C>(&c) * x);
    s.reverse();
    let pi = [&gamma[..], &c, &s].concat();
    s.zeroize();
    Ok(Trace {
        proof: Proof { pi, beta: output(suite, &gamma) },
        #[cfg(test)]
        points: crate::suite::Points { h: h_string.to_vec(), u: u.to_vec(), v: v.to_vec() },
    })
}

pub(crate) fn verify<C: Curve>(
    suite: Suite,
    key: &[u8],
    y: C::Point,
    alpha: &[u8],
    pi: &[u8],
) -> Result<Option<Vec<u8>>, VrfError> {
    let pi: &[u8; PROOF_BYTES] = pi.try_into().map_err(|_| VrfError::MalformedProof)?;
    let (gamma_string, rest) =
        pi.split_first_chunk::<POINT_BYTES>().ok_or(VrfError::MalformedProof)?;
    let (c, s) = rest.split_first_chunk::<16>().ok_or(VrfError::MalformedProof)?;
    let gamma = C::decode(gamma_string).ok_or(VrfError::MalformedProof)?;
    let s: [u8; 32] = s.try_into().map_err(|_| VrfError::MalformedProof)?;
    let s = C::scalar(&reversed(s)).ok_or(VrfError::MalformedProof)?;
    let (h, h_string) = encode_to_curve::<C>(suite, key, alpha)?;
    let c_scalar = challenge_scalar::<C>(c);
    let u = C::mul_add_mulgen_vartime(-y, c_scalar, s);
    let v = mul_add_mul_vartime::<C>(h, s, -gamma, c_scalar);
    // The point at infinity has no encoding to hash, and no valid proof leads to it.
    if C::is_neutral(u) || C::is_neutral(v) {
        return Ok(None);
    }
    let actual = challenge(suite, key, [&h_string, gamma_string, &C::encode(u), &C::encode(v)]);
    Ok((actual == *c).then(|| output(suite, gamma_string)))
}

/// Computes a P + b Q with digits in non-adjacent form (Strauss's trick). It takes variable time
/// and is only for public data.
fn mul_add_mul_vartime<C: Curve>(p: C::Point, a: C::Scalar, q: C::Point, b: C::Scalar) -> C::Point {
    let odd = |point: C::Point| {
        let double = C::double(point);
        let mut table = [point; 8];
        for n in 1..8 {
            table[n] = table[n - 1] + double;
        }
        table
    };
    let terms = [(odd(p), digits(&C::scalar_bytes(a))), (odd(q), digits(&C::scalar_bytes(b)))];
    let mut sum = C::NEUTRAL;
    let highest = terms.iter().filter_map(|(_, digits)| digits.iter().rposition(|d| *d != 0)).max();
    for place in (0..highest.map_or(0, |n| n + 1)).rev() {
        sum = C::double(sum);
        for (table, digits) in &terms {
            let digit = digits[place];
            if digit != 0 {
                let point = table[usize::from(digit.unsigned_abs() / 2)];
                sum = sum + if digit > 0 { point } else { -point };
            }
        }
    }
    sum
}

/// Converts a number into width-5 non-adjacent form, lowest digit first. Each digit is zero or an
/// odd number from -15 to 15, and at most one of five consecutive digits is not zero.
fn digits(little_endian: &[u8; 32]) -> [i8; 257] {
    let mut digits = [0i8; 257];
    let bit = |n: usize| little_endian.get(n / 8).map_or(0, |byte| i16::from(byte >> (n % 8) & 1));
    let (mut place, mut carry) = (0, 0);
    while place < 257 {
        if (bit(place) + carry) & 1 == 0 {
            // The digit is zero, either without a carry or with one that moves on.
            place += 1;
            continue;
        }
        let window = (0..5).map(|n| bit(place + n) << n).sum::<i16>() + carry;
        let digit = if window > 16 { window - 32 } else { window };
        carry = i16::from(window > 16);
        // The digit is between -15 and 15.
        digits[place] = digit as i8;
        place += 5;
    }
    digits
}
