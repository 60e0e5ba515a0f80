//! Decisions of a client that follows the chain, and the store behind them.

use super::super::types::Update;
use super::super::*;
use super::simulated_chain::*;
use crate::decision::ChainReason;

/// An expiry that no test reaches.
const NEVER: u64 = u64::MAX;

fn text(bundle: &Bundle) -> String {
    serde_json::to_string(bundle).unwrap()
}

/// Applies a bundle at the time of a slot.
fn apply(client: &LightClient, bundle: &Bundle, slot: u64) -> Result<LightClient, ChainError> {
    client.apply_bundle(&text(bundle), time(slot))
}

/// Makes a chain in Capella with one record.
fn chain_with(word: Root) -> SimulatedChain {
    let mut chain = SimulatedChain::capella();
    chain.words.insert(digest(1), word);
    chain
}

/// Makes a chain in Capella whose first digest is approved.
fn chain_with_approval() -> SimulatedChain {
    chain_with(word(1, NEVER, 1))
}

#[test]
fn approved_absent_expired_and_revoked_records_are_distinguished() {
    let mut chain = chain_with_approval();
    chain.words.insert(digest(2), word(2, GENESIS_TIME + 1, 2));
    chain.words.insert(digest(3), word(3, 0, 3));
    let now = time(60);
    let decide = |client: &LightClient, n| client.decide(&digest(n), now);
    assert_eq!(decide(&chain.client(), 1), Err(ChainReason::NotFollowed));
    let client = apply(&chain.client(), &chain.bundle(24), 60).unwrap();
    let approval = decide(&client, 1).unwrap();
    assert_eq!((approval.seq, approval.at.slot), (1, 24));
    assert!(matches!(decide(&client, 2), Err(ChainReason::Expired { seq: 2, .. })));
    assert!(matches!(decide(&client, 3), Err(ChainReason::Revoked { seq: 3, .. })));
    assert_eq!(decide(&client, 9), Err(ChainReason::NotAsked));
    let empty = SimulatedChain::capella();
    let client = apply(&empty.client(), &empty.bundle(24), 60).unwrap();
    assert!(matches!(decide(&client, 1), Err(ChainReason::Absent { .. })), "absence is proved");
}

#[test]
fn an_approval_needs_fresh_state_and_a_plausible_clock() {
    let chain = chain_with_approval();
    let client = apply(&chain.client(), &chain.bundle(24), 60).unwrap();
    let time = time(24);
    assert!(client.decide(&digest(1), time + 7200).is_ok());
    assert!(matches!(
        client.decide(&digest(1), time + 7201),
        Err(ChainReason::Stale { max_age: 7200, .. })
    ));
    assert!(matches!(client.decide(&digest(1), time - 301), Err(ChainReason::Clock { .. })));
}

#[test]
fn a_node_that_requires_proof_denies_a_clear_approval() {
    let mut chain = chain_with_approval();
    chain.words.insert(digest(2), word(2, NEVER, 2));
    chain.settings.require = ApprovalLevel::Proof;
    let client = apply(&chain.client(), &chain.bundle(24), 60).unwrap();
    assert!(matches!(client.decide(&digest(1), time(60)), Err(ChainReason::NoProof { .. })));
    assert!(client.decide(&digest(2), time(60)).is_ok());
}

#[test]
fn a_revocation_counts_in_attested_state_and_an_approval_does_not() {
    let chain = chain_with_approval();
    let mut bundle = chain.bundle(24);
    let mut later = chain_with(word(3, 0, 2));
    later.words.insert(digest(2), word(1, NEVER, 3));
    // The attested block has another state than the finalized one.
    bundle.optimistic = Some(later.update(42, None, false));
    bundle.attested = Some(later.block(42, None).proofs);
    let client = apply(&chain.client(), &bundle, 60).unwrap();
    assert!(matches!(
        client.decide(&digest(1), time(60)),
        Err(ChainReason::Revoked { seq: 2, .. })
    ));
    assert!(matches!(client.decide(&digest(2), time(60)), Err(ChainReason::Absent { .. })));
    // A later finalized block does not have the revocation, because the attested block was
    // abandoned.
    let client = apply(&client, &chain.bundle(48), 80).unwrap();
    assert!(client.decide(&digest(1), time(80)).is_ok());
}

