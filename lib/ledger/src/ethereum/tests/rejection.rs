//! Every part of a bundle that can be altered, and the message with which it is rejected.

use super::super::types::*;
use super::super::*;
use super::simulated_chain::*;

type AlterBundle = fn(&mut Bundle);
type AlterSettings = fn(&mut Settings);

fn text(bundle: &Bundle) -> String {
    serde_json::to_string(bundle).unwrap()
}

fn apply(chain: &SimulatedChain, bundle: &Bundle) -> Result<LightClient, ChainError> {
    chain.client().apply_bundle(&text(bundle), time(150))
}

fn chain_with_record() -> SimulatedChain {
    let mut chain = SimulatedChain::capella();
    chain.words.insert(digest(1), word(1, u64::MAX, 1));
    chain
}

fn bootstrap(bundle: &mut Bundle) -> &mut Bootstrap {
    bundle.bootstrap.as_mut().unwrap()
}

fn record(bundle: &mut Bundle, n: u8) -> &mut RecordProof {
    bundle.at_final.records.get_mut(&digest(n)).unwrap()
}

fn account(bundle: &mut Bundle) -> &mut AccountValue {
    bundle.at_final.account.value.as_mut().unwrap()
}

fn next_committee(bundle: &mut Bundle) -> &mut SyncCommittee {
    bundle.updates[0].next_sync_committee.as_mut().unwrap()
}

fn finalized(bundle: &mut Bundle) -> &mut Header {
    bundle.finality.finalized_header.as_mut().unwrap()
}

fn aggregate(bundle: &mut Bundle) -> &mut SyncAggregate {
    &mut bundle.finality.sync_aggregate
}

const CURRENT_COMMITTEE: &str = "current sync committee";
const NEXT_COMMITTEE: &str = "next sync committee";
const FINALIZED_HEADER: &str = "finalized header";
const SIGNATURE: &str = "signature is invalid";
const ACCOUNT: &str = "contract's account";
const RECORD: &str = "proof of the record";

/// Alterations of the light client's objects.
const HEADER_CASES: &[(&str, AlterBundle, &str)] = &[
    ("no bootstrap", |b| b.bootstrap = None, "no bootstrap"),
    ("another checkpoint", |b| bootstrap(b).header.beacon.slot += 1, "pinned checkpoint"),
    (
        "altered committee",
        |b| bootstrap(b).current_sync_committee.pubkeys.swap(0, 1),
        CURRENT_COMMITTEE,
    ),
    ("short committee", |b| _ = next_committee(b).pubkeys.pop(), "31 members"),
    (
        "altered state root",
        |b| b.finality.attested_header.beacon.state_root.0[0] ^= 1,
        FINALIZED_HEADER,
    ),
    ("altered branch", |b| b.finality.finality_branch[2].0[0] ^= 1, FINALIZED_HEADER),
    ("short branch", |b| _ = b.finality.finality_branch.pop(), FINALIZED_HEADER),
    ("altered next committee", |b| next_committee(b).pubkeys.swap(3, 4), NEXT_COMMITTEE),
    (
        "altered branch of the next committee",
        |b| b.updates[0].next_sync_committee_branch[1].0[5] ^= 4,
        NEXT_COMMITTEE,
    ),
    ("branch without its committee", |b| b.updates[0].next_sync_committee = None, NEXT_COMMITTEE),
    ("branch without its header", |b| b.finality.finalized_header = None, FINALIZED_HEADER),
    ("altered signature", |b| aggregate(b).sync_committee_signature.0[40] ^= 1, SIGNATURE),
    (
        "signature of another header",
        |b| b.finality.sync_aggregate = b.updates[0].sync_aggregate.clone(),
        SIGNATURE,
    ),
    ("one participant fewer", |b| aggregate(b).sync_committee_bits.0[0] ^= 1, SIGNATURE),
    ("no participants", |b| aggregate(b).sync_committee_bits = Bytes(vec![0; 4]), "0 of 32"),
    ("participation too long", |b| aggregate(b).sync_committee_bits.0.push(0), "5 bytes"),
    ("other proposer", |b| b.finality.attested_header.beacon.proposer_index += 1, SIGNATURE),
    ("repeated update", |b| b.updates.push(b.updates[0].clone()), "one a period"),
    ("signed before the block", |b| b.finality.signature_slot = 100, "out of order"),
    ("signed in the future", |b| b.finality.signature_slot = 1000, "out of order"),
    ("missing period", |b| b.updates.clear(), "updates between them are missing"),
    ("other execution block", |b| finalized(b).block_hash = Some(digest(7)), "execution block"),
    ("no execution block", |b| finalized(b).block_hash = None, "execution block"),
];

