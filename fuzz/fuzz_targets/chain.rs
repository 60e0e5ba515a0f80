//! Data of the chain: a relay's bundle, the header of an execution block, proofs, records, and the
//! state that a node persists.
#![no_main]
// A fuzz target reports its findings by panics.
#![allow(clippy::expect_used)]

use std::sync::LazyLock;

use ledger::ethereum::types::{AccountProof, Bytes, Proofs, RecordProof};
use ledger::ethereum::{
    Bundle, ExecutionBlock, Hash, LightClient, PersistedState, Record, Settings, keccak256,
};
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recording {
    settings: String,
    digests: Vec<Hash>,
    bundles: Vec<RecordedBundle>,
}

#[derive(Deserialize)]
struct RecordedBundle {
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

/// A recorded network with a valid bundle.
struct Fixture {
    settings: Settings,
    digests: Vec<Hash>,
    now: u64,
    bundle: Bundle,
    /// Client that applied the bundle.
    client: LightClient,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let text = include_str!("../../lib/ledger/tests/ethereum/devnet-minimal.json");
    let recording: Recording = serde_json::from_str(text).expect("a recording");
    let node: Node = config::parse("node.toml", &recording.settings).expect("settings");
    let settings = Settings::try_from(&node.ledger.chain).expect("settings");
    let recorded = recording.bundles.into_iter().next().expect("a bundle");
    let RecordedBundle { now, bundle } = recorded;
    let client = LightClient::new(settings.clone());
    let client = client.apply_bundle(&json(&bundle), now).expect("a valid bundle");
    Fixture { settings, digests: recording.digests, now, bundle, client }
});

fn json(bundle: &Bundle) -> String {
    serde_json::to_string(bundle).expect("a bundle serialises")
}

/// Uses the input in place of a header, a word, and the nodes of a proof.
fn verify_bytes(data: &[u8]) {
    let Fixture { settings, digests, bundle, .. } = &*FIXTURE;
    let hash = Hash::new(keccak256(data));
    let _ = ExecutionBlock::decode(&Bytes(data.to_vec()), &hash);
    if let Ok(word) = data.try_into() {
        let _ = Record::decode(word);
    }
    let contract = &settings.contract;
    let proof: Vec<Bytes> =
        data.chunks(data.len() / 3 + 1).map(|node| Bytes(node.to_vec())).collect();
    // The first node is that of the root.
    let root = proof.first().map_or([0; 32], |node| keccak256(&node.0));
    let value = bundle.at_final.account.value.clone();
    assert!(
        contract.verify_account(&root, &AccountProof { value, proof: proof.clone() }).is_err(),
        "no input proves the recorded account by chance"
    );
    let absent = AccountProof { value: None, proof: proof.clone() };
    let _ = contract.verify_account(&root, &absent);
    for word in [hash, Hash::new([0; 32])] {
        let record = RecordProof { word, proof: proof.clone() };
        let _ = contract.verify_record(&root, &digests[0], &record);
    }
}

/// Asserts that a client allows nothing that the recorded one denies. The recorded network itself
/// revoked an image later, so that denials may be added.
fn assert_no_new_approval(client: &LightClient) {
    let Fixture { digests, now, client: recorded, .. } = &*FIXTURE;
    for digest in digests {
        let (found, expected) = (client.decide(digest, *now), recorded.decide(digest, *now));
        assert!(found == expected || found.is_err(), "{found:?} {expected:?}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Fixture { settings, digests, now, bundle, client } = &*FIXTURE;
    verify_bytes(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(next) = client.apply_bundle(text, *now) {
        assert_no_new_approval(&next);
    }
    if let Ok(proofs) = serde_json::from_str::<Proofs>(text) {
        let altered = Bundle { at_final: proofs, ..bundle.clone() };
        let fresh = LightClient::new(settings.clone());
        if let Ok(next) = fresh.apply_bundle(&json(&altered), *now) {
            assert_no_new_approval(&next);
        }
    }
    if let Ok(state) = serde_json::from_str::<PersistedState>(text)
        && let Ok(restored) = LightClient::restore(settings.clone(), state)
    {
        let _ = (restored.persistent_root(), restored.status());
        let _ = restored.first_missing_period(*now);
        for digest in digests {
            let _ = restored.decide(digest, *now);
        }
    }
});