#[test]
fn committees_are_followed_over_periods_and_all_supported_forks() {
    let forks: Vec<(&str, u64)> =
        LAYOUTS.iter().enumerate().map(|(n, layout)| (layout.name, 4 * n as u64)).collect();
    let mut chain = SimulatedChain::new(&forks);
    chain.words.insert(digest(1), word(1, NEVER, 1));
    let mut client = chain.client();
    // Capella begins with epoch 8 (slot 64), Gloas with epoch 24 (slot 192).
    for finalized in (72..300).step_by(24) {
        let slot = finalized + 20;
        client = apply(&client, &chain.bundle(finalized), slot)
            .unwrap_or_else(|e| panic!("{finalized}: {e}"));
        assert_eq!(client.decide(&digest(1), time(slot)).unwrap().at.slot, finalized);
    }
    assert_eq!(client.first_missing_period(time(300)), Some(4));
    assert_eq!(
        apply(&chain.client(), &chain.bundle(24), 60),
        Err(ChainError::NoBlock { slot: 24 }),
        "before Capella no header leads to the execution layer"
    );
}

#[test]
fn heights_and_sequences_never_go_back_even_over_a_restart() {
    let mut chain = chain_with(word(1, NEVER, 5));
    let client = apply(&chain.client(), &chain.bundle(48), 90).unwrap();
    let state = serde_json::to_string(&client.persisted_state().unwrap()).unwrap();
    let restored =
        LightClient::restore(chain.settings.clone(), serde_json::from_str(&state).unwrap())
            .unwrap();
    assert_eq!(restored, client);
    assert_eq!(restored.persistent_root(), client.persistent_root());
    assert_eq!(
        apply(&restored, &chain.bundle(24), 90),
        Err(ChainError::OlderState { known: 48, found: 24 })
    );
    chain.words.insert(digest(1), word(1, NEVER, 4));
    assert_eq!(
        apply(&restored, &chain.bundle(56), 90),
        Err(ChainError::Sequence { digest: digest(1), known: 5, found: 4 })
    );
    chain.words.insert(digest(1), word(3, 0, 6));
    let revoked = apply(&restored, &chain.bundle(56), 90).unwrap();
    assert_ne!(
        revoked.persistent_root(),
        client.persistent_root(),
        "older files must not undo a revocation"
    );
}

#[test]
fn persisted_state_is_restored_as_far_as_the_settings_are_the_same() {
    let chain = chain_with(word(3, 0, 6));
    let client = apply(&chain.client(), &chain.bundle(56), 90).unwrap();
    let restore_with = |alter: &dyn Fn(&mut Settings)| {
        let mut settings = chain.settings.clone();
        alter(&mut settings);
        LightClient::restore(settings, client.persisted_state().unwrap()).unwrap()
    };
    let now = time(90);
    let decide = |client: &LightClient| client.decide(&digest(1), now);
    let other_checkpoint = restore_with(&|s| s.checkpoint = [1; 32]);
    assert!(other_checkpoint.first_missing_period(now).is_some());
    assert!(matches!(decide(&other_checkpoint), Err(ChainReason::Revoked { .. })));
    let other_contract = restore_with(&|s| s.contract.address = types::Hex([7; 20]));
    assert!(other_contract.first_missing_period(now).is_some());
    assert_eq!(decide(&other_contract), Err(ChainReason::NotAsked));
    let other_network = restore_with(&|s| s.network.genesis_validators_root = [1; 32]);
    assert!(other_network.first_missing_period(now).is_none());
    assert_eq!(decide(&other_network), Err(ChainReason::NotFollowed));
}

