//! Bundles that `trustctl relay` made on real networks (Lodestar and EthereumJS, `cargo xtask test
//! chain`), as nodes got them.
#![cfg(feature = "ethereum")]
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_ledger::ChainReason;
use basalt_ledger::ethereum::{Bundle, ChainError, Follower, Found, Hash, Settings};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recording {
    /// `[ledger.chain]`, TOML.
    settings: String,
    /// One that is approved and then revoked, one that is revoked from the beginning, one that is
    /// not there, and one for the boot test, with which it is as with the first.
    digests: [Hash; 4],
    bundles: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    /// When, in seconds since 1970.
    now: u64,
    bundle: Bundle,
}

#[derive(Deserialize)]
struct Node {
    ledger: Ledger,
}

#[derive(Deserialize)]
struct Ledger {
    chain: config::Chain,
}

impl Recording {
    /// 32 keys, from Bellatrix into Capella, over a change of the committee.
    fn minimal() -> Self {
        serde_json::from_str(include_str!("ethereum/devnet-minimal.json")).unwrap()
    }

    /// 512 keys.
    fn mainnet() -> Self {
        serde_json::from_str(include_str!("ethereum/devnet-mainnet.json")).unwrap()
    }

    fn follower(&self) -> Follower {
        let node: Node = config::parse("node.toml", &self.settings).unwrap();
        Follower::new(Settings::try_from(&node.ledger.chain).unwrap())
    }

    fn get(&self, name: &str) -> &Recorded {
        self.bundles.iter().find(|recorded| recorded.name == name).unwrap()
    }
}

impl Recorded {
    fn text(&self) -> String {
        serde_json::to_string(&self.bundle).unwrap()
    }
}

fn verdicts(follower: &Follower, digests: &[Hash], now: u64) -> Vec<Result<Found, ChainReason>> {
    digests.iter().map(|digest| follower.decide(digest, now)).collect()
}

#[test]
fn approved_then_revoked_in_attested_state_then_in_final_state() {
    for (recording, stages) in [
        (Recording::minimal(), &["attested", "revoked"][..]),
        (Recording::mainnet(), &["attested"]),
    ] {
        let approved = recording.get("approved");
        let mut follower = recording.follower().take(&approved.text(), approved.now).unwrap();
        let [good, gone, absent, guest] = recording.digests;
        let found = follower.decide(&good, approved.now).unwrap();
        assert_eq!(found.seq, 2);
        assert!(matches!(follower.decide(&gone, approved.now), Err(ChainReason::Revoked { .. })));
        assert!(matches!(follower.decide(&absent, approved.now), Err(ChainReason::Absent { .. })));
        follower.decide(&guest, approved.now).unwrap();
        for stage in stages {
            let recorded = recording.get(stage);
            follower = follower.take(&recorded.text(), recorded.now).unwrap();
            let Err(ChainReason::Revoked { block, .. }) = follower.decide(&good, recorded.now)
            else {
                panic!("{stage}: allowed")
            };
            let last = follower.view().unwrap().block;
            assert_eq!(
                *stage == "attested",
                block > last,
                "{stage}: seen at block {block}, final is {last}"
            );
        }
        // What was before is not taken any more.
        if stages.len() > 1 {
            assert!(matches!(
                follower.take(&approved.text(), approved.now),
                Err(ChainError::Older { what: "final", .. })
            ));
        }
        // A node that comes late begins with what is there then.
        let last = recording.get(stages[stages.len() - 1]);
        let late = recording.follower().take(&last.text(), last.now).unwrap();
        assert!(matches!(late.decide(&good, last.now), Err(ChainReason::Revoked { .. })));
    }
}

#[test]
fn the_checkpoint_is_of_before_the_fork_and_a_known_period_needs_none() {
    let recording = Recording::minimal();
    let revoked = recording.get("revoked");
    assert!(revoked.bundle.bootstrap.as_ref().unwrap().header.block_hash.is_none(), "of Bellatrix");
    assert!(
        revoked.bundle.finality.finalized_header.as_ref().unwrap().block_hash.is_some(),
        "of Capella"
    );
    let follower = recording.follower().take(&revoked.text(), revoked.now).unwrap();
    let period = recording.get("period");
    assert!(period.bundle.bootstrap.is_none());
    assert_eq!(recording.follower().take(&period.text(), period.now), Err(ChainError::NoBootstrap));
    assert!(follower.period(period.now).unwrap() >= 1);
    follower.take(&period.text(), period.now).unwrap();
}

