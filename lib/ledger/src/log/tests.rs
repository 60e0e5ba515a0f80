//! Logs that replay, logs that are rejected, and the decisions about their images.

use ed25519_dalek::{SigningKey, VerifyingKey};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::note::{self, NoteKey, Role};
use crate::statement::{ApproversStatement, Change};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn public_hex(n: u8) -> String {
    measure::hex(key(n).verifying_key().as_bytes())
}

fn policy(threshold: usize) -> TrustPolicy {
    let approvers: Vec<String> = (1..=3).map(public_hex).collect();
    TrustPolicy::new("home", &approvers, threshold).unwrap()
}

fn digest(n: u8) -> String {
    format!("sha256:{}", measure::hex(&[n; 32]))
}

fn line(seq: u64, image: u8, status: Status, signers: &[u8]) -> String {
    let mut entry =
        LogEntry::new(ImageStatement { digest: digest(image), exp: 2000, iat: 1000, seq, status });
    for n in signers {
        entry.sign("home", &key(*n));
    }
    entry.line() + "\n"
}

fn approvers_line(seq: u64, approvers: &[u8], threshold: usize, signers: &[u8]) -> String {
    let approvers = approvers.iter().map(|n| public_hex(*n)).collect();
    let mut entry = LogEntry::new(ApproversStatement {
        approvers,
        iat: 1000,
        seq,
        status: Change::Approvers,
        threshold,
    });
    for n in signers {
        entry.sign("home", &key(*n));
    }
    entry.line() + "\n"
}

fn replay(threshold: usize, text: &str) -> Result<Log, LogError> {
    Log::replay(&policy(threshold), text, &HighWaterMark::default())
}

#[test]
fn a_revoked_image_stays_revoked_after_another_approval() {
    let mut text = line(1, 9, Status::Approved, &[1, 2]);
    assert!(matches!(
        replay(2, &text).unwrap().decide(&digest(9), 1500, 0),
        Decision::Allow(ImageApproval { seq: 1, signers: 2, .. })
    ));
    text += &line(2, 9, Status::Revoked, &[3]);
    text += &line(3, 9, Status::Approved, &[1, 2]);
    assert!(matches!(
        replay(2, &text).unwrap().decide(&digest(9), 1500, 0),
        Decision::Deny(Reason::Revoked { seq: 2, .. })
    ));
}

#[test]
fn unknown_and_expired_images_early_approvals_and_an_unset_clock_are_denied() {
    let log = replay(1, &line(1, 9, Status::Approved, &[1])).unwrap();
    assert!(matches!(log.decide(&digest(8), 1500, 0), Decision::Deny(Reason::Unknown { .. })));
    assert!(matches!(log.decide(&digest(9), 2000, 0), Decision::Deny(Reason::Expired { .. })));
    assert!(matches!(log.decide(&digest(9), 999, 0), Decision::Deny(Reason::NotYet { .. })));
    assert!(matches!(log.decide(&digest(9), 1500, 1501), Decision::Deny(Reason::Clock { .. })));
}

#[test]
fn too_few_repeated_and_foreign_signatures_are_rejected() {
    let too_few =
        |text: &str| matches!(replay(2, text), Err(LogError::Signatures { required: 2, .. }));
    assert!(too_few(&line(1, 9, Status::Approved, &[1])));
    // A signature by another key, or a repeated one, invalidates the line.
    let invalid = |text: &str| matches!(replay(2, text), Err(LogError::InvalidEntry { .. }));
    assert!(invalid(&line(1, 9, Status::Approved, &[1, 7])));
    let mut twice = LogEntry::new(ImageStatement {
        digest: digest(9),
        exp: 2000,
        iat: 1000,
        seq: 1,
        status: Status::Approved,
    });
    twice.sign("home", &key(1));
    twice.signatures.push(twice.signatures[0].clone());
    assert!(invalid(&(twice.line() + "\n")));
    let mut other_ledger = LogEntry::new(twice.statement.clone());
    other_ledger.sign("office", &key(1));
    other_ledger.sign("office", &key(2));
    assert!(invalid(&(other_ledger.line() + "\n")));
    assert!(invalid(&line(1, 9, Status::Revoked, &[7])));
    assert!(matches!(
        replay(2, &line(1, 9, Status::Revoked, &[])),
        Err(LogError::Signatures { required: 1, .. })
    ));
}

