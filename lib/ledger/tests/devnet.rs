//! Bundles that `trustctl relay` made on real networks (Lodestar and EthereumJS, `cargo xtask test
//! chain`), in the form in which nodes received them.
#![cfg(feature = "ethereum")]
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_ledger::ChainReason;
use basalt_ledger::ethereum::types::Proofs;
use basalt_ledger::ethereum::{Approval, Bundle, ChainError, Hash, LightClient, Settings};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recording {
    /// `[ledger.chain]`, TOML.
    settings: String,
    /// A digest that is approved and then revoked, one that is revoked from the start, one without
    /// a record, and one for the boot test, which changes like the first.
    digests: [Hash; 4],
    bundles: Vec<RecordedBundle>,
}

#[derive(Deserialize)]
struct RecordedBundle {
    name: String,
    /// Time of the recording in seconds since 1970.
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
    /// A network with committees of 32 keys, from Bellatrix into Capella, over a change of the
    /// committee.
    fn minimal() -> Self {
        serde_json::from_str(include_str!("ethereum/devnet-minimal.json")).unwrap()
    }

    /// A network with committees of 512 keys.
    fn mainnet() -> Self {
        serde_json::from_str(include_str!("ethereum/devnet-mainnet.json")).unwrap()
    }

    /// Makes a client that has not applied a bundle yet.
    fn client(&self) -> LightClient {
        let node: Node = config::parse("node.toml", &self.settings).unwrap();
        LightClient::new(Settings::try_from(&node.ledger.chain).unwrap())
    }

    fn get(&self, name: &str) -> &RecordedBundle {
        self.bundles.iter().find(|recorded| recorded.name == name).unwrap()
    }
}

impl RecordedBundle {
    fn text(&self) -> String {
        serde_json::to_string(&self.bundle).unwrap()
    }

    /// Applies the bundle at the time of its recording.
    fn apply(&self, client: &LightClient) -> Result<LightClient, ChainError> {
        client.apply_bundle(&self.text(), self.now)
    }
}

fn decisions(
    client: &LightClient,
    digests: &[Hash],
    now: u64,
) -> Vec<Result<Approval, ChainReason>> {
    digests.iter().map(|digest| client.decide(digest, now)).collect()
}

#[test]
fn an_approval_is_revoked_in_attested_state_and_then_in_finalized_state() {
    for (recording, stages) in [
        (Recording::minimal(), &["attested", "revoked"][..]),
        (Recording::mainnet(), &["attested"]),
    ] {
        let approved = recording.get("approved");
        let mut client = approved.apply(&recording.client()).unwrap();
        let [good, revoked, absent, guest] = recording.digests;
        assert_eq!(client.decide(&good, approved.now).unwrap().seq, 2);
        assert!(matches!(client.decide(&revoked, approved.now), Err(ChainReason::Revoked { .. })));
        assert!(matches!(client.decide(&absent, approved.now), Err(ChainReason::Absent { .. })));
        client.decide(&guest, approved.now).unwrap();
        for stage in stages {
            let recorded = recording.get(stage);
            client = recorded.apply(&client).unwrap();
            let Err(ChainReason::Revoked { block, .. }) = client.decide(&good, recorded.now) else {
                panic!("{stage}: allowed")
            };
            let finalized = client.status().unwrap().block;
            assert_eq!(
                *stage == "attested",
                block > finalized,
                "{stage}: revoked at block {block}, finalized is {finalized}"
            );
        }
        // An earlier bundle is rejected.
        if stages.len() > 1 {
            assert!(matches!(approved.apply(&client), Err(ChainError::OlderState { .. })));
        }
        // A node that starts later follows from the last bundle alone.
        let last = recording.get(stages[stages.len() - 1]);
        let late = last.apply(&recording.client()).unwrap();
        assert!(matches!(late.decide(&good, last.now), Err(ChainReason::Revoked { .. })));
    }
}

#[test]
fn the_checkpoint_precedes_the_fork_and_a_known_period_needs_no_bootstrap() {
    let recording = Recording::minimal();
    let revoked = recording.get("revoked");
    let bootstrap = revoked.bundle.bootstrap.as_ref().unwrap();
    assert!(bootstrap.header.block_hash.is_none(), "Bellatrix");
    let finalized = revoked.bundle.finality.finalized_header.as_ref().unwrap();
    assert!(finalized.block_hash.is_some(), "Capella");
    let client = revoked.apply(&recording.client()).unwrap();
    let period = recording.get("period");
    assert!(period.bundle.bootstrap.is_none());
    assert_eq!(period.apply(&recording.client()), Err(ChainError::NoBootstrap));
    assert!(client.first_missing_period(period.now).unwrap() >= 1);
    period.apply(&client).unwrap();
}

