//! Keys and proofs that every suite must reject.
// The helpers of tests may unwrap, as the tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_vrf::{PublicKey, SecretKey, Suite, VrfError};
use measure::unhex;

const ALPHA: &[u8] = b"alpha";
/// Order L = 2^252 + 27742317777372353535851937790883648493 of Edwards25519, little
/// endian.
const L: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
/// Order n of P-256, big endian.
const N256: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
/// Order n of secp256k1, big endian.
const N256K1: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";

fn bytes(hex: &str) -> Vec<u8> {
    unhex(hex).unwrap()
}

fn order(suite: Suite) -> Vec<u8> {
    match suite {
        Suite::P256Tai | Suite::P256Sswu => bytes(N256),
        Suite::Secp256k1Draft05 => bytes(N256K1),
        Suite::Ed25519Tai | Suite::Ed25519Ell2 => bytes(L),
    }
}

/// Returns a public key with a proof and its output.
fn make_proof(suite: Suite) -> (PublicKey, Vec<u8>, Vec<u8>) {
    let key = SecretKey::new(suite, &[7; 32]).unwrap();
    let proof = key.prove(ALPHA).unwrap();
    (PublicKey::new(suite, key.public_key()).unwrap(), proof.pi, proof.beta)
}

#[test]
fn proofs_with_a_flipped_bit_or_another_length_are_rejected() {
    for suite in Suite::ALL {
        let (key, pi, beta) = make_proof(suite);
        assert_eq!(key.verify(ALPHA, &pi), Ok(Some(beta)));
        for at in 0..pi.len() * 8 {
            let mut bad = pi.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(!matches!(key.verify(ALPHA, &bad), Ok(Some(_))), "{suite:?} bit {at}");
        }
        for length in 0..pi.len() {
            assert_eq!(key.verify(ALPHA, &pi[..length]), Err(VrfError::MalformedProof));
        }
        assert_eq!(key.verify(ALPHA, &[&pi[..], &[0]].concat()), Err(VrfError::MalformedProof));
        assert_eq!(key.verify(b"another", &pi), Ok(None));
        let other = SecretKey::new(suite, &[8; 32]).unwrap();
        assert_eq!(PublicKey::new(suite, other.public_key()).unwrap().verify(ALPHA, &pi), Ok(None));
    }
}

/// A proof of one suite is invalid in the other suite of the same curve.
#[test]
fn a_proof_is_valid_in_its_own_suite_only() {
    for (one, other) in [(Suite::P256Tai, Suite::P256Sswu), (Suite::Ed25519Tai, Suite::Ed25519Ell2)]
    {
        let (key, pi, _) = make_proof(one);
        assert_eq!(PublicKey::new(other, key.as_bytes()).unwrap().verify(ALPHA, &pi), Ok(None));
    }
}

/// s and s + order are the same scalar, but only the smaller one is a canonical encoding.
#[test]
fn a_proof_whose_s_is_not_below_the_order_is_rejected() {
    for suite in Suite::ALL {
        let (key, mut pi, _) = make_proof(suite);
        let at = pi.len() - 32;
        let little_endian = matches!(suite, Suite::Ed25519Tai | Suite::Ed25519Ell2);
        let mut order = order(suite);
        let mut s = pi[at..].to_vec();
        if !little_endian {
            order.reverse();
            s.reverse();
        }
        let mut carry = 0u16;
        for (s, n) in s.iter_mut().zip(&order) {
            carry += u16::from(*s) + u16::from(*n);
            *s = carry as u8;
            carry >>= 8;
        }
        if carry != 0 {
            // The sum does not fit into 32 bytes. The order itself, which encodes zero, does.
            s = order;
        }
        if !little_endian {
            s.reverse();
        }
        pi[at..].copy_from_slice(&s);
        assert_eq!(key.verify(ALPHA, &pi), Err(VrfError::MalformedProof), "{suite:?}");
        pi[at..].fill(0xff);
        assert_eq!(key.verify(ALPHA, &pi), Err(VrfError::MalformedProof), "{suite:?}");
    }
}

