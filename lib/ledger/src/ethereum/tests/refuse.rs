//! Everything that can be altered in a bundle, and the name under which it is refused.

use super::super::types::*;
use super::super::*;
use super::sim::*;

type Alter = fn(&mut Bundle);
type Pinned = fn(&mut Settings);

fn taken(sim: &Sim, bundle: &Bundle) -> Result<Follower, ChainError> {
    Follower::new(sim.settings.clone()).take(&serde_json::to_string(bundle).unwrap(), sim.now(150))
}

fn sim() -> Sim {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, u64::MAX, 1));
    sim
}

#[test]
fn each_alteration_is_refused_by_name() {
    let sim = sim();
    let good = sim.bundle(104);
    taken(&sim, &good).unwrap();
    let cases: &[(&str, Alter, &str)] = &[
        ("no bootstrap", |b| b.bootstrap = None, "no bootstrap"),
        ("another checkpoint", |b| first(b).header.beacon.slot += 1, "pinned is"),
        (
            "altered committee",
            |b| first(b).current_sync_committee.pubkeys.swap(0, 1),
            "current sync committee",
        ),
        (
            "short committee",
            |b| _ = b.updates[0].next_sync_committee.as_mut().unwrap().pubkeys.pop(),
            "31 members",
        ),
        (
            "altered root",
            |b| b.finality.attested_header.beacon.state_root.0[0] ^= 1,
            "finalized header",
        ),
        ("altered branch", |b| b.finality.finality_branch[2].0[0] ^= 1, "finalized header"),
        ("short branch", |b| _ = b.finality.finality_branch.pop(), "finalized header"),
        (
            "altered next",
            |b| b.updates[0].next_sync_committee.as_mut().unwrap().pubkeys.swap(3, 4),
            "next sync committee",
        ),
        (
            "altered next branch",
            |b| b.updates[0].next_sync_committee_branch[1].0[5] ^= 4,
            "next sync committee",
        ),
        (
            "branch without its committee",
            |b| b.updates[0].next_sync_committee = None,
            "next sync committee",
        ),
        ("branch without its header", |b| b.finality.finalized_header = None, "finalized header"),
        (
            "altered signature",
            |b| b.finality.sync_aggregate.sync_committee_signature.0[40] ^= 1,
            "signature does not hold",
        ),
        (
            "signature of another",
            |b| b.finality.sync_aggregate = b.updates[0].sync_aggregate.clone(),
            "signature does not hold",
        ),
        (
            "participation of one less",
            |b| b.finality.sync_aggregate.sync_committee_bits.0[0] ^= 1,
            "signature does not hold",
        ),
        (
            "participation of nobody",
            |b| b.finality.sync_aggregate.sync_committee_bits = Bytes(vec![0; 4]),
            "0 of 32",
        ),
        (
            "participation too long",
            |b| b.finality.sync_aggregate.sync_committee_bits.0.push(0),
            "5 bytes",
        ),
        (
            "other proposer",
            |b| b.finality.attested_header.beacon.proposer_index += 1,
            "signature does not hold",
        ),
        ("an update twice", |b| b.updates.push(b.updates[0].clone()), "one a period"),
        ("signed before it was there", |b| b.finality.signature_slot = 100, "not in order"),
        ("signed in the future", |b| b.finality.signature_slot = 1000, "not in order"),
        ("a period left out", |b| b.updates.clear(), "updates between are missing"),
        (
            "other execution block",
            |b| b.finality.finalized_header.as_mut().unwrap().block_hash = Some(digest(7)),
            "execution block",
        ),
        (
            "no execution block",
            |b| b.finality.finalized_header.as_mut().unwrap().block_hash = None,
            "execution block",
        ),
        ("other block header", |b| b.at_final.header.0[100] ^= 1, "header has the hash"),
        (
            "block header of the attested",
            |b| b.at_final.header = b.attested.as_ref().unwrap().header.clone(),
            "header has the hash",
        ),
        (
            "altered account",
            |b| b.at_final.account.value.as_mut().unwrap().nonce = 2,
            "contract's account",
        ),
        (
            "other storage",
            |b| b.at_final.account.value.as_mut().unwrap().storage = digest(7),
            "contract's account",
        ),
        ("account said to be absent", |b| b.at_final.account.value = None, "contract's account"),
        ("account's proof cut", |b| _ = b.at_final.account.proof.pop(), "contract's account"),
        ("altered record", |b| record(b, 1).word.0[31] = 2, "proof of the record"),
        ("record said to be absent", |b| record(b, 1).word = digest(0), "proof of the record"),
        (
            "absent one said to be there",
            |b| record(b, 2).word = Hash::new(word(1, 9, 9)),
            "proof of the record",
        ),
        ("record's proof cut", |b| _ = record(b, 1).proof.pop(), "proof of the record"),
        ("record's proof empty", |b| record(b, 1).proof.clear(), "proof of the record"),
        (
            "record under another digest",
            |b| *record(b, 2) = record(b, 1).clone(),
            "proof of the record",
        ),
        (
            "altered attested record",
            |b| b.attested.as_mut().unwrap().records.get_mut(&digest(1)).unwrap().word.0[31] = 2,
            "proof of the record",
        ),
        (
            "proofs of before",
            |b| b.at_final.records = b.attested.as_ref().unwrap().records.clone(),
            "",
        ),
    ];
    for (what, alter, says) in cases {
        let mut bad = good.clone();
        alter(&mut bad);
        match taken(&sim, &bad) {
            // The storage did not change between the two blocks.
            Ok(_) => assert!(says.is_empty(), "{what} was taken"),
            Err(error) => {
                assert!(!says.is_empty() && error.to_string().contains(says), "{what}: {error}")
            }
        }
    }
}