#[test]
fn no_altered_digit_changes_a_decision() {
    for (recording, step) in [(Recording::minimal(), 97), (Recording::mainnet(), 4001)] {
        let recorded = recording.get("attested");
        let text = recorded.text();
        let good = recorded.apply(&recording.client()).unwrap();
        let expected = decisions(&good, &recording.digests, recorded.now);
        let (mut rejected, mut unchanged) = (0, 0);
        for at in (0..text.len()).step_by(step) {
            let mut bad = text.clone().into_bytes();
            bad[at] = match bad[at] {
                b'0'..=b'8' | b'a'..=b'e' => bad[at] + 1,
                b'9' | b'f' => bad[at] - 1,
                _ => continue,
            };
            let bad = String::from_utf8(bad).unwrap();
            match recording.client().apply_bundle(&bad, recorded.now) {
                Err(_) => rejected += 1,
                // Data that occurs twice in the bundle is read once.
                Ok(client) => {
                    let found = decisions(&client, &recording.digests, recorded.now);
                    assert_eq!(found, expected, "byte {at}");
                    unchanged += 1;
                }
            }
        }
        assert!(rejected > 10 * unchanged, "{rejected} rejected, {unchanged} unchanged");
    }
}

#[test]
fn another_network_and_another_contract_are_rejected() {
    let mut recording = Recording::mainnet();
    let approved = recording.get("approved");
    let (text, now) = (approved.text(), approved.now);
    let settings = recording.settings.clone();
    let field = |key: &str| settings.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    for (key, message) in [
        ("genesis-validators-root", "signature is invalid"),
        ("checkpoint", "pinned checkpoint"),
        ("code-hash", "code has the hash"),
        ("contract", ""),
    ] {
        let line = field(key);
        let end = line.len() - 2;
        let other = if line.as_bytes()[end] == b'0' { '1' } else { '0' };
        recording.settings = settings.replace(&line, &format!("{}{other}\"", &line[..end]));
        let error = recording.client().apply_bundle(&text, now).unwrap_err().to_string();
        assert!(error.contains(message), "{key}: {error}");
    }
}

/// Checks the limits of docs/performance.md: at most 10 kB, and 58 kB for each period.
#[test]
fn a_bundle_for_one_digest_is_small() {
    let recording = Recording::mainnet();
    let mut bundle = recording.get("attested").bundle.clone();
    bundle.bootstrap = None;
    let retain_first = |proofs: &mut Proofs| {
        proofs.records.retain(|digest, _| *digest == recording.digests[0]);
    };
    retain_first(&mut bundle.at_final);
    bundle.attested.as_mut().map(retain_first).unwrap();
    let periods = bundle.updates.len();
    let size = serde_json::to_string(&bundle).unwrap().len();
    println!("{size} bytes with {periods} periods");
    assert!(size <= 10_000 + 58_000 * periods, "{size} bytes with {periods} periods");
}

/// Returns the median duration of 31 runs in milliseconds.
fn median_ms(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let start = std::time::Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Returns a size in this process's status file (proc(5)) in bytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Prints the figures of `cargo xtask bench ledger`, which runs it with optimised code.
#[test]
#[ignore = "figures: cargo xtask bench ledger"]
fn figures() {
    use basalt_ledger::ethereum::{LightClientStore, ValidatedCommittee};
    // The measurement starts before the recording is read. Otherwise memory that the reading frees
    // would be used again without being counted.
    let resident_before = memory("VmRSS:");
    let recording = Recording::mainnet();
    let recorded = recording.get("attested");
    let text = recorded.text();
    let settings = recording.client().settings().clone();
    let bootstrap = recorded.bundle.bootstrap.as_ref().unwrap();
    let raw = &bootstrap.current_sync_committee;
    let slot = settings.network.slot_at_time(recorded.now);
    let client = recording.client().apply_bundle(&text, recorded.now).unwrap();
    let peak = memory("VmHWM:").saturating_sub(resident_before);
    let store =
        LightClientStore::bootstrap(&settings.network, &settings.checkpoint, bootstrap).unwrap();
    let load = median_ms(|| drop(std::hint::black_box(ValidatedCommittee::new(raw, 512).unwrap())));
    let update = median_ms(|| {
        store.clone().process_update(&settings.network, &recorded.bundle.finality, slot).unwrap()
    });
    let apply = |client: &LightClient| {
        drop(std::hint::black_box(client.apply_bundle(&text, recorded.now).unwrap()));
    };
    let first = median_ms(|| apply(&recording.client()));
    let later = median_ms(|| apply(&client));
    let lookup = median_ms(|| {
        for _ in 0..1000 {
            std::hint::black_box(client.decide(&recording.digests[2], recorded.now)).unwrap_err();
        }
    }) / 1000.0;
    println!("committee of 512 loaded        {load:8.3} ms   (at most 40)");
    println!("finality update with 512 keys  {update:8.3} ms   (at most 2)");
    println!("lookup                         {lookup:8.5} ms   (at most 0.05)");
    println!("first bundle, {:3} kB, whole    {first:8.3} ms", text.len() / 1000);
    println!("the same again                 {later:8.3} ms");
    println!(
        "memory at its peak, recording and all {:.2} MiB  (at most 4)",
        peak as f64 / f64::from(1 << 20)
    );
}