#[test]
fn every_flipped_bit_of_a_line_is_rejected() {
    let good = line(1, 9, Status::Approved, &[1]);
    for at in 0..good.len() - 1 {
        for bit in 0..8 {
            let mut bad = good.clone().into_bytes();
            bad[at] ^= 1 << bit;
            if let Ok(text) = String::from_utf8(bad) {
                assert!(replay(1, &text).is_err(), "byte {at} bit {bit}");
            }
        }
    }
}

#[test]
fn gaps_rollback_and_forks_are_rejected() {
    let (one, two) = (line(1, 9, Status::Approved, &[1]), line(2, 8, Status::Approved, &[1]));
    assert!(matches!(replay(1, &two), Err(LogError::Sequence { expected: 1, found: 2, .. })));
    let seen = replay(1, &(one.clone() + &two)).unwrap().high_water_mark();
    assert!(Log::replay(&policy(1), &(one.clone() + &two), &seen).is_ok());
    assert_eq!(
        Log::replay(&policy(1), &one, &seen).unwrap_err(),
        LogError::RolledBack { seen: 2, found: 1 }
    );
    let fork =
        one.clone() + &line(2, 7, Status::Approved, &[1]) + &line(3, 6, Status::Approved, &[1]);
    assert_eq!(Log::replay(&policy(1), &fork, &seen).unwrap_err(), LogError::Forked { seq: 2 });
    assert_eq!(longer_copy(&one, &(one.clone() + &two)), Some((one.clone() + &two).as_str()));
    assert_eq!(longer_copy(&two, &one), None);
    // A signature that a second approver adds later is no fork.
    let both = line(1, 9, Status::Approved, &[1, 2]);
    assert_eq!(longer_copy(&both, &one), Some(both.as_str()));
    assert!(Log::replay(&policy(1), &(both + &two), &seen).is_ok());
}

#[test]
fn any_other_form_than_the_canonical_one_is_rejected() {
    let good = line(1, 9, Status::Approved, &[1]);
    assert!(matches!(replay(1, &good.replacen(':', ": ", 1)), Err(LogError::NotCanonical { .. })));
    assert!(matches!(
        replay(1, &good.replacen('{', "{\"x\":1,", 1)),
        Err(LogError::InvalidEntry { .. })
    ));
    assert!(matches!(replay(1, &good.replace('\n', "\r\n")), Err(LogError::NotCanonical { .. })));
    assert!(matches!(replay(1, good.trim_end()), Err(LogError::NotCanonical { .. })));
    assert!(matches!(replay(1, "\n"), Err(LogError::Checkpoint { .. })));
    assert!(TrustPolicy::new("x", &["00".repeat(32)], 1).is_err());
    assert!(TrustPolicy::new("x", &[], 1).is_err());
}

