//! What a node that follows the chain comes to.

use super::super::*;
use super::sim::*;
use crate::decision::ChainReason;

fn text(bundle: &Bundle) -> String {
    serde_json::to_string(bundle).unwrap()
}

const FAR: u64 = u64::MAX;

#[test]
fn approved_absent_expired_and_revoked_are_told_apart() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    sim.words.insert(digest(2), word(2, GENESIS + 1, 2));
    sim.words.insert(digest(3), word(3, 0, 3));
    let now = sim.now(60);
    let follower = Follower::new(sim.settings.clone());
    assert_eq!(follower.decide(&digest(1), now), Err(ChainReason::NotFollowed));
    let follower = follower.take(&text(&sim.bundle(24)), now).unwrap();
    let found = follower.decide(&digest(1), now).unwrap();
    assert_eq!((found.seq, found.at.slot), (1, 24));
    assert!(matches!(follower.decide(&digest(2), now), Err(ChainReason::Expired { seq: 2, .. })));
    assert!(matches!(follower.decide(&digest(3), now), Err(ChainReason::Revoked { seq: 3, .. })));
    assert_eq!(follower.decide(&digest(9), now), Err(ChainReason::NotAsked));
    let empty = Sim::new(&[("capella", 0)]);
    let follower =
        Follower::new(empty.settings.clone()).take(&text(&empty.bundle(24)), now).unwrap();
    assert!(
        matches!(follower.decide(&digest(1), now), Err(ChainReason::Absent { .. })),
        "absence is proved"
    );
}

#[test]
fn the_state_decides_only_while_it_is_fresh_and_the_clock_is_right() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let follower =
        Follower::new(sim.settings.clone()).take(&text(&sim.bundle(24)), sim.now(60)).unwrap();
    let time = sim.now(24);
    assert!(follower.decide(&digest(1), time + 7200).is_ok());
    assert!(matches!(
        follower.decide(&digest(1), time + 7201),
        Err(ChainReason::Stale { max_age: 7200, .. })
    ));
    assert!(matches!(follower.decide(&digest(1), time - 301), Err(ChainReason::Clock { .. })));
}

#[test]
fn who_asks_for_proof_is_not_content_with_clear() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    sim.words.insert(digest(2), word(2, FAR, 2));
    sim.settings.require = Approval::Proof;
    let follower =
        Follower::new(sim.settings.clone()).take(&text(&sim.bundle(24)), sim.now(60)).unwrap();
    assert!(matches!(follower.decide(&digest(1), sim.now(60)), Err(ChainReason::NoProof { .. })));
    assert!(follower.decide(&digest(2), sim.now(60)).is_ok());
}

#[test]
fn bad_news_counts_before_it_is_final_and_good_news_does_not() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let mut bundle = sim.bundle(24);
    let mut later = Sim { words: sim.words.clone(), ..Sim::new(&[("capella", 0)]) };
    later.words.insert(digest(1), word(3, 0, 2));
    later.words.insert(digest(2), word(1, FAR, 3));
    // The attested block has another state than the final one.
    bundle.optimistic = Some(later.update(42, None, false));
    bundle.attested = Some(later.made(42, None).proofs);
    let follower = Follower::new(sim.settings.clone()).take(&text(&bundle), sim.now(60)).unwrap();
    assert!(matches!(
        follower.decide(&digest(1), sim.now(60)),
        Err(ChainReason::Revoked { seq: 2, .. })
    ));
    assert!(matches!(follower.decide(&digest(2), sim.now(60)), Err(ChainReason::Absent { .. })));
    // A later final block without it: the attested one was given up.
    let follower = follower.take(&text(&sim.bundle(48)), sim.now(80)).unwrap();
    assert!(follower.decide(&digest(1), sim.now(80)).is_ok());
}

