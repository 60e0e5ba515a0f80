//! The examples of RFC 9381, appendix B, with everything that they show: `tests/rfc9381.txt`.

use measure::{hex, unhex};

use super::*;

#[test]
fn every_example_of_the_rfc_to_the_intermediate_values() {
    let mut seen = 0;
    for line in include_str!("../tests/rfc9381.txt").lines().filter(|line| !line.starts_with('#')) {
        let [suite, secret, public, alpha, h, k, u, v, pi, beta] =
            line.split(' ').collect::<Vec<_>>()[..]
        else {
            panic!("{line}")
        };
        let suite: Suite = serde_json::from_value(suite.into()).unwrap();
        let (secret, alpha) =
            (unhex(secret).unwrap(), unhex(alpha.trim_start_matches('-')).unwrap());
        let key = SecretKey::new(suite, &secret).unwrap();
        assert_eq!(hex(key.public_key()), public, "{suite:?}");
        let steps = key.steps(&alpha).unwrap();
        let secret: [u8; 32] = secret.try_into().unwrap();
        let nonce = match suite {
            Suite::P256Tai | Suite::P256Sswu => weierstrass::nonce_bytes(&secret, &steps.seen.h),
            _ => edwards::nonce(&secret, &steps.seen.h).to_bytes(),
        };
        let found = [
            &steps.seen.h[..],
            &nonce,
            &steps.seen.u,
            &steps.seen.v,
            &steps.proof.pi,
            &steps.proof.beta,
        ]
        .map(hex);
        assert_eq!(found, [h, k, u, v, pi, beta], "{suite:?}");
        let public = PublicKey::new(suite, key.public_key()).unwrap();
        assert_eq!(public.verify(&alpha, &steps.proof.pi), Ok(Some(steps.proof.beta)));
        seen += 1;
    }
    assert_eq!(seen, 12);
}

/// u and P of RFC 9380, appendix J.1.2, for the empty message: its tag is another one, the map is
/// the same.
#[test]
fn the_map_of_sswu() {
    let mut u = unhex("b22d487045f80e9edcb0ecc8d4bf77833e2bf1f3a54004d7df1d57f4802d311f").unwrap();
    u.reverse();
    let point = sswu::compressed(crrl::field::GFp256::decode_reduce(&u));
    assert_eq!(hex(&point), "03f871caad25ea3b59c16cf87c1894902f7e7b2c822c3d3f73596c5ace8ddd14d1");
    let zero = sswu::compressed(crrl::field::GFp256::ZERO);
    // u = 0 takes the formula of its own; what comes of it is on the curve.
    assert!(weierstrass::decode::<weierstrass::P256>(&zero).is_some());
}