#[test]
fn enough_current_approvers_can_replace_the_approvers() {
    let first = line(1, 9, Status::Approved, &[1, 2]);
    let changed = first.clone() + &approvers_line(2, &[4, 5], 1, &[1, 3]);
    let log = replay(2, &(changed.clone() + &line(3, 8, Status::Approved, &[4]))).unwrap();
    assert!(
        matches!(log.decide(&digest(9), 1500, 0), Decision::Allow(_)),
        "approvals by former approvers stay valid"
    );
    assert!(matches!(log.decide(&digest(8), 1500, 0), Decision::Allow(_)));
    assert_eq!(log.approvers(), (vec![public_hex(4), public_hex(5)], 1));
    // A former approver can no longer sign, not even a revocation.
    for former in [
        line(3, 8, Status::Approved, &[1, 2]),
        line(3, 9, Status::Revoked, &[1]),
        approvers_line(3, &[1], 1, &[1, 2]),
    ] {
        assert!(matches!(
            replay(2, &(changed.clone() + &former)),
            Err(LogError::InvalidEntry { line: 3, .. })
        ));
    }
    // A new approver cannot sign its own appointment.
    assert!(matches!(
        replay(2, &(first.clone() + &approvers_line(2, &[4], 1, &[4]))),
        Err(LogError::InvalidEntry { .. })
    ));
    assert!(matches!(
        replay(2, &(first.clone() + &approvers_line(2, &[4], 1, &[1]))),
        Err(LogError::Signatures { found: 1, required: 2, .. })
    ));
    for (approvers, threshold) in [(&[][..], 0), (&[], 1), (&[4], 0), (&[4], 2), (&[4, 4], 1)] {
        let text = first.clone() + &approvers_line(2, approvers, threshold, &[1, 2]);
        assert!(
            matches!(replay(2, &text), Err(LogError::InvalidEntry { line: 2, .. })),
            "{threshold} of {approvers:?}"
        );
    }
}

fn checkpoint_of(text: &str) -> Checkpoint {
    let HighWaterMark { seq, root } = replay(1, text).unwrap().high_water_mark();
    Checkpoint { origin: "log.example".into(), size: seq, root }
}

/// Adds a checkpoint that the witness cosigned at `time`.
fn cosigned(text: &str, time: u64) -> String {
    let checkpoint = checkpoint_of(text);
    let note = checkpoint.sign(&key(20)).unwrap();
    let cosignature = note::cosign(&checkpoint.body(), "w.example", &key(21), time);
    format!("{text}\n{note}{cosignature}")
}

fn vkey(name: &str, role: Role, key: VerifyingKey) -> String {
    NoteKey::new(name, role, key).unwrap().to_string()
}

/// Requires the signature of `log.example` and the cosignature of `w.example`.
fn policy_with_witness() -> TrustPolicy {
    let log = vkey("log.example", Role::Log, key(20).verifying_key());
    let witnesses = [vkey("w.example", Role::Witness, key(21).verifying_key())];
    let witness_policy = WitnessPolicy::new(&log, &witnesses, 1, 100).unwrap();
    TrustPolicy { witness_policy: Some(witness_policy), ..policy(1) }
}

fn replay_with_witness(text: &str) -> Result<Log, LogError> {
    Log::replay(&policy_with_witness(), text, &HighWaterMark::default())
}

#[test]
fn a_witnessed_log_allows_images_while_its_cosignatures_are_fresh() {
    let text = line(1, 9, Status::Approved, &[1]);
    let log = replay_with_witness(&cosigned(&text, 1500)).unwrap();
    assert_eq!((log.witnessed_at(1500), log.witnessed_at(1199)), (Some(1500), None));
    let decision = |now| log.decide(&digest(9), now, 0);
    assert!(matches!(decision(1500), Decision::Allow(_)));
    assert!(matches!(decision(1600), Decision::Allow(_)));
    assert_eq!(
        decision(1601),
        Decision::Deny(Reason::Stale { witnessed: 1500, now: 1601, max_age: 100 })
    );
    // A clock may be behind the witnesses by the tolerated difference and no more.
    assert!(matches!(decision(1200), Decision::Allow(_)));
    assert_eq!(decision(1199), Decision::Deny(Reason::Clock { now: 1199, floor: 1200 }));
    // A revocation does not expire with the cosignatures.
    let revoked = cosigned(&(text.clone() + &line(2, 9, Status::Revoked, &[2])), 1500);
    let log = replay_with_witness(&revoked).unwrap();
    assert!(matches!(log.decide(&digest(9), 9999, 0), Decision::Deny(Reason::Revoked { .. })));
}