/// Alterations of the proofs. With an empty message the bundle stays valid.
const PROOF_CASES: &[(&str, AlterBundle, &str)] = &[
    ("other block header", |b| b.at_final.header.0[100] ^= 1, "header has the hash"),
    (
        "block header of the attested block",
        |b| b.at_final.header = b.attested.as_ref().unwrap().header.clone(),
        "header has the hash",
    ),
    ("altered account", |b| account(b).nonce = 2, ACCOUNT),
    ("other storage", |b| account(b).storage = digest(7), ACCOUNT),
    ("account claimed to be absent", |b| b.at_final.account.value = None, ACCOUNT),
    ("truncated account proof", |b| _ = b.at_final.account.proof.pop(), ACCOUNT),
    ("altered record", |b| record(b, 1).word.0[31] = 2, RECORD),
    ("record claimed to be absent", |b| record(b, 1).word = digest(0), RECORD),
    (
        "absent record claimed to be present",
        |b| record(b, 2).word = Hash::new(word(1, 9, 9)),
        RECORD,
    ),
    ("truncated record proof", |b| _ = record(b, 1).proof.pop(), RECORD),
    ("empty record proof", |b| record(b, 1).proof.clear(), RECORD),
    ("record of another digest", |b| *record(b, 2) = record(b, 1).clone(), RECORD),
    (
        "altered attested record",
        |b| b.attested.as_mut().unwrap().records.get_mut(&digest(1)).unwrap().word.0[31] = 2,
        RECORD,
    ),
    (
        // The storage is the same in both blocks.
        "records of the attested block",
        |b| b.at_final.records = b.attested.as_ref().unwrap().records.clone(),
        "",
    ),
];

#[test]
fn each_alteration_is_rejected_with_its_message() {
    let chain = chain_with_record();
    let good = chain.bundle(104);
    apply(&chain, &good).unwrap();
    for (name, alter, message) in HEADER_CASES.iter().chain(PROOF_CASES) {
        let mut bad = good.clone();
        alter(&mut bad);
        match apply(&chain, &bad) {
            Ok(_) => assert!(message.is_empty(), "{name} was accepted"),
            Err(error) => {
                let error = error.to_string();
                assert!(!message.is_empty() && error.contains(message), "{name}: {error}");
            }
        }
    }
}

#[test]
fn a_bundle_that_does_not_match_the_pinned_settings_is_rejected() {
    let chain = chain_with_record();
    let bundle = text(&chain.bundle(104));
    let cases: &[(AlterSettings, &str)] = &[
        (|s| s.network.genesis_validators_root = [1; 32], SIGNATURE),
        (|s| s.network.forks[0].version = [9; 4], SIGNATURE),
        (|s| s.checkpoint = [1; 32], "pinned checkpoint"),
        (|s| s.contract.code_hash = digest(1), "code has the hash"),
        (|s| s.contract.address = Hex([1; 20]), ACCOUNT),
        (|s| s.contract.mapping_slot = 1, RECORD),
        (|s| s.network.preset = MAINNET, "32 members, expected 512"),
    ];
    for (alter, message) in cases {
        let mut settings = chain.settings.clone();
        alter(&mut settings);
        let result = LightClient::new(settings).apply_bundle(&bundle, time(150));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn a_missing_contract_is_an_error_and_not_an_empty_registry() {
    let chain = chain_with_record();
    let mut bundle = chain.bundle(104);
    let mut settings = chain.settings.clone();
    // With some addresses, the same nodes of the trie prove that the account is absent.
    bundle.at_final.account.value = None;
    let mut proved_absent = 0;
    for n in 0..=255 {
        settings.contract.address = Hex([n; 20]);
        let error =
            LightClient::new(settings.clone()).apply_bundle(&text(&bundle), time(150)).unwrap_err();
        proved_absent += usize::from(matches!(error, ChainError::NoContract { .. }));
    }
    assert!(proved_absent > 0);
}

#[test]
fn keys_outside_of_the_group_are_rejected() {
    let raw = SimulatedChain::committee(0);
    let with_key = |bytes: [u8; 48]| {
        let mut committee = raw.clone();
        committee.pubkeys[5] = Hex(bytes);
        ValidatedCommittee::new(&committee, 32).map(drop)
    };
    let rejected = |result| matches!(result, Err(ChainError::PublicKey { member: 5, .. }));
    let mut infinity = [0; 48];
    infinity[0] = 0xc0;
    assert!(rejected(with_key(infinity)));
    assert!(rejected(with_key([0xff; 48])));
    // The point with x = 0 is on the curve, but of small order or in no subgroup (RFC 9380 clears
    // cofactors for that reason).
    let mut small_order = [0; 48];
    small_order[0] = 0x80;
    assert!(rejected(with_key(small_order)));
    assert!(ValidatedCommittee::new(&raw, 32).is_ok());
}

#[test]
fn text_that_is_not_a_bundle_is_rejected() {
    let chain = chain_with_record();
    let good = text(&chain.bundle(104));
    let client = chain.client();
    let too_long = " ".repeat(MAX_BUNDLE_BYTES + 1);
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        &too_long,
        &good[..good.len() / 2],
        &good.replace("chain-v1", "chain-v2"),
        &good.replacen('{', "{\"x\":1,", 1),
    ] {
        let result = client.apply_bundle(bad, time(150));
        assert!(matches!(result, Err(ChainError::Format(_))), "{bad:.40}");
    }
    // A bundle with an altered byte is rejected, or it is still a bundle.
    for at in (0..good.len()).step_by(211) {
        let mut bad = good.clone().into_bytes();
        bad[at] ^= 2;
        if let Ok(bad) = String::from_utf8(bad) {
            let result = client.apply_bundle(&bad, time(150));
            assert!(result.is_err() || serde_json::from_str::<Bundle>(&bad).is_ok(), "byte {at}");
        }
    }
}
