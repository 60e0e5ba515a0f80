//! Encoding to P-256 with the simplified SWU map: P256_XMD:SHA-256_SSWU_NU_ (RFC 9380, sections
//! 5.3.1, 6.6.2 and 8.2). All inputs are public.

use crrl::field::GFp256;
use sha2::{Digest as _, Sha256};

/// Domain separation tag: "ECVRF_", the suite of RFC 9380, and suite_string (RFC 9381, section
/// 5.4.1.2).
const DST: &[u8] = b"ECVRF_P256_XMD:SHA-256_SSWU_NU_\x02";
/// Coefficient b of the curve (SEC 2, section 2.4.2).
const B: GFp256 = GFp256::w64be(
    0x5ac6_35d8_aa3a_93e7,
    0xb3eb_bd55_7698_86bc,
    0x651d_06b0_cc53_b0f6,
    0x3bce_3c3e_27d2_604b,
);
/// Coefficient a of the curve (SEC 2, section 2.4.2).
const A: i32 = -3;
/// Constant of the map, not a square (RFC 9380, section 8.2).
const Z: i32 = -10;
/// Number of bytes that are reduced to a field element with negligible bias (RFC 9380, section
/// 5.1).
const FIELD_INPUT_BYTES: usize = 48;

/// Encodes salt and alpha to a point, in compressed form.
pub(crate) fn encode_to_curve(salt: &[u8], alpha: &[u8]) -> [u8; 33] {
    let mut uniform = expand_message(salt, alpha);
    uniform.reverse();
    map_compressed(GFp256::decode_reduce(&uniform))
}

/// Maps a field element to a point, in compressed form.
pub(crate) fn map_compressed(u: GFp256) -> [u8; 33] {
    let (x, y) = map(u);
    let mut string = [2 | y.encode()[0] & 1; 33];
    string[1..].copy_from_slice(&x.encode());
    string[1..].reverse();
    string
}

/// Implements expand_message_xmd (RFC 9380, section 5.3.1) for two blocks of the hash.
fn expand_message(salt: &[u8], alpha: &[u8]) -> [u8; FIELD_INPUT_BYTES] {
    let end = |hasher: Sha256| hasher.chain_update(DST).chain_update([DST.len() as u8]).finalize();
    let first = Sha256::new().chain_update([0; 64]).chain_update(salt).chain_update(alpha);
    let b0 = end(first.chain_update((FIELD_INPUT_BYTES as u16).to_be_bytes()).chain_update([0]));
    let b1 = end(Sha256::new().chain_update(b0).chain_update([1]));
    let mixed: Vec<u8> = b0.iter().zip(&b1).map(|(a, b)| a ^ b).collect();
    let b2 = end(Sha256::new().chain_update(mixed).chain_update([2]));
    let mut uniform = [0; FIELD_INPUT_BYTES];
    uniform[..32].copy_from_slice(&b1);
    uniform[32..].copy_from_slice(&b2[..FIELD_INPUT_BYTES - 32]);
    uniform
}

/// Implements map_to_curve_simple_swu (RFC 9380, section 6.6.2). The y of the point has the sign of
/// u.
fn map(u: GFp256) -> (GFp256, GFp256) {
    let (a, z) = (GFp256::from_i32(A), GFp256::from_i32(Z));
    let curve = |x: GFp256| (x.square() + a) * x + B;
    let zu2 = z * u.square();
    let below = zu2.square() + zu2;
    // Division by zero yields zero in this field, so that case needs the exceptional formula.
    let x1 = if below.iszero() != 0 {
        B / (z * a)
    } else {
        (-B / a) * (GFp256::ONE + GFp256::ONE / below)
    };
    let (root, square) = curve(x1).sqrt();
    let (x, y) = if square != 0 {
        (x1, root)
    } else {
        // Exactly one of the two values is a square, because Z is not.
        let x2 = zu2 * x1;
        (x2, curve(x2).sqrt().0)
    };
    let sign = |value: GFp256| value.encode()[0] & 1;
    (x, if sign(u) == sign(y) { y } else { -y })
}