#[test]
fn only_wanted_digests_are_remembered() {
    let chain = chain_with_approval();
    let wanted = |asked: &Hash| *asked == digest(1);
    let client =
        chain.client().apply_bundle_for(&text(&chain.bundle(24)), time(60), &wanted).unwrap();
    assert!(client.decide(&digest(1), time(60)).is_ok());
    assert_eq!(client.decide(&digest(2), time(60)), Err(ChainReason::NotAsked));
    assert_eq!(client.status().unwrap().records, 1);
}

#[test]
fn another_form_of_a_header_does_not_lock_out_other_relays() {
    let chain = chain_with_approval();
    let good = chain.bundle(24);
    let mut padded = good.clone();
    let finality = &mut padded.finality;
    for header in [&mut finality.attested_header, finality.finalized_header.as_mut().unwrap()] {
        header.block_hash_branch.insert(0, Hash::new([0; 32]));
    }
    let client = apply(&chain.client(), &padded, 60).unwrap();
    apply(&client, &good, 60).unwrap();
    // A forged execution block does not pass for that of a known finalized or attested header.
    let forged_chain = chain_with(word(2, NEVER, 9));
    let forged = forged_chain.block(24, None);
    let mut bad = good.clone();
    let header = bad.finality.finalized_header.as_mut().unwrap();
    header.block_hash = forged.header.block_hash;
    bad.at_final = forged.proofs;
    assert!(matches!(apply(&client, &bad, 60), Err(ChainError::BlockHash { .. })));
    let mut bad = good;
    let forged = forged_chain.block(40, None);
    bad.finality.attested_header.block_hash = forged.header.block_hash;
    bad.attested = Some(forged.proofs);
    assert!(matches!(apply(&client, &bad, 60), Err(ChainError::BlockHash { .. })));
}

#[test]
fn a_whole_period_without_finality_does_not_lock_a_node_out() {
    let chain = chain_with_approval();
    let mut bundle = chain.bundle(184);
    for finalized in [None, Some(48)] {
        // In the second period no block was finalized, or only one of the first period.
        bundle.updates[1] = chain.update(104, finalized, true);
        let fresh = apply(&chain.client(), &bundle, 204).unwrap();
        assert_eq!(fresh.decide(&digest(1), time(204)).unwrap().at.slot, 184);
        // A node that followed the chain before, and was off in the meantime.
        let returning = apply(&chain.client(), &chain.bundle(24), 42).unwrap();
        apply(&returning, &bundle, 204).unwrap();
    }
}

#[test]
fn an_old_checkpoint_and_old_state_are_rejected() {
    let chain = SimulatedChain::capella();
    let max_age = MAX_CHECKPOINT_AGE_SECONDS;
    let latest = time(8) + max_age;
    let bundle = text(&chain.bundle(24));
    let client = chain.client().apply_bundle(&bundle, latest).unwrap();
    assert_eq!(
        chain.client().apply_bundle(&bundle, latest + 1),
        Err(ChainError::CheckpointTooOld { age: max_age + 1, max_age })
    );
    assert_eq!(client.first_missing_period(latest), Some(0));
    let too_late = time(24) + max_age + 1;
    assert_eq!(client.first_missing_period(too_late), None);
    assert!(matches!(
        client.apply_bundle(&bundle, too_late),
        Err(ChainError::CheckpointTooOld { .. })
    ));
}

fn slots(store: &LightClientStore) -> (u64, u64) {
    (store.finalized_header.beacon.slot, store.unforced_finalized_header.beacon.slot)
}

#[test]
fn a_forced_update_needs_two_thirds_and_approves_nothing() {
    let mut chain = chain_with_approval();
    let network = chain.settings.network.clone();
    let mut store = chain.store();
    store.process_update(&network, &chain.update(40, None, true), 60).unwrap();
    store.force_update(&network, 72).unwrap();
    assert_eq!(store.finalized_header.beacon.slot, 8, "not before a period is over");
    store.force_update(&network, 73).unwrap();
    assert_eq!(slots(&store), (40, 8));
    assert!(store.next_sync_committee.is_some());
    // The specification would force an update of fewer signers.
    let mut store = chain.store();
    chain.signers = 21;
    store.process_update(&network, &chain.update(40, Some(24), true), 60).unwrap();
    store.force_update(&network, 200).unwrap();
    assert_eq!(slots(&store), (8, 8));
    chain.signers = 22;
    store.process_update(&network, &chain.update(41, Some(24), true), 60).unwrap();
    assert_eq!(store.unforced_finalized_header.beacon.slot, 24);
}

