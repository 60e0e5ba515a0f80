//! The vectors of RFC 9381, appendix B.1 (examples 10 to 12) and B.3 (examples 16 to 18), and inputs that must be refused.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_vrf::{Suite, VrfError};
use measure::unhex;

struct Vector {
    suite: Suite,
    secret: &'static str,
    public: &'static str,
    alpha: &'static str,
    pi: &'static str,
    beta: &'static str,
}

const VECTORS: [Vector; 6] = [
    Vector {
        suite: Suite::P256Tai,
        secret: "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
        public: "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6",
        alpha: "73616d706c65",
        pi: "035b5c726e8c0e2c488a107c600578ee75cb702343c153cb1eb8dec77f4b5071b4a53f0a46f018bc2c56e58d383f2305e0975972c26feea0eb122fe7893c15af376b33edf7de17c6ea056d4d82de6bc02f",
        beta: "a3ad7b0ef73d8fc6655053ea22f9bede8c743f08bbed3d38821f0e16474b505e",
    },
    Vector {
        suite: Suite::P256Tai,
        secret: "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
        public: "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6",
        alpha: "74657374",
        pi: "034dac60aba508ba0c01aa9be80377ebd7562c4a52d74722e0abae7dc3080ddb56c19e067b15a8a8174905b13617804534214f935b94c2287f797e393eb0816969d864f37625b443f30f1a5a33f2b3c854",
        beta: "a284f94ceec2ff4b3794629da7cbafa49121972671b466cab4ce170aa365f26d",
    },
    Vector {
        suite: Suite::P256Tai,
        secret: "2ca1411a41b17b24cc8c3b089cfd033f1920202a6c0de8abb97df1498d50d2c8",
        public: "03596375e6ce57e0f20294fc46bdfcfd19a39f8161b58695b3ec5b3d16427c274d",
        alpha: "4578616d706c65207573696e67204543445341206b65792066726f6d20417070656e646978204c2e342e32206f6620414e53492e58392d36322d32303035",
        pi: "03d03398bf53aa23831d7d1b2937e005fb0062cbefa06796579f2a1fc7e7b8c667d091c00b0f5c3619d10ecea44363b5a599cadc5b2957e223fec62e81f7b4825fc799a771a3d7334b9186bdbee87316b1",
        beta: "90871e06da5caa39a3c61578ebb844de8635e27ac0b13e829997d0d95dd98c19",
    },
    Vector {
        suite: Suite::Ed25519Tai,
        secret: "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        public: "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        alpha: "",
        pi: "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f26f8a57ccaed74ee1b190bed1f479d9727d2d0f9b005a6e456a35d4fb0daab1268a1b0db10836d9826a528ca76567805",
        beta: "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff66b71dda49d2de59d03450451af026798e8f81cd2e333de5cdf4f3e140fdd8ae",
    },
    Vector {
        suite: Suite::Ed25519Tai,
        secret: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        public: "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        alpha: "72",
        pi: "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed5933bf0864a62558b3ed7f2fea45c92a465301b3bbf5e3e54ddf2d935be3b67926da3ef39226bbc355bdc9850112c8f4b02",
        beta: "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb5e33821bc613efb94db5e5b54c70a848a0bef4553a41befc57663b56373a5031",
    },
    Vector {
        suite: Suite::Ed25519Tai,
        secret: "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        public: "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        alpha: "af82",
        pi: "9bc0f79119cc5604bf02d23b4caede71393cedfbb191434dd016d30177ccbf8096bb474e53895c362d8628ee9f9ea3c0e52c7a5c691b6c18c9979866568add7a2d41b00b05081ed0f58ee5e31b3a970e",
        beta: "645427e5d00c62a23fb703732fa5d892940935942101e456ecca7bb217c61c452118fec1219202a0edcf038bb6373241578be7217ba85a2687f7a0310b2df19f",
    },
];