#[test]
fn committees_are_followed_over_periods_and_every_fork_that_is_known() {
    let forks: Vec<(&str, u64)> =
        LAYOUTS.iter().enumerate().map(|(n, layout)| (layout.name, 4 * n as u64)).collect();
    let mut sim = Sim::new(&forks);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let mut follower = Follower::new(sim.settings.clone());
    // Capella begins with epoch 8, slot 64; Gloas with epoch 24, slot 192.
    for finalized in (72..300).step_by(24) {
        follower = follower
            .take(&text(&sim.bundle(finalized)), sim.now(finalized + 20))
            .unwrap_or_else(|e| panic!("{finalized}: {e}"));
        assert_eq!(
            follower.decide(&digest(1), sim.now(finalized + 20)).unwrap().at.slot,
            finalized
        );
    }
    assert_eq!(follower.period(sim.now(300)), Some(4));
    let before = Follower::new(sim.settings.clone()).take(&text(&sim.bundle(24)), sim.now(60));
    assert_eq!(
        before,
        Err(ChainError::NoBlock { slot: 24 }),
        "before Capella nothing leads to the execution layer"
    );
}

#[test]
fn heights_and_sequences_never_go_back_not_even_over_a_restart() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 5));
    let follower =
        Follower::new(sim.settings.clone()).take(&text(&sim.bundle(48)), sim.now(90)).unwrap();
    let kept = serde_json::to_string(&follower.saved().unwrap()).unwrap();
    let restored =
        Follower::restore(sim.settings.clone(), serde_json::from_str(&kept).unwrap()).unwrap();
    assert_eq!(restored, follower);
    assert_eq!(restored.essence(), follower.essence());
    assert_eq!(
        restored.take(&text(&sim.bundle(24)), sim.now(90)),
        Err(ChainError::Older { what: "final", known: 48, found: 24 })
    );
    sim.words.insert(digest(1), word(1, FAR, 4));
    let refused = restored.take(&text(&sim.bundle(56)), sim.now(90));
    assert_eq!(refused, Err(ChainError::Sequence { digest: digest(1), known: 5, found: 4 }));
    sim.words.insert(digest(1), word(3, 0, 6));
    let revoked = restored.take(&text(&sim.bundle(56)), sim.now(90)).unwrap();
    assert_ne!(
        revoked.essence(),
        follower.essence(),
        "a revocation must not be undone by older files"
    );
    // Another checkpoint is pinned: what was followed goes on. Another contract: its records begin
    // anew. Another network: all of it does.
    let kept = || revoked.saved().unwrap();
    let with = |alter: &dyn Fn(&mut Settings)| {
        let mut settings = sim.settings.clone();
        alter(&mut settings);
        Follower::restore(settings, kept()).unwrap()
    };
    let now = sim.now(90);
    let anew = with(&|s| s.checkpoint = [1; 32]);
    assert!(
        anew.period(now).is_some()
            && matches!(anew.decide(&digest(1), now), Err(ChainReason::Revoked { .. }))
    );
    let other = with(&|s| s.contract.address = types::Hex([7; 20]));
    assert!(
        other.period(now).is_some() && other.decide(&digest(1), now) == Err(ChainReason::NotAsked)
    );
    let elsewhere = with(&|s| s.network.genesis_validators_root = [1; 32]);
    assert!(
        elsewhere.period(now).is_none()
            && elsewhere.decide(&digest(1), now) == Err(ChainReason::NotFollowed)
    );
}

#[test]
fn only_what_was_asked_for_is_remembered() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let bundle = text(&sim.bundle(24));
    let follower = Follower::new(sim.settings.clone())
        .take_for(&bundle, sim.now(60), &|asked| *asked == digest(1))
        .unwrap();
    assert!(follower.decide(&digest(1), sim.now(60)).is_ok());
    assert_eq!(follower.decide(&digest(2), sim.now(60)), Err(ChainReason::NotAsked));
    assert_eq!(follower.view().unwrap().records, 1);
}

