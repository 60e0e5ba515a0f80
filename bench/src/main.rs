//! `cargo xtask bench crypto`: medians of Criterion for every candidate in one run, then what one module does to another.
// Nothing here ships.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../trustd/tests/engine/alone.rs"]
mod alone;
#[path = "../../trustd/tests/common/mod.rs"]
mod common;
mod flood;
mod medians;

use std::hint::black_box;
use std::time::Duration;

use basalt_trustd::crypto::spread;
use client::hex;
use criterion::{BenchmarkId, Criterion};
use serde_json::{Value, json};
use vrf::{PublicKey, SecretKey, Suite};
use vrf_draft05::VRF as _;
use vrf_draft05::openssl::{CipherSuite, ECVRF};
use vrf_rfc9381::ec::{edwards25519, p256};
use vrf_rfc9381::{Prover, VRF, Verifier};

use crate::alone::{ALL, Alone, Group, MUCH, client, container};

const ALPHA: &[u8] = b"a block's number, or whatever is drawn for";
const SECRET: [u8; 32] = [7; 32];
const BATCH: usize = 1024;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, socket] = &words[..]
        && word == "flood"
    {
        return flood::flood(socket.as_ref());
    }
    let mut criterion = Criterion::default().sample_size(60).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    proofs(&mut criterion);
    socket(&mut criterion);
    medians::print();
    flood::measure();
}

fn proofs(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        let key = SecretKey::new(suite, &SECRET).unwrap();
        let proof = key.prove(ALPHA).unwrap();
        let public = PublicKey::new(suite, key.public_key()).unwrap();
        criterion.bench_function(&format!("{}/prove/ours", suite.name()), |b| b.iter(|| key.prove(black_box(ALPHA)).unwrap()));
        // With the key validated each time, as the others do.
        criterion.bench_function(&format!("{}/verify/ours", suite.name()), |b| {
            b.iter(|| PublicKey::new(suite, black_box(public.as_bytes())).unwrap().verify(ALPHA, &proof.pi).unwrap().unwrap())
        });
    }
    rfc(criterion, Suite::P256Tai, p256::tai::EcVrfP256Tai);
    rfc(criterion, Suite::P256Sswu, p256::sswu::EcVrfP256Sswu);
    rfc(criterion, Suite::Ed25519Tai, edwards25519::tai::EdVrfEdwards25519Tai);
    rfc(criterion, Suite::Ed25519Ell2, edwards25519::elligator2::EdVrfEdwards25519Ell2);
    for (name, suite) in [(Suite::P256Tai, CipherSuite::P256_SHA256_TAI), (Suite::Secp256k1Draft05, CipherSuite::SECP256K1_SHA256_TAI)] {
        let mut vrf = ECVRF::from_suite(suite).unwrap();
        let public = vrf.derive_public_key(&SECRET).unwrap();
        let pi = vrf.prove(&SECRET, ALPHA).unwrap();
        criterion.bench_function(&format!("{}/prove/vrf", name.name()), |b| b.iter(|| vrf.prove(black_box(&SECRET), ALPHA).unwrap()));
        criterion
            .bench_function(&format!("{}/verify/vrf", name.name()), |b| b.iter(|| vrf.verify(black_box(&public), &pi, ALPHA).unwrap()));
    }
}

fn rfc<V: VRF + Copy>(criterion: &mut Criterion, suite: Suite, vrf: V)
where
    V::Prover: Prover<V::Hash>,
    V::Verifier: Verifier<V::Hash>,
{
    let prover = V::Prover::from_slice(&SECRET).unwrap();
    let public = SecretKey::new(suite, &SECRET).unwrap().public_key().to_vec();
    let pi = vrf.prove(&prover, ALPHA).unwrap();
    criterion.bench_function(&format!("{}/prove/vrf-rfc9381", suite.name()), |b| b.iter(|| vrf.prove(black_box(&prover), ALPHA).unwrap()));
    criterion.bench_function(&format!("{}/verify/vrf-rfc9381", suite.name()), |b| {
        b.iter(|| vrf.verify(&V::Verifier::from_slice(black_box(&public)).unwrap(), ALPHA, &pi).unwrap())
    });
}

/// What the way over the socket costs, and what many at once save.
fn socket(criterion: &mut Criterion) {
    let alone = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(Alone::start());
    let path = alone.module(1, "bench", &ALL, MUCH);
    let _group = Group::enter(&container(1));
    let mut node = client(&path);
    let suite = Suite::Ed25519Tai;
    let items: Vec<(Vec<u8>, Vec<u8>)> = {
        let key = SecretKey::new(suite, &SECRET).unwrap();
        (0..BATCH as u32).map(|n| (n.to_be_bytes().to_vec(), key.prove(&n.to_be_bytes()).unwrap().pi)).collect()
    };
    let public = SecretKey::new(suite, &SECRET).unwrap().public_key().to_vec();
    let verify = |(alpha, pi): &(Vec<u8>, Vec<u8>)| PublicKey::new(suite, &public).unwrap().verify(alpha, pi).unwrap().unwrap();
    let request =
        |(alpha, pi): &(Vec<u8>, Vec<u8>)| json!({ "suite": suite, "public_key": hex(&public), "alpha": hex(alpha), "pi": hex(pi) });

    let one = request(&items[0]);
    criterion.bench_function("socket/verify/in-process", |b| b.iter(|| verify(black_box(&items[0]))));
    criterion.bench_function("socket/verify/socket", |b| b.iter(|| node.call::<Value>("vrf/verify", &one).unwrap()));
    criterion.bench_function("socket/identity/socket", |b| b.iter(|| node.identity().unwrap()));

    let mut group = criterion.benchmark_group("batch of 1,024");
    group.sample_size(10);
    group
        .bench_with_input(BenchmarkId::new("verify", "single"), &items, |b, items| b.iter(|| items.iter().map(verify).collect::<Vec<_>>()));
    group.bench_with_input(BenchmarkId::new("verify", "batch"), &items, |b, items| b.iter(|| spread::over(items.iter().collect(), verify)));
    let calls: Vec<Value> = items.iter().map(|item| json!({ "call": "vrf/verify", "request": request(item) })).collect();
    group.bench_function("socket/single", |b| {
        b.iter(|| items.iter().map(|item| node.call::<Value>("vrf/verify", &request(item)).unwrap()).collect::<Vec<_>>())
    });
    group.bench_function("socket/batch", |b| b.iter(|| node.call::<Value>("batch", &json!({ "calls": calls })).unwrap()));
    group.finish();
}
