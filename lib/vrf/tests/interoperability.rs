//! Comparison with other implementations on 10,000 inputs for each suite, and the test vectors of
//! the verifiers on EVM chains.
// The helpers of tests may unwrap, as the tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_vrf::{Proof, PublicKey, SecretKey, Suite};
use measure::unhex;
use sha2::{Digest as _, Sha256};
use vrf_draft05::VRF as _;
use vrf_draft05::openssl::{CipherSuite, ECVRF};
use vrf_rfc9381::ec::{edwards25519, p256};
use vrf_rfc9381::{Prover, VRF, Verifier};

const INPUTS: u32 = 10_000;

/// Returns the same pseudo-random inputs in every run: a secret and an alpha of 0 to 99 bytes.
fn inputs(suite: Suite) -> impl Iterator<Item = ([u8; 32], Vec<u8>)> {
    (0..INPUTS).map(move |n| {
        let hash = |label: &str| Sha256::digest(format!("{} {n} {label}", suite.name()));
        let alpha: Vec<u8> = ["0", "1", "2", "3"].iter().flat_map(|label| hash(label)).collect();
        (hash("secret").into(), alpha[..n as usize % 100].to_vec())
    })
}

/// Checks that this crate and the other implementation compute the same proofs, that each accepts
/// the other's proofs, and that this crate rejects them with a flipped bit.
fn compare(
    suite: Suite,
    mut prove: impl FnMut(&[u8; 32], &[u8]) -> Vec<u8>,
    mut verify: impl FnMut(&[u8], &[u8], &[u8]) -> Option<Vec<u8>>,
) {
    for (n, (secret, alpha)) in inputs(suite).enumerate() {
        // About one of 2^32 secrets is not a valid key of the Weierstrass curves.
        let Ok(key) = SecretKey::new(suite, &secret) else { continue };
        let Proof { mut pi, beta } = key.prove(&alpha).unwrap();
        assert_eq!(pi, prove(&secret, &alpha), "{suite:?} {n}");
        let public = PublicKey::new(suite, key.public_key()).unwrap();
        assert_eq!(public.verify(&alpha, &pi).unwrap().as_ref(), Some(&beta), "{suite:?} {n}");
        assert_eq!(verify(key.public_key(), &alpha, &pi).as_ref(), Some(&beta), "{suite:?} {n}");
        let at = n % (pi.len() * 8);
        pi[at / 8] ^= 1 << (at % 8);
        assert_eq!(public.verify(&alpha, &pi).ok().flatten(), None, "{suite:?} {n}");
    }
}

fn rfc<V: VRF + Copy>(suite: Suite, vrf: V)
where
    V::Prover: Prover<V::Hash>,
    V::Verifier: Verifier<V::Hash>,
{
    let prove = |secret: &[u8; 32], alpha: &[u8]| {
        vrf.prove(&V::Prover::from_slice(secret).unwrap(), alpha).unwrap()
    };
    let verify = |public: &[u8], alpha: &[u8], pi: &[u8]| {
        vrf.verify(&V::Verifier::from_slice(public).unwrap(), alpha, pi)
            .ok()
            .map(|beta| beta.to_vec())
    };
    compare(suite, prove, verify);
}

#[test]
fn p256_tai_matches_another_implementation() {
    rfc(Suite::P256Tai, p256::tai::EcVrfP256Tai);
}

#[test]
fn p256_sswu_matches_another_implementation() {
    rfc(Suite::P256Sswu, p256::sswu::EcVrfP256Sswu);
}

#[test]
fn ed25519_tai_matches_another_implementation() {
    rfc(Suite::Ed25519Tai, edwards25519::tai::EdVrfEdwards25519Tai);
}

#[test]
fn ed25519_ell2_matches_another_implementation() {
    rfc(Suite::Ed25519Ell2, edwards25519::elligator2::EdVrfEdwards25519Ell2);
}

#[test]
fn secp256k1_of_the_draft_matches_another_implementation() {
    let suite = || ECVRF::from_suite(CipherSuite::SECP256K1_SHA256_TAI).unwrap();
    let (mut one, mut other) = (suite(), suite());
    compare(
        Suite::Secp256k1Draft05,
        |secret, alpha| one.prove(secret, alpha).unwrap(),
        |public, alpha, pi| other.verify(public, pi, alpha).ok(),
    );
}

#[test]
fn test_vectors_of_verifiers_on_evm_chains_match() {
    let lines: Vec<&str> =
        include_str!("vrf-solidity.txt").lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 16);
    for line in lines {
        let [public, pi, beta] =
            line.split(' ').map(|hex| unhex(hex).unwrap()).collect::<Vec<_>>().try_into().unwrap();
        let key = PublicKey::new(Suite::Secp256k1Draft05, &public).unwrap();
        assert_eq!(key.verify(b"sample", &pi), Ok(Some(beta)), "{line}");
        assert_eq!(key.verify(b"notsample", &pi), Ok(None), "{line}");
        let mut wrong = pi;
        wrong[0] ^= 1;
        assert_eq!(key.verify(b"sample", &wrong), Ok(None), "{line}");
    }
}