fn first(bundle: &mut Bundle) -> &mut Bootstrap {
    bundle.bootstrap.as_mut().unwrap()
}

fn record(bundle: &mut Bundle, n: u8) -> &mut Slot {
    bundle.at_final.records.get_mut(&digest(n)).unwrap()
}

#[test]
fn what_is_pinned_must_be_what_is_there() {
    let good = sim();
    let bundle = good.bundle(104);
    let cases: &[(Pinned, &str)] = &[
        (|s| s.network.genesis_validators_root = [1; 32], "signature does not hold"),
        (|s| s.network.forks[0].version = [9; 4], "signature does not hold"),
        (|s| s.checkpoint = [1; 32], "pinned is"),
        (|s| s.contract.code = digest(1), "code has the hash"),
        (|s| s.contract.address = Hex([1; 20]), "contract's account"),
        (|s| s.contract.mapping = 1, "proof of the record"),
        (|s| s.network.preset = MAINNET, "32 members, expected 512"),
    ];
    for (alter, says) in cases {
        let mut settings = good.settings.clone();
        alter(&mut settings);
        let error = Follower::new(settings)
            .take(&serde_json::to_string(&bundle).unwrap(), good.now(150))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn a_contract_that_is_not_there_is_an_error_and_not_an_empty_registry() {
    let sim = sim();
    let mut bundle = sim.bundle(104);
    let mut settings = sim.settings.clone();
    // The trie proves that this address has no account: the same nodes, another path.
    bundle.at_final.account.value = None;
    let mut named = 0;
    for n in 0..=255 {
        settings.contract.address = Hex([n; 20]);
        let error = Follower::new(settings.clone())
            .take(&serde_json::to_string(&bundle).unwrap(), sim.now(150))
            .unwrap_err();
        named += usize::from(matches!(error, ChainError::NoContract { .. }));
    }
    assert!(named > 0);
}

#[test]
fn keys_that_are_no_points_of_the_group_are_refused() {
    let raw = Sim::committee(0);
    let with = |bytes: [u8; 48]| {
        let mut committee = raw.clone();
        committee.pubkeys[5] = Hex(bytes);
        Committee::load(&committee, 32).map(drop)
    };
    let refused = |result| matches!(result, Err(ChainError::PublicKey { member: 5, .. }));
    let mut infinity = [0; 48];
    infinity[0] = 0xc0;
    assert!(refused(with(infinity)));
    assert!(refused(with([0xff; 48])));
    // On the curve, but of small order or in no subgroup: x = 0 (RFC 9380 has cofactors to clear
    // for this).
    let mut small = [0; 48];
    small[0] = 0x80;
    assert!(refused(with(small)));
    assert!(Committee::load(&raw, 32).is_ok());
}

#[test]
fn text_that_is_no_bundle_is_refused() {
    let sim = sim();
    let good = serde_json::to_string(&sim.bundle(104)).unwrap();
    let follower = Follower::new(sim.settings.clone());
    let far = " ".repeat(LARGEST_BUNDLE + 1);
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        &far,
        &good[..good.len() / 2],
        &good.replace("chain-v1", "chain-v2"),
        &good.replacen('{', "{\"x\":1,", 1),
    ] {
        assert!(
            matches!(follower.take(bad, sim.now(150)), Err(ChainError::Format(_))),
            "{:.40}",
            bad
        );
    }
    // Each byte cut or turned: refused, or it is the same bundle in other words.
    for at in (0..good.len()).step_by(211) {
        let mut bad = good.clone().into_bytes();
        bad[at] ^= 2;
        if let Ok(bad) = String::from_utf8(bad) {
            let taken = follower.take(&bad, sim.now(150));
            assert!(taken.is_err() || serde_json::from_str::<Bundle>(&bad).is_ok(), "byte {at}");
        }
    }
}