#[test]
fn no_relay_shuts_out_the_others_by_writing_a_header_in_another_way() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let (good, now) = (sim.bundle(24), sim.now(60));
    let mut padded = good.clone();
    for header in
        [&mut padded.finality.attested_header, padded.finality.finalized_header.as_mut().unwrap()]
    {
        header.block_hash_branch.insert(0, Hash::new([0; 32]));
    }
    let follower = Follower::new(sim.settings.clone()).take(&text(&padded), now).unwrap();
    follower.take(&text(&good), now).unwrap();
    // Nor has anybody a block of his own taken for one that is final or attested already.
    let mut own = Sim::new(&[("capella", 0)]);
    own.words.insert(digest(1), word(2, FAR, 9));
    let forged = own.made(24, None);
    let mut bad = good.clone();
    let header = bad.finality.finalized_header.as_mut().unwrap();
    header.block_hash = forged.header.block_hash;
    bad.at_final = forged.proofs;
    assert!(matches!(follower.take(&text(&bad), now), Err(ChainError::BlockHash { .. })));
    let mut bad = good;
    let forged = own.made(40, None);
    bad.finality.attested_header.block_hash = forged.header.block_hash;
    bad.attested = Some(forged.proofs);
    assert!(matches!(follower.take(&text(&bad), now), Err(ChainError::BlockHash { .. })));
}

#[test]
fn a_whole_period_without_finality_does_not_keep_a_node_out() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let mut bundle = sim.bundle(184);
    let now = sim.now(204);
    for finalized in [None, Some(48)] {
        // In the second period nothing became final, or only what was so in the first.
        bundle.updates[1] = sim.update(104, finalized, true);
        let begun = Follower::new(sim.settings.clone());
        let fresh = begun.take(&text(&bundle), now).unwrap();
        assert_eq!(fresh.decide(&digest(1), now).unwrap().at.slot, 184);
        // One that was there before, and off meanwhile.
        let slept = begun.take(&text(&sim.bundle(24)), sim.now(42)).unwrap();
        slept.take(&text(&bundle), now).unwrap();
    }
}

#[test]
fn an_old_checkpoint_is_refused_and_so_is_a_node_that_slept_too_long() {
    let sim = Sim::new(&[("capella", 0)]);
    let late = sim.now(8) + OLDEST_CHECKPOINT;
    let bundle = text(&sim.bundle(24));
    let follower = Follower::new(sim.settings.clone()).take(&bundle, late).unwrap();
    let refused = Follower::new(sim.settings.clone()).take(&bundle, late + 1);
    assert_eq!(
        refused,
        Err(ChainError::CheckpointTooOld { age: OLDEST_CHECKPOINT + 1, most: OLDEST_CHECKPOINT })
    );
    assert_eq!(follower.period(late), Some(0));
    assert_eq!(follower.period(sim.now(24) + OLDEST_CHECKPOINT + 1), None);
    assert!(matches!(
        follower.take(&bundle, sim.now(24) + OLDEST_CHECKPOINT + 1),
        Err(ChainError::CheckpointTooOld { .. })
    ));
}

#[test]
fn a_period_without_finality_is_passed_by_what_two_thirds_signed_and_approves_nothing() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, FAR, 1));
    let network = sim.settings.network.clone();
    let (checkpoint, bootstrap) = (sim.settings.checkpoint, sim.bootstrap());
    let begin = || Store::bootstrap(&network, &checkpoint, &bootstrap).unwrap();
    let mut store = begin();
    store.process(&network, &sim.update(40, None, true), 60).unwrap();
    store.force(&network, 72).unwrap();
    assert_eq!(store.finalized.beacon.slot, 8, "not before a period is over");
    store.force(&network, 73).unwrap();
    assert_eq!((store.finalized.beacon.slot, store.last_final.beacon.slot), (40, 8));
    assert!(store.next.is_some());
    // Few of the committee cannot do that, though the specification would let them.
    sim.signers = 21;
    let mut store = begin();
    store.process(&network, &sim.update(40, Some(24), true), 60).unwrap();
    store.force(&network, 200).unwrap();
    assert_eq!((store.finalized.beacon.slot, store.last_final.beacon.slot), (8, 8));
    sim.signers = 22;
    store.process(&network, &sim.update(41, Some(24), true), 60).unwrap();
    assert_eq!(store.last_final.beacon.slot, 24);
}

