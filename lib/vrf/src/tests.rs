//! Test vectors of RFC 9381, appendix B, with all intermediate values (`tests/rfc9381.txt`), and of
//! RFC 9380.

use measure::{hex, unhex};

use super::*;

#[test]
fn all_test_vectors_of_rfc_9381_match_including_intermediate_values() {
    let mut count = 0;
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
        let trace = key.trace(&alpha).unwrap();
        let secret: [u8; 32] = secret.try_into().unwrap();
        let nonce = match suite {
            Suite::P256Tai | Suite::P256Sswu => weierstrass::nonce_bytes(&secret, &trace.points.h),
            _ => edwards::nonce(&secret, &trace.points.h).to_bytes(),
        };
        let actual = [
            &trace.points.h[..],
            &nonce,
            &trace.points.u,
            &trace.points.v,
            &trace.proof.pi,
            &trace.proof.beta,
        ]
        .map(hex);
        assert_eq!(actual, [h, k, u, v, pi, beta], "{suite:?}");
        let public = PublicKey::new(suite, key.public_key()).unwrap();
        assert_eq!(public.verify(&alpha, &trace.proof.pi), Ok(Some(trace.proof.beta)));
        count += 1;
    }
    assert_eq!(count, 12);
}

/// Uses u and P of RFC 9380, appendix J.1.2, for the empty message. The domain separation tag
/// differs there, but the map is the same.
#[test]
fn the_sswu_map_matches_rfc_9380() {
    let mut u = unhex("b22d487045f80e9edcb0ecc8d4bf77833e2bf1f3a54004d7df1d57f4802d311f").unwrap();
    u.reverse();
    let point = sswu::map_compressed(crrl::field::GFp256::decode_reduce(&u));
    assert_eq!(hex(&point), "03f871caad25ea3b59c16cf87c1894902f7e7b2c822c3d3f73596c5ace8ddd14d1");
    let zero = sswu::map_compressed(crrl::field::GFp256::ZERO);
    // u = 0 takes the exceptional formula; the result is on the curve.
    assert!(weierstrass::decode::<weierstrass::P256>(&zero).is_some());
}