#[test]
fn a_missing_checkpoint_and_that_of_another_log_are_rejected() {
    let (one, two) = (line(1, 9, Status::Approved, &[1]), line(2, 8, Status::Approved, &[1]));
    assert_eq!(replay_with_witness(&one).unwrap_err(), LogError::MissingCheckpoint);
    assert_eq!(replay_with_witness("").unwrap_err(), LogError::MissingCheckpoint);
    let checkpoint = |text: &str| split_checkpoint(&cosigned(text, 1500)).1.unwrap().to_owned();
    for (entries, checkpoint_log) in [
        (one.clone() + &two, &one),
        (one.clone(), &(one.clone() + &two)),
        (line(1, 8, Status::Approved, &[1]), &one),
    ] {
        let text = format!("{entries}\n{}", checkpoint(checkpoint_log));
        assert!(matches!(replay_with_witness(&text), Err(LogError::Checkpoint { .. })));
    }
    // A node that requires no checkpoint still rejects one of another log.
    assert!(replay(1, &format!("{one}\n{}", checkpoint(&one))).is_ok());
    assert!(matches!(
        replay(1, &format!("{one}{two}\n{}", checkpoint(&one))),
        Err(LogError::Checkpoint { .. })
    ));
    let empty = replay_with_witness(&cosigned("", 1500)).unwrap();
    assert_eq!(empty.high_water_mark(), HighWaterMark::default());
}

/// Writes the seeds of the fuzz targets (`cargo xtask fuzz --corpus`).
#[test]
fn seeds_of_the_fuzzer() {
    let text = line(1, 9, Status::Approved, &[1, 2])
        + &line(2, 9, Status::Revoked, &[3])
        + &approvers_line(3, &[4, 5], 2, &[1, 2]);
    let log = replay(2, &text).unwrap();
    assert_eq!(log.high_water_mark().seq, 3);
    let Some(dir) = std::env::var_os("BASALT_CORPUS") else { return };
    let write = |kind: &str, name: &str, text: &str| {
        let dir = std::path::Path::new(&dir).join(kind);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    };
    write("statement", "log", &text);
    write("statement", "line", &line(1, 9, Status::Approved, &[1, 2]));
    let checkpoint = checkpoint_of("");
    let note = checkpoint.sign(&key(9)).unwrap();
    let cosignature = note::cosign(&checkpoint.body(), "w1.example", &key(1), 1500);
    write("checkpoint", "witnessed", &(note + &cosignature));
    let log_key = vkey("log.example", Role::Log, key(9).verifying_key());
    write("checkpoint", "vkey", &log_key);
}

#[test]
fn a_log_that_is_extended_in_parts_is_that_of_the_whole_text() {
    let text: String = (1..=40)
        .map(|seq| match seq {
            10 => approvers_line(seq, &[1, 4], 1, &[1]),
            20 => line(seq, 7, Status::Revoked, &[4]),
            _ => line(seq, (seq % 13) as u8, Status::Approved, &[1]),
        })
        .collect();
    let whole = replay(1, &text).unwrap();
    let seen = HighWaterMark::default();
    for cut in [0, 1, 9, 10, 19, 20, 39, 40] {
        let at: usize = text.split_inclusive('\n').take(cut).map(str::len).sum();
        let mut log = replay(1, &text[..at]).unwrap();
        let mut extension = log.extend(&seen);
        let mut rest = &text[at..];
        while !rest.is_empty() {
            let before = extension.next_seq();
            let checked = extension.checker().check(before, rest.as_bytes());
            assert!(extension.append(checked).unwrap());
            let count = (extension.next_seq() - before) as usize;
            rest = &rest[rest.split_inclusive('\n').take(count).map(str::len).sum()..];
        }
        let mut verified = extension.finish(None).unwrap();
        assert_eq!(verified.high_water_mark(), whole.high_water_mark());
        // An extension of another state of the log is not applied.
        if cut > 0 {
            assert_eq!(Log::new(&policy(1)).apply(&mut verified, 1), Err(ForeignExtension));
        }
        while !log.apply(&mut verified, 3).unwrap() {
            assert_eq!(log.high_water_mark().seq, cut as u64, "the mark changes last");
        }
        assert_eq!(log.images().collect::<Vec<_>>(), whole.images().collect::<Vec<_>>());
        assert_eq!(log.high_water_mark(), whole.high_water_mark());
        assert_eq!((log.approvers(), log.approvers_since()), (whole.approvers(), 10));
    }
}