#[test]
fn no_altered_digit_changes_what_is_decided() {
    for (recording, step) in [(Recording::minimal(), 97), (Recording::mainnet(), 4001)] {
        let recorded = recording.get("attested");
        let text = recorded.text();
        let good = recording.follower().take(&text, recorded.now).unwrap();
        let decided = verdicts(&good, &recording.digests, recorded.now);
        let (mut refused, mut same) = (0, 0);
        for at in (0..text.len()).step_by(step) {
            let mut bad = text.clone().into_bytes();
            bad[at] = match bad[at] {
                b'0'..=b'8' | b'a'..=b'e' => bad[at] + 1,
                b'9' | b'f' => bad[at] - 1,
                _ => continue,
            };
            match recording.follower().take(&String::from_utf8(bad).unwrap(), recorded.now) {
                Err(_) => refused += 1,
                // What is there twice is looked at once.
                Ok(taken) => {
                    assert_eq!(
                        verdicts(&taken, &recording.digests, recorded.now),
                        decided,
                        "byte {at}"
                    );
                    same += 1;
                }
            }
        }
        assert!(refused > 10 * same, "{refused} refused, {same} taken");
    }
}

#[test]
fn another_network_and_another_contract_are_refused() {
    let mut recording = Recording::mainnet();
    let approved = recording.get("approved");
    let (text, now) = (approved.text(), approved.now);
    let settings = recording.settings.clone();
    let field = |key: &str| settings.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    for (key, says) in [
        ("genesis-validators-root", "signature does not hold"),
        ("checkpoint", "pinned is"),
        ("code-hash", "code has the hash"),
        ("contract", ""),
    ] {
        let line = field(key);
        let end = line.len() - 2;
        let other = if line.as_bytes()[end] == b'0' { '1' } else { '0' };
        recording.settings = settings.replace(&line, &format!("{}{other}\"", &line[..end]));
        let error = recording.follower().take(&text, now).unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
}

/// Figures of docs/performance.md: at most 10 kB, and 58 kB for each period.
#[test]
fn a_bundle_for_one_digest_is_small() {
    let recording = Recording::mainnet();
    let mut bundle = recording.get("attested").bundle.clone();
    bundle.bootstrap = None;
    let only = |proofs: &mut basalt_ledger::ethereum::types::Proofs| {
        proofs.records.retain(|digest, _| *digest == recording.digests[0])
    };
    only(&mut bundle.at_final);
    bundle.attested.as_mut().map(only).unwrap();
    let periods = bundle.updates.len();
    let size = serde_json::to_string(&bundle).unwrap().len();
    println!("{size} bytes with {periods} periods");
    assert!(size <= 10_000 + 58_000 * periods, "{size} bytes with {periods} periods");
}

/// The median of many runs, in milliseconds.
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let begun = std::time::Instant::now();
            work();
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Of this process, in bytes: what is resident now, or was at most (proc(5)).
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// `cargo xtask bench ledger`, with optimised code.
#[test]
#[ignore = "figures: cargo xtask bench ledger"]
fn figures() {
    use basalt_ledger::ethereum::{Committee, Store};
    // From before the recording is read: what that frees again would be taken without being seen,
    // so it counts.
    let begun = memory("VmRSS:");
    let recording = Recording::mainnet();
    let recorded = recording.get("attested");
    let text = recorded.text();
    let settings = recording.follower().settings().clone();
    let bootstrap = recorded.bundle.bootstrap.as_ref().unwrap();
    let raw = &bootstrap.current_sync_committee;
    let slot = settings.network.slot(recorded.now);
    let follower = recording.follower().take(&text, recorded.now).unwrap();
    let peak = memory("VmHWM:").saturating_sub(begun);
    let store = Store::bootstrap(&settings.network, &settings.checkpoint, bootstrap).unwrap();
    let load = median(|| drop(std::hint::black_box(Committee::load(raw, 512).unwrap())));
    let update = median(|| {
        store.clone().process(&settings.network, &recorded.bundle.finality, slot).unwrap()
    });
    let whole = median(|| {
        drop(std::hint::black_box(recording.follower().take(&text, recorded.now).unwrap()))
    });
    let later = median(|| drop(std::hint::black_box(follower.take(&text, recorded.now).unwrap())));
    let lookup = median(|| {
        for _ in 0..1000 {
            std::hint::black_box(follower.decide(&recording.digests[2], recorded.now)).unwrap_err();
        }
    }) / 1000.0;
    println!("committee of 512 loaded        {load:8.3} ms   (at most 40)");
    println!("finality update with 512 keys  {update:8.3} ms   (at most 2)");
    println!("lookup                         {lookup:8.5} ms   (at most 0.05)");
    println!("first bundle, {:3} kB, whole    {whole:8.3} ms", text.len() / 1000);
    println!("the same again                 {later:8.3} ms");
    println!(
        "memory at its peak, recording and all {:.2} MiB  (at most 4)",
        peak as f64 / f64::from(1 << 20)
    );
}
