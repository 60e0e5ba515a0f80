//! Texts of every kind, compared with a replay of the whole text, and what their verification
//! costs.

use ledger::{
    ApproversStatement, Change, ImageStatement, SigningKey, Statement, Status, split_checkpoint,
};

use super::*;

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn hex(n: u8) -> String {
    measure::hex(key(n).verifying_key().as_bytes())
}

fn policy() -> Arc<TrustPolicy> {
    Arc::new(TrustPolicy::new("t", &[hex(1), hex(2)], 1).unwrap())
}

fn line(statement: impl Into<Statement>, signers: &[u8]) -> String {
    let mut entry = LogEntry::new(statement);
    signers.iter().for_each(|n| entry.sign("t", &key(*n)));
    entry.line() + "\n"
}

fn image(seq: u64, status: Status, signers: &[u8]) -> String {
    let digest = format!("sha256:{seq:064x}");
    line(ImageStatement { digest, exp: 2000, iat: 1000, seq, status }, signers)
}

fn approvers(seq: u64, approvers: &[u8], signers: &[u8]) -> String {
    let approvers = approvers.iter().map(|n| hex(*n)).collect();
    let status = Change::Approvers;
    line(ApproversStatement { approvers, iat: 1000, seq, status, threshold: 1 }, signers)
}

fn lines(seqs: std::ops::RangeInclusive<u64>, signers: &[u8]) -> String {
    seqs.map(|seq| image(seq, Status::Approved, signers)).collect()
}

/// A node with a log on disk.
struct Node {
    dir: tempfile::TempDir,
    log: Log,
    text: String,
}

impl Node {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("log"), text).unwrap();
        let log = Log::replay(&policy(), text, &HighWaterMark::default()).unwrap();
        Self { dir, log, text: text.to_owned() }
    }

    fn base(&self) -> Base {
        let seen = self.log.high_water_mark();
        Base {
            policy: policy(),
            generation: 1,
            stored: StoredLog::open_text(&self.dir.path().join("log")).unwrap(),
            extension: self.log.extend(&seen),
            approvers_since: self.log.approvers_since(),
            seen,
            is_persisted: true,
            spool: self.dir.path().join("spool"),
        }
    }

    fn take(&self, text: &str) -> Report {
        self.take_again(text, 0, None)
    }

    fn take_again(&self, text: &str, start: u64, refused: Option<&Refusal>) -> Report {
        let mut part = &text.as_bytes()[start as usize..];
        run(self.base(), &mut part, start, refused)
    }

    /// Takes a text that is valid. Requires the result of a replay of the whole text.
    fn assert_taken(&self, text: &str, entries: u64) {
        let Report { result, cost, refusal } = self.take(text);
        let Ok(Intake::Verified(candidate)) = result else { panic!("not taken: {cost:?}") };
        assert!(refusal.is_none());
        assert_eq!(cost.entries, entries, "entries that were verified");
        let replayed =
            Log::replay(&policy(), text, &self.log.high_water_mark()).unwrap().high_water_mark();
        assert_eq!(candidate.verified.high_water_mark(), replayed);
        let mut kept = String::new();
        candidate.into_reader().unwrap().read_to_string(&mut kept).unwrap();
        assert_eq!(kept, text);
    }

    fn rejection(&self, text: &str) -> (String, u64) {
        let Report { result, cost, .. } = self.take(text);
        let Err(rejection) = result else { panic!("not rejected") };
        (rejection.to_string(), cost.entries)
    }
}

#[test]
fn only_new_entries_are_verified() {
    let node = Node::new(&lines(1..=300, &[1]));
    assert!(matches!(node.take(&node.text).result, Ok(Intake::Unchanged)));
    assert_eq!(node.take(&node.text).cost, Cost::default());
    node.assert_taken(&(node.text.clone() + &lines(301..=301, &[1])), 1);
    node.assert_taken(&(node.text.clone() + &lines(301..=900, &[1, 2])), 600);
    Node::new("").assert_taken(&node.text, 300);
}

#[test]
fn entries_by_other_approvers_are_verified_under_them() {
    let node = Node::new(&lines(1..=2, &[1]));
    let changed = node.text.clone() + &approvers(3, &[3], &[2]);
    let longer = changed.clone() + &lines(4..=300, &[3]);
    // Entries that were verified under the former approvers first do not count as invalid.
    let Report { result, cost, .. } = node.take(&longer);
    assert!(matches!(result, Ok(Intake::Verified(_))));
    assert!((298..500).contains(&cost.entries), "{cost:?}");
    let (problem, _) = node.rejection(&(changed + &lines(4..=300, &[1])));
    assert!(problem.contains("line 4 is not a valid log entry"), "{problem}");
}

#[test]
fn a_copy_with_further_signatures_is_verified_from_its_first_line() {
    let node = Node::new(&lines(1..=3, &[1]));
    let signed = lines(1..=1, &[1]) + &lines(2..=2, &[1, 2]) + &lines(3..=4, &[1]);
    node.assert_taken(&signed, 5);
    // An invalid signature costs one verification, unless the approvers were others.
    let forged = node.text.replacen("\"sig\":\"", "\"sig\":\"00", 1);
    assert_eq!(node.rejection(&forged).1, 1);
}