#[test]
fn entries_that_were_checked_for_another_place_or_approver_are_not_appended() {
    let text = line(1, 9, Status::Approved, &[1]) + &approvers_line(2, &[4], 1, &[1]);
    let third = line(3, 8, Status::Approved, &[1]);
    let mut extension = Log::new(&policy(1)).extend(&HighWaterMark::default());
    let former = extension.checker();
    assert!(!extension.append(former.check(2, third.as_bytes())).unwrap(), "another place");
    assert!(extension.append(former.check(1, text.as_bytes())).unwrap());
    // The entry is valid under the former approvers, and not under those of its place.
    let stale = former.check(3, third.as_bytes());
    assert!(!stale.has_error() && stale.len() == 1);
    assert!(!extension.append(stale).unwrap(), "other approvers");
    assert_eq!(extension.next_seq(), 3);
    assert!(extension.append(extension.checker().check(3, third.as_bytes())).is_err());
}

#[test]
fn an_approval_that_is_not_persisted_leaves_the_older_one_in_force() {
    let entry = |seq, image, status, exp| {
        let statement = ImageStatement { digest: digest(image), exp, iat: 1000, seq, status };
        let mut entry = LogEntry::new(statement);
        entry.sign("home", &key(1));
        entry.line() + "\n"
    };
    let persisted = entry(1, 7, Status::Approved, 2000)
        + &entry(2, 8, Status::Approved, 2000)
        + &entry(3, 9, Status::Approved, 2000);
    let newer = entry(4, 7, Status::Approved, 3000)
        + &entry(5, 8, Status::Revoked, 3000)
        + &entry(6, 9, Status::Approved, 1500)
        + &entry(7, 10, Status::Approved, 3000);
    let mut log = replay(1, &persisted).unwrap();
    let verify = |log: &Log| {
        let mut extension = log.extend(&HighWaterMark::default());
        let checked = extension.checker().check(4, newer.as_bytes());
        assert!(extension.append(checked).unwrap());
        extension.finish(None).unwrap()
    };
    let mut verified = verify(&log);
    // The same text comes again while it cannot be persisted.
    for _ in 0..2 {
        log.apply_unpersisted(&verified);
        let decide = |image, now| log.decide(&digest(image), now, 0);
        let is_allowed_by = |image, now, by| match decide(image, now) {
            Decision::Allow(ImageApproval { seq, .. }) => seq == by,
            Decision::Deny(_) => false,
        };
        assert!(is_allowed_by(7, 1999, 1), "the renewed approval was lost: {:?}", decide(7, 1999));
        assert!(matches!(decide(7, 2000), Decision::Deny(Reason::Expired { exp: 2000, .. })));
        assert!(matches!(decide(8, 1200), Decision::Deny(Reason::Revoked { seq: 5, .. })));
        assert!(is_allowed_by(9, 1499, 3));
        assert!(matches!(decide(9, 1500), Decision::Deny(Reason::Expired { exp: 1500, .. })));
        assert!(matches!(decide(10, 1500), Decision::Deny(Reason::Unknown { .. })));
        assert_eq!(log.high_water_mark().seq, 3);
        verified = verify(&log);
    }
    // It is persisted later.
    assert!(log.apply(&mut verified, usize::MAX).unwrap());
    let whole = replay(1, &(persisted + &newer)).unwrap();
    assert_eq!(log.images().collect::<Vec<_>>(), whole.images().collect::<Vec<_>>());
    assert_eq!(log.high_water_mark(), whole.high_water_mark());
    // A log that replaces this one does not lose a revocation that it lacks.
    let mut other = replay(1, &entry(1, 8, Status::Approved, 2000)).unwrap();
    other.apply_revocations(&log);
    assert!(matches!(other.decide(&digest(8), 1500, 0), Decision::Deny(Reason::Revoked { .. })));
}