fn bytes(hex: &str) -> Vec<u8> {
    unhex(hex).unwrap()
}

#[test]
fn every_vector_of_the_rfc() {
    for v in &VECTORS {
        let secret: [u8; 32] = bytes(v.secret).try_into().unwrap();
        let proof = v.suite.prove(&secret, &bytes(v.alpha)).unwrap();
        assert_eq!(measure::hex(&proof.public_key), v.public);
        assert_eq!(measure::hex(&proof.pi), v.pi);
        assert_eq!(measure::hex(&proof.beta), v.beta);
        assert_eq!(v.suite.verify(&bytes(v.public), &bytes(v.alpha), &bytes(v.pi)).unwrap(), Some(bytes(v.beta)));
    }
}

#[test]
fn no_flipped_bit_and_no_other_length_passes() {
    for v in &VECTORS {
        let (public, alpha, pi) = (bytes(v.public), bytes(v.alpha), bytes(v.pi));
        for at in 0..pi.len() * 8 {
            let mut bad = pi.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(!matches!(v.suite.verify(&public, &alpha, &bad), Ok(Some(_))), "bit {at}");
        }
        for length in 0..pi.len() {
            assert_eq!(v.suite.verify(&public, &alpha, &pi[..length]), Err(VrfError::Form));
        }
        assert_eq!(v.suite.verify(&public, &alpha, &[&pi[..], &[0]].concat()), Err(VrfError::Form));
        assert_eq!(v.suite.verify(&public, b"another alpha", &pi), Ok(None));
    }
}

/// L = 2^252 + 27742317777372353535851937790883648493, little endian.
const L: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
/// n of P-256, big endian.
const N: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

#[test]
fn s_must_be_below_the_order() {
    // s + L means the same number and must not pass as the same proof.
    let v = &VECTORS[3];
    let mut pi = bytes(v.pi);
    let mut carry = 0u16;
    for (s, l) in pi[48..].iter_mut().zip(bytes(L)) {
        carry += u16::from(*s) + u16::from(l);
        *s = carry as u8;
        carry >>= 8;
    }
    assert_eq!(carry, 0);
    assert_eq!(v.suite.verify(&bytes(v.public), &bytes(v.alpha), &pi), Err(VrfError::Form));
    let v = &VECTORS[0];
    let mut pi = bytes(v.pi);
    pi[49..].copy_from_slice(&bytes(N));
    assert!(!matches!(v.suite.verify(&bytes(v.public), &bytes(v.alpha), &pi), Ok(Some(_))));
}

#[test]
fn bad_public_keys_are_refused() {
    let ed = &VECTORS[3];
    // The eight points of small order (RFC 8032's curve), and two encodings that are not canonical.
    for key in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "",
        "d75a98",
    ] {
        assert_eq!(ed.suite.verify(&bytes(key), &[], &bytes(ed.pi)), Err(VrfError::PublicKey), "{key}");
    }
    let p = &VECTORS[0];
    for key in [
        "",
        "00",
        "020000000000000000000000000000000000000000000000000000000000000001ff",
        "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6",
    ] {
        assert_eq!(p.suite.verify(&bytes(key), &[], &bytes(p.pi)), Err(VrfError::PublicKey), "{key}");
    }
    // x is not on the curve.
    let off = format!("02{}", "ff".repeat(32));
    assert_eq!(p.suite.verify(&bytes(&off), &[], &bytes(p.pi)), Err(VrfError::PublicKey));
}

#[test]
fn bad_secret_keys_are_refused() {
    for secret in ["00".repeat(32), N.to_owned(), "ff".repeat(32)] {
        let secret: [u8; 32] = bytes(&secret).try_into().unwrap();
        assert_eq!(Suite::P256Tai.check_secret(&secret), Err(VrfError::SecretKey));
        assert_eq!(Suite::P256Tai.prove(&secret, b"x").unwrap_err(), VrfError::SecretKey);
    }
}