/// Covers a Gamma that is off the curve, not canonical, or the identity.
#[test]
fn a_proof_whose_gamma_is_not_a_point_is_rejected() {
    for suite in [Suite::P256Tai, Suite::P256Sswu, Suite::Secp256k1Draft05] {
        let (key, pi, _) = make_proof(suite);
        for (tag, x) in [(2, [0xff; 32]), (4, [0x11; 32]), (0, [0; 32])] {
            let mut bad = pi.clone();
            bad[0] = tag;
            bad[1..33].copy_from_slice(&x);
            assert_eq!(key.verify(ALPHA, &bad), Err(VrfError::MalformedProof), "{suite:?} {tag}");
        }
    }
    for suite in [Suite::Ed25519Tai, Suite::Ed25519Ell2] {
        let (key, pi, _) = make_proof(suite);
        for gamma in NOT_CANONICAL {
            let mut bad = pi.clone();
            bad[..32].copy_from_slice(&bytes(gamma));
            assert_eq!(key.verify(ALPHA, &bad), Err(VrfError::MalformedProof), "{suite:?} {gamma}");
        }
    }
}

/// Encodings of Edwards25519 that are not canonical: y is p or more, or x is zero and has a sign.
const NOT_CANONICAL: [&str; 7] = [
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

#[test]
fn invalid_public_keys_are_rejected() {
    let small_order = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    ];
    for suite in [Suite::Ed25519Tai, Suite::Ed25519Ell2] {
        for key in small_order.into_iter().chain(NOT_CANONICAL).chain(["", "d75a98"]) {
            assert_eq!(
                PublicKey::new(suite, &bytes(key)).unwrap_err(),
                VrfError::PublicKey,
                "{key}"
            );
        }
        let good = SecretKey::new(suite, &[7; 32]).unwrap().public_key().to_vec();
        assert!(PublicKey::new(suite, &[&good[..], &[0]].concat()).is_err());
    }
    for suite in [Suite::P256Tai, Suite::P256Sswu, Suite::Secp256k1Draft05] {
        let good = SecretKey::new(suite, &[7; 32]).unwrap().public_key().to_vec();
        let mut uncompressed = good.clone();
        uncompressed[0] = 4;
        let off = bytes(&format!("02{}", "ff".repeat(32)));
        for key in [
            vec![],
            vec![0],
            vec![0; 33],
            uncompressed,
            off,
            [&good[..], &[0]].concat(),
            good[..32].to_vec(),
        ] {
            assert_eq!(PublicKey::new(suite, &key).unwrap_err(), VrfError::PublicKey, "{key:?}");
        }
    }
}

#[test]
fn invalid_secret_keys_are_rejected() {
    for suite in Suite::ALL {
        for secret in [vec![], vec![7; 31], vec![7; 33]] {
            assert_eq!(
                SecretKey::new(suite, &secret).unwrap_err(),
                VrfError::SecretKey,
                "{suite:?}"
            );
        }
    }
    for suite in [Suite::P256Tai, Suite::P256Sswu, Suite::Secp256k1Draft05] {
        let n = order(suite);
        let mut less = n.clone();
        less[31] -= 1;
        for secret in [vec![0; 32], n, vec![0xff; 32]] {
            assert_eq!(
                SecretKey::new(suite, &secret).unwrap_err(),
                VrfError::SecretKey,
                "{suite:?}"
            );
        }
        // The order minus one is the largest valid key.
        SecretKey::new(suite, &less).unwrap().prove(ALPHA).unwrap();
    }
    // The debug form hides the secret.
    assert_eq!(
        format!("{:?}", SecretKey::new(Suite::P256Tai, &[7; 32]).unwrap()),
        "SecretKey { suite: P256Tai, .. }"
    );
}