#[test]
fn two_thirds_make_final_and_a_third_makes_attested() {
    let mut sim = Sim::new(&[("capella", 0)]);
    let network = sim.settings.network.clone();
    let mut store = Store::bootstrap(&network, &sim.settings.checkpoint, &sim.bootstrap()).unwrap();
    sim.signers = 10;
    let refused = store.process(&network, &sim.update(40, None, false), 60);
    assert_eq!(refused, Err(ChainError::Participation { found: 10, size: 32 }));
    sim.signers = 11;
    store.process(&network, &sim.update(41, None, false), 60).unwrap();
    assert_eq!(store.optimistic.beacon.slot, 41);
    // Once more have been seen, half of them must be there again.
    sim.signers = 32;
    store.process(&network, &sim.update(42, None, false), 60).unwrap();
    sim.signers = 16;
    store.process(&network, &sim.update(43, None, false), 60).unwrap();
    assert_eq!(store.optimistic.beacon.slot, 42);
}

#[test]
fn the_best_update_is_the_one_that_the_specification_names() {
    let mut sim = Sim::new(&[("capella", 0)]);
    let network = sim.settings.network.clone();
    let (checkpoint, bootstrap) = (sim.settings.checkpoint, sim.bootstrap());
    let best_of = |updates: &[&types::Update]| {
        let mut store = Store::bootstrap(&network, &checkpoint, &bootstrap).unwrap();
        for update in updates {
            store.process(&network, update, 60).unwrap();
        }
        store.best.unwrap()
    };
    let few = Sim { signers: 12, ..Sim::new(&[("capella", 0)]) };
    let (weak, many) = (few.update(40, Some(24), true), sim.update(41, None, false));
    assert_eq!(best_of(&[&weak, &many]), many, "two thirds before all else");
    assert_eq!(best_of(&[&many, &weak]), many);
    let with_next = sim.update(42, None, true);
    assert_eq!(best_of(&[&many, &with_next]), with_next, "then who names the next committee");
    let later = sim.update(43, None, true);
    assert_eq!(best_of(&[&later, &with_next]), with_next, "then the older one");
    sim.signers = 30;
    let fewer = sim.update(40, None, true);
    assert_eq!(best_of(&[&fewer, &later]), later, "but more signers first");
}

/// What a hostile relay makes of heads that committees signed: no finality of its own, the final
/// header that is known already.
fn planted(sim: &Sim, updates: Vec<types::Update>, attested: u64, finalized: u64) -> Bundle {
    let finality = sim.update(attested, Some(finalized), false);
    Bundle {
        updates,
        finality,
        at_final: sim.made(finalized, None).proofs,
        attested: None,
        ..sim.bundle(finalized)
    }
}

#[test]
fn no_head_that_a_relay_plants_shuts_out_what_honest_ones_give_later() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, u64::MAX / 2, 1));
    let begun = || Follower::new(sim.settings.clone());
    let take = |follower: Follower, bundle: &Bundle, slot: u64| {
        follower.take(&text(bundle), sim.now(slot)).unwrap()
    };
    let few = Sim { signers: 20, ..Sim::new(&[("capella", 0)]) };
    let few = Sim { words: sim.words.clone(), ..few };

    // Taken by force once a period had passed: what was final in between is passed by and refuses
    // nothing.
    let passed = take(begun(), &sim.bundle(48), 70);
    let passed = take(passed, &planted(&sim, vec![sim.update(120, None, true)], 64, 48), 150);
    assert_eq!(passed.view().unwrap().slot, 48, "it decides nothing");
    assert_eq!(take(passed, &sim.bundle(184), 204).view().unwrap().slot, 184);

    // Signed by too few to be of use.
    let mut honest = sim.bundle(184);
    honest.updates[1] = sim.update(104, Some(48), true);
    let weak = take(begun(), &sim.bundle(48), 70);
    let weak = take(weak, &planted(&few, vec![few.update(120, None, true)], 64, 48), 150);
    assert_eq!(take(weak, &honest, 204).view().unwrap().slot, 184);

    // Signed by enough, and of the old period.
    let mut honest = sim.bundle(184);
    honest.updates[1] = sim.update(104, Some(40), true);
    let strong = take(begun(), &sim.bundle(40), 60);
    for attested in [60, 62] {
        let strong = take(
            strong.clone(),
            &planted(&sim, vec![sim.update(attested, Some(40), true)], 56, 40),
            64,
        );
        assert_eq!(take(strong.clone(), &honest, 204).view().unwrap().slot, 184);
        let strong = take(strong, &planted(&sim, vec![sim.update(62, Some(40), true)], 56, 40), 64);
        assert_eq!(take(strong, &honest, 204).view().unwrap().slot, 184);
    }
}

