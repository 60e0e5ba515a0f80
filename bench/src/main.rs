//! `cargo xtask bench crypto`: Criterion's medians of our VRF, of other implementations and of the
//! modules' sockets, all in one run. Then the effect of one module on another.
// Nothing of this crate is delivered.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../trustd/tests/common/mod.rs"]
mod common;
mod flood;
mod medians;
#[path = "../../trustd/tests/engine/socket_host.rs"]
mod socket_host;

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

use crate::socket_host::{ALL_CALLS, Cgroup, LARGE_QUOTA, SocketHost, client, container};

const ALPHA: &[u8] = b"a block's number, or any other input";
const SECRET: [u8; 32] = [7; 32];
const BATCH_LEN: usize = 1024;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, socket] = &args[..]
        && command == "flood"
    {
        return flood::flood(socket.as_ref());
    }
    let mut criterion = Criterion::default()
        .sample_size(60)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    bench_proofs(&mut criterion);
    bench_socket(&mut criterion);
    bench_socket_on_one_processor(&mut criterion);
    medians::print();
    flood::measure();
}

fn bench_proofs(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        let key = SecretKey::new(suite, &SECRET).unwrap();
        let proof = key.prove(ALPHA).unwrap();
        let public = PublicKey::new(suite, key.public_key()).unwrap();
        criterion.bench_function(&format!("{}/prove/ours", suite.name()), |b| {
            b.iter(|| key.prove(black_box(ALPHA)).unwrap())
        });
        // The other implementations validate the public key each time, so ours must too.
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
    bench_rfc9381(criterion, Suite::P256Tai, p256::tai::EcVrfP256Tai);
    bench_rfc9381(criterion, Suite::P256Sswu, p256::sswu::EcVrfP256Sswu);
    bench_rfc9381(criterion, Suite::Ed25519Tai, edwards25519::tai::EdVrfEdwards25519Tai);
    bench_rfc9381(criterion, Suite::Ed25519Ell2, edwards25519::elligator2::EdVrfEdwards25519Ell2);
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

/// Measures a suite of the crate `vrf-rfc9381`.
fn bench_rfc9381<V: VRF + Copy>(criterion: &mut Criterion, suite: Suite, vrf: V)
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

const SUITE: Suite = Suite::Ed25519Tai;

/// A proof and its input.
struct Item {
    alpha: Vec<u8>,
    pi: Vec<u8>,
}

/// A node without an engine, and proofs to verify.
struct Fixture {
    host: SocketHost,
    items: Vec<Item>,
    public: Vec<u8>,
}

impl Fixture {
    fn start() -> Self {
        let host = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(SocketHost::start());
        let key = SecretKey::new(SUITE, &SECRET).unwrap();
        let items = (0..BATCH_LEN as u32)
            .map(|n| {
                let alpha = n.to_be_bytes().to_vec();
                let pi = key.prove(&alpha).unwrap().pi;
                Item { alpha, pi }
            })
            .collect();
        Self { host, items, public: key.public_key().to_vec() }
    }

    fn verify(&self, item: &Item) -> Vec<u8> {
        let key = PublicKey::new(SUITE, &self.public).unwrap();
        key.verify(&item.alpha, &item.pi).unwrap().unwrap()
    }

    /// Makes the request of `vrf/verify` for a proof.
    fn request(&self, item: &Item) -> Value {
        json!({
            "suite": SUITE,
            "public_key": hex(&self.public),
            "alpha": hex(&item.alpha),
            "pi": hex(&item.pi),
        })
    }

    /// Measures the same call within this process and over the socket.
    fn bench_single_calls(&self, criterion: &mut Criterion, node: &mut Client, name: &str) {
        let request = self.request(&self.items[0]);
        criterion.bench_function(&format!("{name}/verify/in-process"), |b| {
            b.iter(|| self.verify(black_box(&self.items[0])))
        });
        criterion.bench_function(&format!("{name}/verify/socket"), |b| {
            b.iter(|| node.call_by_name::<Value>("vrf/verify", &request).unwrap())
        });
        criterion.bench_function(&format!("{name}/identity/socket"), |b| {
            b.iter(|| node.identity().unwrap())
        });
    }
}

/// Measures the overhead of the socket itself. With both sides on processors of their own, each
/// answer also wakes a sleeping processor, which in a virtual machine takes most of the time.
fn bench_socket_on_one_processor(criterion: &mut Criterion) {
    let this_thread = nix::unistd::Pid::from_raw(0);
    let all = nix::sched::sched_getaffinity(this_thread).unwrap();
    let mut one = nix::sched::CpuSet::new();
    one.set((0..nix::sched::CpuSet::count()).find(|n| all.is_set(*n).unwrap()).unwrap()).unwrap();
    // The threads of the socket inherit the processor from this thread, which starts them.
    nix::sched::sched_setaffinity(this_thread, &one).unwrap();
    let fixture = Fixture::start();
    let path = fixture.host.module(1, "bench", &ALL_CALLS, LARGE_QUOTA);
    let _cgroup = Cgroup::enter(&container(1));
    fixture.bench_single_calls(criterion, &mut client(&path), "socket on one processor");
    nix::sched::sched_setaffinity(this_thread, &all).unwrap();
}

/// Measures the overhead of the socket, and how much a batch saves.
fn bench_socket(criterion: &mut Criterion) {
    let fixture = Fixture::start();
    let path = fixture.host.module(1, "bench", &ALL_CALLS, LARGE_QUOTA);
    let _cgroup = Cgroup::enter(&container(1));
    let mut node = client(&path);
    fixture.bench_single_calls(criterion, &mut node, "socket");

    let (items, verify) = (&fixture.items, |item: &Item| fixture.verify(item));
    let mut group = criterion.benchmark_group("batch of 1,024");
    group.sample_size(10);
    group.bench_with_input(BenchmarkId::new("verify", "single"), items, |b, items| {
        b.iter(|| items.iter().map(verify).collect::<Vec<_>>())
    });
    group.bench_with_input(BenchmarkId::new("verify", "batch"), items, |b, items| {
        b.iter(|| parallel::map(items.iter().collect(), verify))
    });
    let calls: Vec<Value> = items
        .iter()
        .map(|item| json!({ "call": "vrf/verify", "request": fixture.request(item) }))
        .collect();
    group.bench_function("socket/single", |b| {
        b.iter(|| {
            items
                .iter()
                .map(|item| {
                    node.call_by_name::<Value>("vrf/verify", &fixture.request(item)).unwrap()
                })
                .collect::<Vec<_>>()
        })
    });
    group.bench_function("socket/batch", |b| {
        b.iter(|| node.call_by_name::<Value>("batch", &json!({ "calls": calls })).unwrap())
    });
    group.finish();
}
