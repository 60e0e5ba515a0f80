//! A relay's bundle: its text, a block's header, proofs, a record; and what a node kept of the
//! chain.
#![no_main]
// A fuzz target says what it found by panicking.
#![allow(clippy::expect_used)]

use std::sync::LazyLock;

use ledger::ethereum::types::{Account, Bytes, Proofs, Slot};
use ledger::ethereum::{Block, Bundle, Follower, Hash, Record, Saved, Settings, keccak};
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recording {
    settings: String,
    digests: Vec<Hash>,
    bundles: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
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

/// A real network's, of which a good bundle is known.
struct Known {
    settings: Settings,
    digests: Vec<Hash>,
    now: u64,
    bundle: Bundle,
    follower: Follower,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let text = include_str!("../../lib/ledger/tests/ethereum/devnet-minimal.json");
    let recording: Recording = serde_json::from_str(text).expect("a recording");
    let node: Node = config::parse("node.toml", &recording.settings).expect("settings");
    let settings = Settings::try_from(&node.ledger.chain).expect("settings");
    let Recorded { now, bundle } = recording.bundles.into_iter().next().expect("a bundle");
    let good = serde_json::to_string(&bundle).expect("JSON");
    let follower = Follower::new(settings.clone()).take(&good, now).expect("a good bundle");
    Known { settings, digests: recording.digests, now, bundle, follower }
});

fuzz_target!(|data: &[u8]| {
    let Known { settings, digests, now, bundle, follower } = &*KNOWN;
    // Bytes where a block's header, a proof's node, a word should be.
    let hash = Hash::new(keccak(data));
    let _ = Block::read(&Bytes(data.to_vec()), &hash);
    if let Ok(word) = data.try_into() {
        let _ = Record::read(word);
    }
    let contract = &settings.contract;
    let nodes: Vec<Bytes> =
        data.chunks(data.len() / 3 + 1).map(|node| Bytes(node.to_vec())).collect();
    let root = nodes.first().map_or([0; 32], |node| keccak(&node.0));
    // With the value of a good one, and with none; the first node is the root's.
    let account = bundle.at_final.account.clone();
    assert!(
        contract.storage(&root, &Account { proof: nodes.clone(), ..account }).is_err(),
        "nobody knows such an account"
    );
    let _ = contract.storage(&root, &Account { value: None, proof: nodes.clone() });
    let _ = contract.check(&root, &digests[0], &Slot { word: hash, proof: nodes.clone() });
    let _ = contract.check(&root, &digests[0], &Slot { word: Hash::new([0; 32]), proof: nodes });
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A whole bundle, and the part of one in the place of a good one's.
    let decided =
        |one: &Follower| digests.iter().map(|digest| one.decide(digest, *now)).collect::<Vec<_>>();
    let before = decided(follower);
    // What the network itself said later is that one was revoked; nothing says that another is
    // allowed.
    let denies_more = |taken: &Follower| {
        for (one, other) in decided(taken).into_iter().zip(&before) {
            assert!(one == *other || one.is_err(), "{one:?} {other:?}");
        }
    };
    if let Ok(taken) = follower.take(text, *now) {
        denies_more(&taken);
    }
    if let Ok(proofs) = serde_json::from_str::<Proofs>(text) {
        let bad = Bundle { at_final: proofs, ..bundle.clone() };
        if let Ok(taken) =
            Follower::new(settings.clone()).take(&serde_json::to_string(&bad).expect("JSON"), *now)
        {
            denies_more(&taken);
        }
    }
    if let Ok(saved) = serde_json::from_str::<Saved>(text)
        && let Ok(restored) = Follower::restore(settings.clone(), saved)
    {
        let _ = (restored.essence(), restored.view(), decided(&restored), restored.period(*now));
    }
});
