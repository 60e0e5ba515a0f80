//! `cargo xtask bench crypto`: medians of Criterion for every candidate in one run, then what one
//! module does to another.
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

use basalt_trustd::util::parallel;
use client::{Client, hex};
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
    let mut criterion = Criterion::default()
        .sample_size(60)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    proofs(&mut criterion);
    socket(&mut criterion);
    on_one_processor(&mut criterion);
    medians::print();
    flood::measure();
}

fn proofs(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        let key = SecretKey::new(suite, &SECRET).unwrap();
        let proof = key.prove(ALPHA).unwrap();
        let public = PublicKey::new(suite, key.public_key()).unwrap();
        criterion.bench_function(&format!("{}/prove/ours", suite.name()), |b| {
            b.iter(|| key.prove(black_box(ALPHA)).unwrap())
        });
        // With the key validated each time, as the others do.
        criterion.bench_function(&format!("{}/verify/ours", suite.name()), |b| {
            b.iter(|| {
                PublicKey::new(suite, black_box(public.as_bytes()))
                    .unwrap()
                    .verify(ALPHA, &proof.pi)
                    .unwrap()
                    .unwrap()
            })
        });
    }
    rfc(criterion, Suite::P256Tai, p256::tai::EcVrfP256Tai);
    rfc(criterion, Suite::P256Sswu, p256::sswu::EcVrfP256Sswu);
    rfc(criterion, Suite::Ed25519Tai, edwards25519::tai::EdVrfEdwards25519Tai);
    rfc(criterion, Suite::Ed25519Ell2, edwards25519::elligator2::EdVrfEdwards25519Ell2);
    for (name, suite) in [
        (Suite::P256Tai, CipherSuite::P256_SHA256_TAI),
        (Suite::Secp256k1Draft05, CipherSuite::SECP256K1_SHA256_TAI),
    ] {
        let mut vrf = ECVRF::from_suite(suite).unwrap();
        let public = vrf.derive_public_key(&SECRET).unwrap();
        let pi = vrf.prove(&SECRET, ALPHA).unwrap();
        criterion.bench_function(&format!("{}/prove/vrf", name.name()), |b| {
            b.iter(|| vrf.prove(black_box(&SECRET), ALPHA).unwrap())
        });
        criterion.bench_function(&format!("{}/verify/vrf", name.name()), |b| {
            b.iter(|| vrf.verify(black_box(&public), &pi, ALPHA).unwrap())
        });
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
    criterion.bench_function(&format!("{}/prove/vrf-rfc9381", suite.name()), |b| {
        b.iter(|| vrf.prove(black_box(&prover), ALPHA).unwrap())
    });
    criterion.bench_function(&format!("{}/verify/vrf-rfc9381", suite.name()), |b| {
        b.iter(|| {
            vrf.verify(&V::Verifier::from_slice(black_box(&public)).unwrap(), ALPHA, &pi).unwrap()
        })
    });
}

/// A node without an engine, its module's connection, and proofs to verify.
struct Bench {
    alone: Alone,
    items: Vec<(Vec<u8>, Vec<u8>)>,
    public: Vec<u8>,
}

const SUITE: Suite = Suite::Ed25519Tai;

impl Bench {
    fn start() -> Self {
        let alone = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(Alone::start());
        let key = SecretKey::new(SUITE, &SECRET).unwrap();
        let items = (0..BATCH as u32)
            .map(|n| (n.to_be_bytes().to_vec(), key.prove(&n.to_be_bytes()).unwrap().pi))
            .collect();
        Self { alone, items, public: key.public_key().to_vec() }
    }

    fn verify(&self, (alpha, pi): &(Vec<u8>, Vec<u8>)) -> Vec<u8> {
        PublicKey::new(SUITE, &self.public).unwrap().verify(alpha, pi).unwrap().unwrap()
    }

    fn request(&self, (alpha, pi): &(Vec<u8>, Vec<u8>)) -> Value {
        json!({ "suite": SUITE, "public_key": hex(&self.public), "alpha": hex(alpha), "pi": hex(pi) })
    }

    /// The same call in this process and over the socket.
    fn one(&self, criterion: &mut Criterion, node: &mut Client, name: &str) {
        let one = self.request(&self.items[0]);
        criterion.bench_function(&format!("{name}/verify/in-process"), |b| {
            b.iter(|| self.verify(black_box(&self.items[0])))
        });
        criterion.bench_function(&format!("{name}/verify/socket"), |b| {
            b.iter(|| node.call::<Value>("vrf/verify", &one).unwrap())
        });
        criterion.bench_function(&format!("{name}/identity/socket"), |b| {
            b.iter(|| node.identity().unwrap())
        });
    }
}

/// What the way over the socket costs by itself. With both sides on processors of their own each
/// answer also wakes one that sleeps, which in a virtual machine takes longer than all the rest.
fn on_one_processor(criterion: &mut Criterion) {
    let this = nix::unistd::Pid::from_raw(0);
    let all = nix::sched::sched_getaffinity(this).unwrap();
    let mut one = nix::sched::CpuSet::new();
    one.set((0..nix::sched::CpuSet::count()).find(|n| all.is_set(*n).unwrap()).unwrap()).unwrap();
    // The threads that serve are started from this one, and stay where it is.
    nix::sched::sched_setaffinity(this, &one).unwrap();
    let bench = Bench::start();
    let path = bench.alone.module(1, "bench", &ALL, MUCH);
    let _group = Group::enter(&container(1));
    bench.one(criterion, &mut client(&path), "socket on one processor");
    nix::sched::sched_setaffinity(this, &all).unwrap();
}

/// What the way over the socket costs, and what many at once save.
fn socket(criterion: &mut Criterion) {
    let bench = Bench::start();
    let path = bench.alone.module(1, "bench", &ALL, MUCH);
    let _group = Group::enter(&container(1));
    let mut node = client(&path);
    bench.one(criterion, &mut node, "socket");

    let (items, verify) = (&bench.items, |item: &(Vec<u8>, Vec<u8>)| bench.verify(item));
    let mut group = criterion.benchmark_group("batch of 1,024");
    group.sample_size(10);
    group.bench_with_input(BenchmarkId::new("verify", "single"), items, |b, items| {
        b.iter(|| items.iter().map(verify).collect::<Vec<_>>())
    });
    group.bench_with_input(BenchmarkId::new("verify", "batch"), items, |b, items| {
        b.iter(|| parallel::over(items.iter().collect(), verify))
    });
    let calls: Vec<Value> = items
        .iter()
        .map(|item| json!({ "call": "vrf/verify", "request": bench.request(item) }))
        .collect();
    group.bench_function("socket/single", |b| {
        b.iter(|| {
            items
                .iter()
                .map(|item| node.call::<Value>("vrf/verify", &bench.request(item)).unwrap())
                .collect::<Vec<_>>()
        })
    });
    group.bench_function("socket/batch", |b| {
        b.iter(|| node.call::<Value>("batch", &json!({ "calls": calls })).unwrap())
    });
    group.finish();
}