#[test]
fn a_finalized_header_needs_two_thirds_and_an_attested_one_a_third() {
    let mut chain = SimulatedChain::capella();
    let network = chain.settings.network.clone();
    let mut store = chain.store();
    chain.signers = 10;
    assert_eq!(
        store.process_update(&network, &chain.update(40, None, false), 60),
        Err(ChainError::Participation { found: 10, size: 32 })
    );
    chain.signers = 11;
    store.process_update(&network, &chain.update(41, None, false), 60).unwrap();
    assert_eq!(store.optimistic_header.beacon.slot, 41);
    // After an update with more signers, half of their number is no longer enough.
    chain.signers = 32;
    store.process_update(&network, &chain.update(42, None, false), 60).unwrap();
    chain.signers = 16;
    store.process_update(&network, &chain.update(43, None, false), 60).unwrap();
    assert_eq!(store.optimistic_header.beacon.slot, 42);
}

#[test]
fn the_best_update_is_that_of_the_specification() {
    let mut chain = SimulatedChain::capella();
    let network = chain.settings.network.clone();
    let begin = chain.store();
    let best_of = |updates: &[&Update]| {
        let mut store = begin.clone();
        for update in updates {
            store.process_update(&network, update, 60).unwrap();
        }
        store.best_valid_update.unwrap()
    };
    let few_signers = SimulatedChain { signers: 12, ..SimulatedChain::capella() };
    let (weak, strong) = (few_signers.update(40, Some(24), true), chain.update(41, None, false));
    assert_eq!(best_of(&[&weak, &strong]), strong, "first criterion: two thirds");
    assert_eq!(best_of(&[&strong, &weak]), strong);
    let with_next = chain.update(42, None, true);
    assert_eq!(best_of(&[&strong, &with_next]), with_next, "then the next committee");
    let later = chain.update(43, None, true);
    assert_eq!(best_of(&[&later, &with_next]), with_next, "last criterion: the older one");
    chain.signers = 30;
    let fewer = chain.update(40, None, true);
    assert_eq!(best_of(&[&fewer, &later]), later, "more signers come before that");
}

/// Makes the bundle of a hostile relay from headers that committees signed: it has chosen updates,
/// no attested proofs, and a finalized header that the client already knows.
fn hostile_bundle(chain: &SimulatedChain, update: Update, attested: u64, finalized: u64) -> Bundle {
    Bundle {
        updates: vec![update],
        finality: chain.update(attested, Some(finalized), false),
        at_final: chain.block(finalized, None).proofs,
        attested: None,
        ..chain.bundle(finalized)
    }
}

#[test]
fn chosen_headers_of_a_hostile_relay_do_not_lock_out_honest_relays() {
    let chain = chain_with(word(1, u64::MAX / 2, 1));
    let apply = |client: &LightClient, bundle: &Bundle, slot| apply(client, bundle, slot).unwrap();
    let slot_of = |client: &LightClient| client.status().unwrap().slot;

    // The client forces the hostile update after a period. It skips the finalized blocks before
    // that update, and still accepts later bundles of honest relays.
    let forced = apply(&chain.client(), &chain.bundle(48), 70);
    let update = chain.update(120, None, true);
    let forced = apply(&forced, &hostile_bundle(&chain, update, 64, 48), 150);
    assert_eq!(slot_of(&forced), 48, "a forced header approves nothing");
    assert_eq!(slot_of(&apply(&forced, &chain.bundle(184), 204)), 184);

    // The hostile update has too few signers to be forced.
    let few_signers = SimulatedChain { signers: 20, ..chain_with(word(1, u64::MAX / 2, 1)) };
    let mut honest = chain.bundle(184);
    honest.updates[1] = chain.update(104, Some(48), true);
    let weak = apply(&chain.client(), &chain.bundle(48), 70);
    let update = few_signers.update(120, None, true);
    let weak = apply(&weak, &hostile_bundle(&few_signers, update, 64, 48), 150);
    assert_eq!(slot_of(&apply(&weak, &honest, 204)), 184);

    // The hostile update has enough signers, and is of the client's own period.
    let mut honest = chain.bundle(184);
    honest.updates[1] = chain.update(104, Some(40), true);
    let client = apply(&chain.client(), &chain.bundle(40), 60);
    let hostile = |slot| hostile_bundle(&chain, chain.update(slot, Some(40), true), 56, 40);
    for attested in [60, 62] {
        let strong = apply(&client, &hostile(attested), 64);
        assert_eq!(slot_of(&apply(&strong, &honest, 204)), 184);
        let strong = apply(&strong, &hostile(62), 64);
        assert_eq!(slot_of(&apply(&strong, &honest, 204)), 184);
    }
}