#[test]
fn who_is_ahead_hides_no_revocation_that_another_proves() {
    let mut sim = Sim::new(&[("capella", 0)]);
    sim.words.insert(digest(1), word(1, u64::MAX / 2, 1));
    let mut revoked = Sim::new(&[("capella", 0)]);
    revoked.words.insert(digest(1), word(3, 0, 2));
    let follower =
        Follower::new(sim.settings.clone()).take(&text(&sim.bundle(24)), sim.now(44)).unwrap();
    let at = sim.now(60);
    assert!(follower.decide(&digest(1), at).is_ok());
    // A slot ahead, without a word of what the state has.
    let mut ahead = sim.bundle(24);
    (ahead.optimistic, ahead.attested) = (Some(sim.update(45, Some(24), false)), None);
    let silenced = follower.take(&text(&ahead), at).unwrap();
    let mut honest = sim.bundle(24);
    (honest.optimistic, honest.attested) =
        (Some(revoked.update(44, Some(24), false)), Some(revoked.made(44, None).proofs));
    let told = silenced.take(&text(&honest), at).unwrap();
    assert!(matches!(told.decide(&digest(1), at), Err(ChainReason::Revoked { seq: 2, .. })));
    // Of what less than two thirds signed an older one says nothing.
    let few = Sim { signers: 20, words: revoked.words.clone(), ..Sim::new(&[("capella", 0)]) };
    let mut weak = honest.clone();
    weak.optimistic = Some(few.update(44, Some(24), false));
    assert!(silenced.take(&text(&weak), at).unwrap().decide(&digest(1), at).is_ok());

    // An epoch ahead, with a final block and no record of it; the other proves the revocation in
    // the final block before.
    let mut ahead = sim.bundle(32);
    (ahead.at_final.records, ahead.attested) = (Default::default(), None);
    let silenced = follower.take(&text(&ahead), at).unwrap();
    assert!(silenced.decide(&digest(1), at).is_ok());
    let mut honest = revoked.bundle(28);
    honest.attested = None;
    let told = silenced.take(&text(&honest), at).unwrap();
    assert!(matches!(told.decide(&digest(1), at), Err(ChainReason::Revoked { seq: 2, .. })));
    assert_eq!(told.view().unwrap().slot, 32, "no height goes back");
    assert!(
        matches!(told.take(&text(&honest), at), Err(ChainError::Older { .. })),
        "nothing new in it"
    );
    // An approval from there is none.
    let mut longer = Sim::new(&[("capella", 0)]);
    longer.words.insert(digest(1), word(1, u64::MAX / 4, 3));
    let mut approved = longer.bundle(28);
    approved.attested = None;
    assert!(matches!(silenced.take(&text(&approved), at), Err(ChainError::Older { .. })));
    // Nor does a revocation count that was not signed.
    honest.finality.sync_aggregate = sim.sign(&sim.made(40, None).header, 45);
    assert!(matches!(silenced.take(&text(&honest), at), Err(ChainError::Older { .. })));
}
