//! A signature that an approver gave for one place of the log is of no use for another one.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used)]

use basalt_ledger::{
    EntryError, HighWaterMark, ImageStatement, Log, LogEntry, LogError, Signature, SigningKey,
    Status, TrustPolicy,
};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn policy() -> TrustPolicy {
    let approvers: Vec<String> =
        (1..=3).map(|n| measure::hex(key(n).verifying_key().as_bytes())).collect();
    TrustPolicy::new("home", &approvers, 2).unwrap()
}

fn statement(seq: u64, image: u8, status: Status) -> ImageStatement {
    let digest = format!("sha256:{}", measure::hex(&[image; 32]));
    ImageStatement { digest, exp: 2000, iat: 1000, seq, status }
}

fn entry(statement: ImageStatement, signers: &[u8]) -> LogEntry {
    let mut entry = LogEntry::new(statement);
    signers.iter().for_each(|n| entry.sign("home", &key(*n)));
    entry
}

fn replay(entries: &[&LogEntry], seen: &HighWaterMark) -> Result<Log, LogError> {
    let text: String = entries.iter().map(|entry| entry.line() + "\n").collect();
    Log::replay(&policy(), &text, seen)
}

#[test]
fn a_signature_counts_only_for_the_place_that_it_was_given_for() {
    let first = entry(statement(1, 9, Status::Approved), &[1, 2]);
    // Approver 1 signs entry 2. The others do not, and the log continues with another entry 2.
    let incomplete = entry(statement(2, 8, Status::Approved), &[1]);
    let other = entry(statement(2, 7, Status::Approved), &[2, 3]);
    let start = HighWaterMark::default();
    let seen = replay(&[&first, &other], &start).unwrap().high_water_mark();
    // Much later, approver 3 completes it. A node that has the log rejects it in its place, …
    let mut completed = incomplete.clone();
    completed.sign("home", &key(3));
    assert_eq!(replay(&[&first, &completed], &seen).unwrap_err(), LogError::Forked { seq: 2 });
    // … and every node rejects it in the next place, with the old number or with the new one.
    assert_eq!(
        replay(&[&first, &other, &completed], &start).unwrap_err(),
        LogError::Sequence { line: 3, expected: 3, found: 2 }
    );
    let mut moved = entry(statement(3, 8, Status::Approved), &[3]);
    let Signature { key, sig } = incomplete.signatures[0].clone();
    moved.signatures.insert(0, Signature { key, sig });
    let error = replay(&[&first, &other, &moved], &start).unwrap_err();
    assert!(
        matches!(error, LogError::InvalidEntry { line: 3, problem: EntryError::Signature(_) }),
        "{error:?}"
    );
}

#[test]
fn one_approver_takes_the_place_of_an_entry_that_is_not_complete() {
    let first = entry(statement(1, 9, Status::Approved), &[1, 2]);
    let mut incomplete = entry(statement(2, 8, Status::Approved), &[1]);
    let withdrawal = entry(statement(2, 0, Status::Revoked), &[1]);
    let start = HighWaterMark::default();
    assert!(matches!(
        replay(&[&first, &incomplete], &start),
        Err(LogError::Signatures { line: 2, found: 1, required: 2 })
    ));
    let seen = replay(&[&first, &withdrawal], &start).unwrap().high_water_mark();
    incomplete.sign("home", &key(2));
    assert_eq!(replay(&[&first, &incomplete], &seen).unwrap_err(), LogError::Forked { seq: 2 });
    // The log continues. The place can be taken again and again.
    let again = entry(statement(3, 0, Status::Revoked), &[1]);
    let later = entry(statement(4, 8, Status::Approved), &[2, 3]);
    replay(&[&first, &withdrawal, &again, &later], &seen).unwrap();
}