#[test]
fn a_relay_that_is_a_slot_ahead_hides_no_revocation() {
    let chain = chain_with(word(1, u64::MAX / 2, 1));
    let revoked = chain_with(word(3, 0, 2));
    let client = apply(&chain.client(), &chain.bundle(24), 44).unwrap();
    let now = time(60);
    assert!(client.decide(&digest(1), now).is_ok());
    // The first relay is a slot ahead, and its bundle has no attested records.
    let mut ahead = chain.bundle(24);
    (ahead.optimistic, ahead.attested) = (Some(chain.update(45, Some(24), false)), None);
    let client = apply(&client, &ahead, 60).unwrap();
    let mut honest = chain.bundle(24);
    (honest.optimistic, honest.attested) =
        (Some(revoked.update(44, Some(24), false)), Some(revoked.block(44, None).proofs));
    let informed = apply(&client, &honest, 60).unwrap();
    let decision = informed.decide(&digest(1), now);
    assert!(matches!(decision, Err(ChainReason::Revoked { seq: 2, .. })));
    // An older header that less than two thirds signed has no effect.
    let few_signers = SimulatedChain { signers: 20, ..chain_with(word(3, 0, 2)) };
    let mut weak = honest.clone();
    weak.optimistic = Some(few_signers.update(44, Some(24), false));
    assert!(apply(&client, &weak, 60).unwrap().decide(&digest(1), now).is_ok());
}

#[test]
fn a_relay_that_is_an_epoch_ahead_hides_no_revocation() {
    let chain = chain_with(word(1, u64::MAX / 2, 1));
    let revoked = chain_with(word(3, 0, 2));
    let client = apply(&chain.client(), &chain.bundle(24), 44).unwrap();
    let now = time(60);
    // The first relay has a newer finalized block, and no record of it. The second one proves the
    // revocation in the finalized block before.
    let mut ahead = chain.bundle(32);
    (ahead.at_final.records, ahead.attested) = (Default::default(), None);
    let client = apply(&client, &ahead, 60).unwrap();
    assert!(client.decide(&digest(1), now).is_ok());
    let mut honest = revoked.bundle(28);
    honest.attested = None;
    let informed = apply(&client, &honest, 60).unwrap();
    let decision = informed.decide(&digest(1), now);
    assert!(matches!(decision, Err(ChainReason::Revoked { seq: 2, .. })));
    assert_eq!(informed.status().unwrap().slot, 32, "the height does not go back");
    let is_older = |result| matches!(result, Err(ChainError::OlderState { .. }));
    assert!(is_older(apply(&informed, &honest, 60)), "the revocation is known by now");
    // An approval in that block has no effect.
    let mut approved = chain_with(word(1, u64::MAX / 4, 3)).bundle(28);
    approved.attested = None;
    assert!(is_older(apply(&client, &approved, 60)));
    // Neither has a revocation whose block was not signed.
    honest.finality.sync_aggregate = chain.sign(&chain.block(40, None).header, 45);
    assert!(is_older(apply(&client, &honest, 60)));
}