#[test]
fn forks_older_copies_and_junk_are_rejected_with_little_effort() {
    let node = Node::new(&lines(1..=100, &[1]));
    let (older, fork) = (lines(1..=40, &[1]), lines(1..=41, &[1]));
    let (problem, cost) = node.rejection(&older);
    assert!(problem.contains("ends at entry 40") && cost == 0, "{problem}, {cost}");
    let (problem, cost) = node.rejection("");
    assert!(problem.contains("ends at entry 0") && cost == 0, "{problem}, {cost}");
    let other = image(42, Status::Approved, &[1]).replace("\"seq\":42", "\"seq\":43");
    for (text, expected) in [
        (fork.clone() + &image(42, Status::Revoked, &[1]), "log entry 42"),
        (fork.clone() + &other, "line 42 is not a valid"),
        (fork.clone() + "junk\n", "line 42 is not a valid"),
        (fork.clone() + &"x".repeat(200_000), "too long"),
        (node.text.clone() + "junk\n" + &"x".repeat(9_000_000), "line 101 is not a valid"),
        (node.text.clone() + &"x".repeat(9_000_000), "too long"),
        (node.text.clone() + "{}", "line 101 is not"),
        (node.text.clone() + "\n", "checkpoint"),
        (node.text.clone() + "\n" + &"x".repeat(9_000_000), "the note has"),
        (node.text.clone() + &lines(102..=102, &[1]), "has sequence 102, expected 101"),
    ] {
        let (problem, cost) = node.rejection(&text);
        assert!(problem.contains(expected), "{problem}; expected: {expected}");
        assert!(cost <= 1, "{problem}: {cost}");
    }
    assert!(std::fs::read_dir(node.dir.path()).unwrap().count() == 1, "nothing was kept");
}

#[test]
fn what_was_refused_once_costs_no_verification() {
    let node = Node::new(&lines(1..=100, &[1]));
    let bad = image(700, Status::Approved, &[3]).replace("\"seq\":700", "\"seq\":101");
    let long = lines(101..=900, &[1]) + &bad;
    for (rest, entries) in [(bad.clone() + &lines(102..=109, &[1]), 1), (long, 801)] {
        let text = node.text.clone() + &rest;
        let first = node.take(&text);
        assert!(first.cost.entries <= entries && first.cost.entries > 0, "{:?}", first.cost);
        let refused = first.refusal.unwrap();
        let again = node.take_again(&text, 0, Some(&refused));
        assert!(matches!(again.result, Err(Rejection::Known(_))));
        assert_eq!(again.cost, Cost::default());
        // The same text, read from the last known entry on.
        let start = node.base().stored.last_line_start().unwrap();
        let again = node.take_again(&text, start, Some(&refused));
        assert!(matches!(again.result, Err(Rejection::Known(_))));
        // Another text is verified.
        let good = node.text.clone() + &lines(101..=1000, &[1]);
        match node.take_again(&good, 0, Some(&refused)).result {
            Ok(Intake::Verified(_)) => {}
            Err(Rejection::Changed) => assert!(refused.len > MAX_HELD_BYTES),
            _ => panic!("refused"),
        }
        // After a change of the log the text is verified again.
        let mut base = node.base();
        base.generation += 1;
        let changed = run(base, &mut text.as_bytes(), 0, Some(&refused));
        assert!(matches!(changed.result, Err(Rejection::Log(_))));
    }
}

#[test]
fn a_part_of_the_log_must_begin_with_the_last_known_entry() {
    let node = Node::new(&lines(1..=100, &[1]));
    let start = node.base().stored.last_line_start().unwrap();
    let longer = node.text.clone() + &lines(101..=102, &[1]);
    let report = node.take_again(&longer, start, None);
    assert!(matches!(report.result, Ok(Intake::Verified(_))));
    assert_eq!(report.cost.entries, 2);
    assert!(matches!(node.take_again(&node.text, start, None).result, Ok(Intake::Unchanged)));
    let signed = lines(1..=100, &[1, 2]);
    let report = node.take_again(&signed, start, None);
    assert!(matches!(report.result, Err(Rejection::Misaligned)));
    assert_eq!(report.cost, Cost::default());
}

#[test]
fn a_text_that_breaks_off_is_not_taken() {
    let node = Node::new(&lines(1..=3, &[1]));
    let text = node.text.clone() + &lines(4..=4, &[1]);
    assert_eq!(split_checkpoint(&text).1, None);
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
    for len in [0, 10, node.text.len(), text.len()] {
        let mut input = text.as_bytes()[..len].chain(Broken);
        let report = run(node.base(), &mut input, 0, None);
        assert!(matches!(report.result, Err(Rejection::Input(_))), "{len}");
        assert!(report.refusal.is_none());
    }
}
