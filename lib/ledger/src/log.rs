use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use sha2::{Digest as _, Sha256};

use crate::merkle::{self, Hash, Tree};
use crate::{
    ApproversStatement, Decision, Evidence, ImageStatement, LogEntry, Reason, Statement, Status,
    Witnessing, checkpoint,
};

/// A log of more lines than this is refused.
const MOST_LINES: usize = 100_000;
/// Room for the signatures of as many approvers as there can be.
const LONGEST_LINE: usize = 32 * 1024;
const MOST_APPROVERS: usize = 64;

/// Whose signatures count.
#[derive(Debug, Clone)]
pub struct TrustPolicy {
    pub name: String,
    /// Of the first statements; later ones may change them.
    approvers: Approvers,
    /// What a log must be signed and seen by besides.
    pub witnessing: Option<Witnessing>,
}

#[derive(Debug, Clone)]
struct Approvers {
    keys: Vec<VerifyingKey>,
    threshold: usize,
}

/// The furthest point of a log that a node has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HighWater {
    pub seq: u64,
    /// Of the Merkle tree over the signed bytes of all statements. Signatures are not in it: a
    /// further approver may add his later.
    pub root: Hash,
}

impl Default for HighWater {
    fn default() -> Self {
        Self { seq: 0, root: Tree::default().root() }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    #[error("line {line} is not a statement: {problem}")]
    NotAStatement { line: usize, problem: String },
    #[error("line {line} is not in canonical form (fixed order, no white space)")]
    NotCanonical { line: usize },
    #[error(
        "line {line} has sequence {found}, expected {expected}: statements are missing or in another order"
    )]
    Sequence { line: usize, expected: u64, found: u64 },
    #[error(
        "line {line} is signed by {found} of the approvers of that moment, {needed} are needed"
    )]
    Signatures { line: usize, found: usize, needed: usize },
    #[error("line {line}: it would expire at {exp}, before it holds at {iat}")]
    Times { line: usize, iat: u64, exp: u64 },
    #[error(
        "the log ends at {found}, this node has already seen {seen}: an older state is shown to it"
    )]
    RolledBack { seen: u64, found: u64 },
    #[error("statement {seq} is not the one that this node has seen: the log was forked")]
    Forked { seq: u64 },
    #[error(
        "the log is too long: more than {MOST_LINES} lines or a line of more than {LONGEST_LINE} bytes"
    )]
    TooLong,
    #[error("the log has no checkpoint and this node asks for one: trustctl log cosign")]
    NoCheckpoint,
    #[error("the log's checkpoint does not hold: {problem}")]
    Checkpoint { problem: String },
    #[error(
        "{found} of the node's witnesses saw this log, {needed} are needed: trustctl log cosign"
    )]
    Cosignatures { found: usize, needed: usize },
    #[error("the policy is not usable: {0}")]
    Policy(String),
}

impl TrustPolicy {
    pub fn new(name: &str, approvers: &[String], threshold: usize) -> Result<Self, LogError> {
        let approvers = Approvers::new(approvers, threshold).map_err(LogError::Policy)?;
        Ok(Self { name: name.to_owned(), approvers, witnessing: None })
    }

    /// Stays the same for as long as these approvers, or those whom they named, decide: SHA-256
    /// over name, threshold and keys.
    pub fn identity(&self) -> measure::Digest {
        let mut keys: Vec<&[u8]> =
            self.approvers.keys.iter().map(|key| &key.as_bytes()[..]).collect();
        keys.sort_unstable();
        let begun = Sha256::new()
            .chain_update(b"basalt-ledger-v1\0")
            .chain_update(self.name.as_bytes())
            .chain_update([0]);
        let begun = begun.chain_update((self.approvers.threshold as u64).to_be_bytes());
        keys.into_iter().fold(begun, |hasher, key| hasher.chain_update(key)).finalize().into()
    }
}

impl TryFrom<&config::Ledger> for TrustPolicy {
    type Error = LogError;

    fn try_from(settings: &config::Ledger) -> Result<Self, LogError> {
        let config::Ledger { name, approvers, threshold, checkpoints, .. } = settings;
        let witnessing = checkpoints
            .as_ref()
            .map(|c| Witnessing::new(&c.log, &c.witnesses, c.threshold, c.max_age_s))
            .transpose()?;
        Ok(Self { witnessing, ..Self::new(name, approvers, *threshold)? })
    }
}

impl Approvers {
    fn new(approvers: &[String], threshold: usize) -> Result<Self, String> {
        let mut keys: Vec<VerifyingKey> = Vec::new();
        for hex in approvers {
            let raw: Option<[u8; 32]> = measure::unhex(hex).and_then(|b| b.try_into().ok());
            let key = raw
                .and_then(|raw| VerifyingKey::from_bytes(&raw).ok())
                .filter(|key| !key.is_weak());
            let Some(key) = key else { return Err(format!("{hex} is not an Ed25519 public key")) };
            if keys.contains(&key) {
                return Err(format!("the approver {hex} is there twice"));
            }
            keys.push(key);
        }
        if threshold == 0 || threshold > keys.len() || keys.len() > MOST_APPROVERS {
            return Err(format!(
                "{threshold} of {} approvers cannot be reached, or they are more than {MOST_APPROVERS}",
                keys.len()
            ));
        }
        Ok(Self { keys, threshold })
    }

    /// Bad news needs weaker evidence: any one approver can revoke.
    fn needed(&self, statement: &Statement) -> usize {
        match statement {
            Statement::Image(ImageStatement { status: Status::Revoked, .. }) => 1,
            _ => self.threshold,
        }
    }
}

/// A replayed log.
#[derive(Debug, Clone)]
pub struct Log {
    tree: Tree,
    approvers: Approvers,
    latest: BTreeMap<String, (ImageStatement, usize)>,
    /// Of all statements together.
    signatures: usize,
    /// When its witnesses saw it, the newest first, and how many of them are asked for.
    seen: Vec<u64>,
    witnessing: Option<Witnessing>,
}

/// The two parts of a log's file: the statements, a line each, and after an empty line the
/// checkpoint, which may be missing.
pub fn parts(text: &str) -> (&str, Option<&str>) {
    if let Some(checkpoint) = text.strip_prefix('\n') {
        return ("", Some(checkpoint));
    }
    text.split_once("\n\n").map_or((text, None), |(statements, checkpoint)| {
        (&text[..=statements.len()], Some(checkpoint))
    })
}

impl Log {
    /// A log without statements.
    fn new(policy: &TrustPolicy) -> Self {
        Self {
            tree: Tree::default(),
            approvers: policy.approvers.clone(),
            latest: BTreeMap::new(),
            signatures: 0,
            seen: Vec::new(),
            witnessing: policy.witnessing.clone(),
        }
    }

    /// Checks every line and the checkpoint, and refuses the whole log for one bad one. `seen` is
    /// what this node knew before.
    pub fn replay(policy: &TrustPolicy, text: &str, seen: &HighWater) -> Result<Self, LogError> {
        let mut log = Self::new(policy);
        let (statements, checkpoint) = parts(text);
        let lines = statements.lines().count();
        if lines > MOST_LINES {
            return Err(LogError::TooLong);
        }
        if statements.contains('\r') || !(statements.is_empty() || statements.ends_with('\n')) {
            return Err(LogError::NotCanonical { line: lines });
        }
        for line in statements.lines() {
            log.append(&policy.name, line)?;
            if log.tree.size() == seen.seq && log.tree.root() != seen.root {
                return Err(LogError::Forked { seq: seen.seq });
            }
        }
        if log.tree.size() < seen.seq {
            return Err(LogError::RolledBack { seen: seen.seq, found: log.tree.size() });
        }
        let witnessing = policy.witnessing.as_ref();
        log.seen = match checkpoint {
            Some(text) => checkpoint::check(text, log.tree.size(), log.tree.root(), witnessing)?,
            None if witnessing.is_some() => return Err(LogError::NoCheckpoint),
            None => Vec::new(),
        };
        Ok(log)
    }

    /// Checks one more line and takes it in.
    fn append(&mut self, ledger: &str, text: &str) -> Result<(), LogError> {
        let expected = self.tree.size() + 1;
        let line = expected as usize;
        if text.len() > LONGEST_LINE {
            return Err(LogError::TooLong);
        }
        let not = |problem: String| LogError::NotAStatement { line, problem };
        let entry: LogEntry = serde_json::from_str(text).map_err(|e| not(e.to_string()))?;
        if entry.line() != text {
            return Err(LogError::NotCanonical { line });
        }
        let found = entry.signers(ledger, &self.approvers.keys).map_err(not)?;
        let statement = entry.statement;
        if statement.seq() != expected {
            return Err(LogError::Sequence { line, expected, found: statement.seq() });
        }
        let needed = self.approvers.needed(&statement);
        if found < needed {
            return Err(LogError::Signatures { line, found, needed });
        }
        let leaf = merkle::leaf(&statement.signed_bytes(ledger));
        match statement {
            Statement::Image(image) => {
                config::valid_digest(&image.digest).map_err(not)?;
                if image.exp <= image.iat {
                    return Err(LogError::Times { line, iat: image.iat, exp: image.exp });
                }
                let revoked = self
                    .latest
                    .get(&image.digest)
                    .is_some_and(|(old, _)| old.status == Status::Revoked);
                if !revoked {
                    self.latest.insert(image.digest.clone(), (image, found));
                }
            }
            Statement::Approvers(ApproversStatement { approvers, threshold, .. }) => {
                self.approvers = Approvers::new(&approvers, threshold).map_err(not)?;
            }
        }
        self.tree.push(leaf);
        self.signatures += found;
        Ok(())
    }

    pub fn high_water(&self) -> HighWater {
        HighWater { seq: self.tree.size(), root: self.tree.root() }
    }

    /// The time that enough witnesses vouch for at `now`, in seconds since 1970.
    pub fn witnessed(&self, now: u64) -> Option<u64> {
        self.witnessing.as_ref()?.vouched(&self.seen, now)?.ok()
    }

    /// Whether it says more than another replay of the same statements: it is fresher, or as fresh
    /// with more signatures.
    pub fn better_than(&self, other: &Self, now: u64) -> bool {
        (self.witnessed(now), self.signatures) > (other.witnessed(now), other.signatures)
    }

    /// Who approves from here on (keys as hex), and how many of them an approval needs.
    pub fn approvers(&self) -> (Vec<String>, usize) {
        (
            self.approvers.keys.iter().map(|key| measure::hex(key.as_bytes())).collect(),
            self.approvers.threshold,
        )
    }

    /// The same log as if what was approved after a statement had not been; what was revoked stays
    /// so.
    #[must_use]
    pub fn without_approvals_after(mut self, seq: u64) -> Self {
        self.latest.retain(|_, (image, _)| image.seq <= seq || image.status == Status::Revoked);
        self
    }

    /// May the image with this manifest digest run at `now`? `floor` is a moment before which no
    /// clock can be right.
    pub fn decide(&self, digest: &str, now: u64, floor: u64) -> Decision {
        match self.judge(digest, now, floor) {
            Ok(evidence) => Decision::Allow(evidence),
            Err(reason) => Decision::Deny(reason),
        }
    }

    fn judge(&self, digest: &str, now: u64, floor: u64) -> Result<Evidence, Reason> {
        let digest = digest.to_owned();
        let Some((image, signers)) = self.latest.get(&digest) else {
            return Err(Reason::Unknown { digest });
        };
        let (seq, exp, iat) = (image.seq, image.exp, image.iat);
        if image.status == Status::Revoked {
            return Err(Reason::Revoked { digest, seq });
        }
        if now < floor {
            return Err(Reason::Clock { now, floor });
        }
        if let Some(witnessing) = &self.witnessing
            && let Some(vouched) = witnessing.vouched(&self.seen, now)
        {
            let witnessed = vouched.map_err(|early| Reason::Clock { now, floor: early.floor })?;
            let max_age = witnessing.max_age;
            if now.saturating_sub(witnessed) > max_age {
                return Err(Reason::Stale { witnessed, now, max_age });
            }
        }
        if now < iat {
            return Err(Reason::NotYet { digest, seq, iat, now });
        }
        if now >= exp {
            return Err(Reason::Expired { digest, seq, exp, now });
        }
        Ok(Evidence { digest, seq, exp, signers: *signers, chain: None })
    }

    /// All images that a statement speaks of, with the newest one that counts.
    pub fn images(&self) -> impl Iterator<Item = &ImageStatement> {
        self.latest.values().map(|(image, _)| image)
    }
}

/// The longer of two copies of one log; `None` if their statements part. Signatures do not count:
/// both copies are checked by whoever uses them.
pub fn longer<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    let statements = |text: &str| -> Vec<Option<Statement>> {
        parts(text)
            .0
            .lines()
            .map(|line| serde_json::from_str::<LogEntry>(line).ok().map(|entry| entry.statement))
            .collect()
    };
    let (one, two) = (statements(a), statements(b));
    let common = one.len().min(two.len());
    // A line that is no statement is like no other, not even one that is the same.
    let same = a == b || (0..common).all(|n| one[n].is_some() && one[n] == two[n]);
    same.then_some(if two.len() > one.len() || a.is_empty() { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Checkpoint, NoteKey, Role, SigningKey, note};

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn policy(threshold: usize) -> TrustPolicy {
        let approvers: Vec<String> =
            (1..=3).map(|n| measure::hex(key(n).verifying_key().as_bytes())).collect();
        TrustPolicy::new("home", &approvers, threshold).unwrap()
    }

    fn digest(n: u8) -> String {
        format!("sha256:{}", measure::hex(&[n; 32]))
    }

    fn line(seq: u64, image: u8, status: Status, signers: &[u8]) -> String {
        let mut entry = LogEntry::new(ImageStatement {
            digest: digest(image),
            exp: 2000,
            iat: 1000,
            seq,
            status,
        });
        for n in signers {
            entry.sign("home", &key(*n));
        }
        entry.line() + "\n"
    }

    fn replay(threshold: usize, text: &str) -> Result<Log, LogError> {
        Log::replay(&policy(threshold), text, &HighWater::default())
    }

    #[test]
    fn approved_then_revoked_then_approved_again_stays_revoked() {
        let mut text = line(1, 9, Status::Approved, &[1, 2]);
        assert!(matches!(
            replay(2, &text).unwrap().decide(&digest(9), 1500, 0),
            Decision::Allow(Evidence { seq: 1, signers: 2, .. })
        ));
        text += &line(2, 9, Status::Revoked, &[3]);
        text += &line(3, 9, Status::Approved, &[1, 2]);
        assert!(matches!(
            replay(2, &text).unwrap().decide(&digest(9), 1500, 0),
            Decision::Deny(Reason::Revoked { seq: 2, .. })
        ));
    }

    #[test]
    fn unknown_expired_early_and_clock_are_denied() {
        let log = replay(1, &line(1, 9, Status::Approved, &[1])).unwrap();
        assert!(matches!(log.decide(&digest(8), 1500, 0), Decision::Deny(Reason::Unknown { .. })));
        assert!(matches!(log.decide(&digest(9), 2000, 0), Decision::Deny(Reason::Expired { .. })));
        assert!(matches!(log.decide(&digest(9), 999, 0), Decision::Deny(Reason::NotYet { .. })));
        assert!(matches!(log.decide(&digest(9), 1500, 1501), Decision::Deny(Reason::Clock { .. })));
    }

    #[test]
    fn too_few_the_same_twice_strangers_and_other_ledgers_do_not_count() {
        let refused =
            |text: &str| matches!(replay(2, text), Err(LogError::Signatures { needed: 2, .. }));
        assert!(refused(&line(1, 9, Status::Approved, &[1])));
        // A stranger's signature, or the same one twice, has no business in a line at all.
        let stowaway = |text: &str| matches!(replay(2, text), Err(LogError::NotAStatement { .. }));
        assert!(stowaway(&line(1, 9, Status::Approved, &[1, 7])));
        let mut twice = LogEntry::new(ImageStatement {
            digest: digest(9),
            exp: 2000,
            iat: 1000,
            seq: 1,
            status: Status::Approved,
        });
        twice.sign("home", &key(1));
        twice.signatures.push(twice.signatures[0].clone());
        assert!(stowaway(&(twice.line() + "\n")));
        let mut other = LogEntry::new(twice.statement.clone());
        other.sign("office", &key(1));
        other.sign("office", &key(2));
        assert!(stowaway(&(other.line() + "\n")));
        assert!(stowaway(&line(1, 9, Status::Revoked, &[7])));
        assert!(matches!(
            replay(2, &line(1, 9, Status::Revoked, &[])),
            Err(LogError::Signatures { needed: 1, .. })
        ));
    }

    #[test]
    fn every_flipped_bit_of_a_line_is_refused() {
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
    fn gaps_rollback_and_forks_are_refused() {
        let (one, two) = (line(1, 9, Status::Approved, &[1]), line(2, 8, Status::Approved, &[1]));
        assert!(matches!(replay(1, &two), Err(LogError::Sequence { expected: 1, found: 2, .. })));
        let seen = replay(1, &(one.clone() + &two)).unwrap().high_water();
        assert!(Log::replay(&policy(1), &(one.clone() + &two), &seen).is_ok());
        assert_eq!(
            Log::replay(&policy(1), &one, &seen).unwrap_err(),
            LogError::RolledBack { seen: 2, found: 1 }
        );
        let fork =
            one.clone() + &line(2, 7, Status::Approved, &[1]) + &line(3, 6, Status::Approved, &[1]);
        assert_eq!(Log::replay(&policy(1), &fork, &seen).unwrap_err(), LogError::Forked { seq: 2 });
        assert_eq!(longer(&one, &(one.clone() + &two)), Some((one.clone() + &two).as_str()));
        assert_eq!(longer(&two, &one), None);
        // A second approver's later signature is no fork.
        let both = line(1, 9, Status::Approved, &[1, 2]);
        assert_eq!(longer(&both, &one), Some(both.as_str()));
        assert!(Log::replay(&policy(1), &(both + &two), &seen).is_ok());
    }

    #[test]
    fn form_is_strict() {
        let good = line(1, 9, Status::Approved, &[1]);
        assert!(matches!(
            replay(1, &good.replacen(':', ": ", 1)),
            Err(LogError::NotCanonical { .. })
        ));
        assert!(matches!(
            replay(1, &good.replacen('{', "{\"x\":1,", 1)),
            Err(LogError::NotAStatement { .. })
        ));
        assert!(matches!(
            replay(1, &good.replace('\n', "\r\n")),
            Err(LogError::NotCanonical { .. })
        ));
        assert!(matches!(replay(1, good.trim_end()), Err(LogError::NotCanonical { .. })));
        assert!(matches!(replay(1, "\n"), Err(LogError::Checkpoint { .. })));
        assert!(TrustPolicy::new("x", &["00".repeat(32)], 1).is_err());
        assert!(TrustPolicy::new("x", &[], 1).is_err());
    }

    fn hex(n: u8) -> String {
        measure::hex(key(n).verifying_key().as_bytes())
    }

    fn change(seq: u64, approvers: &[u8], threshold: usize, signers: &[u8]) -> String {
        let approvers = approvers.iter().map(|n| hex(*n)).collect();
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

    #[test]
    fn the_approvers_change_when_enough_of_the_old_ones_say_so() {
        let begin = line(1, 9, Status::Approved, &[1, 2]);
        let changed = begin.clone() + &change(2, &[4, 5], 1, &[1, 3]);
        let log = replay(2, &(changed.clone() + &line(3, 8, Status::Approved, &[4]))).unwrap();
        assert!(
            matches!(log.decide(&digest(9), 1500, 0), Decision::Allow(_)),
            "what they approved before goes on"
        );
        assert!(matches!(log.decide(&digest(8), 1500, 0), Decision::Allow(_)));
        assert_eq!(log.approvers(), (vec![hex(4), hex(5)], 1));
        // An old one counts no more, not even to revoke; a new one not before.
        for gone in [
            line(3, 8, Status::Approved, &[1, 2]),
            line(3, 9, Status::Revoked, &[1]),
            change(3, &[1], 1, &[1, 2]),
        ] {
            assert!(matches!(
                replay(2, &(changed.clone() + &gone)),
                Err(LogError::NotAStatement { line: 3, .. })
            ));
        }
        assert!(matches!(
            replay(2, &(begin.clone() + &change(2, &[4], 1, &[4]))),
            Err(LogError::NotAStatement { .. })
        ));
        assert!(matches!(
            replay(2, &(begin.clone() + &change(2, &[4], 1, &[1]))),
            Err(LogError::Signatures { found: 1, needed: 2, .. })
        ));
        for (approvers, threshold) in [(&[][..], 0), (&[], 1), (&[4], 0), (&[4], 2), (&[4, 4], 1)] {
            let text = begin.clone() + &change(2, approvers, threshold, &[1, 2]);
            assert!(
                matches!(replay(2, &text), Err(LogError::NotAStatement { line: 2, .. })),
                "{threshold} of {approvers:?}"
            );
        }
    }

    fn head(text: &str) -> Checkpoint {
        let HighWater { seq, root } = replay(1, text).unwrap().high_water();
        Checkpoint { origin: "log.example".into(), size: seq, root }
    }

    fn seen(text: &str, time: u64) -> String {
        let note = head(text).sign(&key(20)).unwrap();
        let body = note.split_inclusive('\n').take(3).collect::<String>();
        format!("{text}\n{note}{}", note::cosign(&body, "w.example", &key(21), time))
    }

    fn witnessed() -> TrustPolicy {
        let vkey =
            |name, role, n| NoteKey::new(name, role, key(n).verifying_key()).unwrap().to_string();
        let witnesses = [vkey("w.example", Role::Witness, 21)];
        let witnessing =
            Witnessing::new(&vkey("log.example", Role::Log, 20), &witnesses, 1, 100).unwrap();
        TrustPolicy { witnessing: Some(witnessing), ..policy(1) }
    }

    #[test]
    fn a_witnessed_log_counts_for_as_long_as_its_witnesses_are_fresh() {
        let text = line(1, 9, Status::Approved, &[1]);
        let log = Log::replay(&witnessed(), &seen(&text, 1500), &HighWater::default()).unwrap();
        assert_eq!((log.witnessed(1500), log.witnessed(1199)), (Some(1500), None));
        let decided = |now| log.decide(&digest(9), now, 0);
        assert!(
            matches!(decided(1500), Decision::Allow(_))
                && matches!(decided(1600), Decision::Allow(_))
        );
        assert_eq!(
            decided(1601),
            Decision::Deny(Reason::Stale { witnessed: 1500, now: 1601, max_age: 100 })
        );
        // A clock that is behind what witnesses saw is wrong, but for a little.
        assert!(matches!(decided(1200), Decision::Allow(_)));
        assert_eq!(decided(1199), Decision::Deny(Reason::Clock { now: 1199, floor: 1200 }));
        // Bad news does not grow old.
        let revoked = seen(&(text.clone() + &line(2, 9, Status::Revoked, &[2])), 1500);
        let log = Log::replay(&witnessed(), &revoked, &HighWater::default()).unwrap();
        assert!(matches!(log.decide(&digest(9), 9999, 0), Decision::Deny(Reason::Revoked { .. })));
    }

    #[test]
    fn no_checkpoint_and_one_of_another_log_are_refused() {
        let (one, two) = (line(1, 9, Status::Approved, &[1]), line(2, 8, Status::Approved, &[1]));
        let refused =
            |text: &str| Log::replay(&witnessed(), text, &HighWater::default()).unwrap_err();
        assert_eq!(refused(&one), LogError::NoCheckpoint);
        assert_eq!(refused(""), LogError::NoCheckpoint);
        let checkpoint = |text: &str| parts(&seen(text, 1500)).1.unwrap().to_owned();
        for (statements, of) in [
            (one.clone() + &two, &one),
            (one.clone(), &(one.clone() + &two)),
            (line(1, 8, Status::Approved, &[1]), &one),
        ] {
            let text = format!("{statements}\n{}", checkpoint(of));
            assert!(matches!(
                Log::replay(&witnessed(), &text, &HighWater::default()),
                Err(LogError::Checkpoint { .. })
            ));
        }
        // A node that asks for none still refuses one that is not of this log.
        assert!(replay(1, &format!("{one}\n{}", checkpoint(&one))).is_ok());
        assert!(matches!(
            replay(1, &format!("{one}{two}\n{}", checkpoint(&one))),
            Err(LogError::Checkpoint { .. })
        ));
        let empty = seen("", 1500);
        assert_eq!(
            Log::replay(&witnessed(), &empty, &HighWater::default()).unwrap().high_water(),
            HighWater::default()
        );
    }

    /// `cargo xtask fuzz --corpus`: what the fuzz targets begin with.
    #[test]
    fn seeds_of_the_fuzzer() {
        let text = line(1, 9, Status::Approved, &[1, 2])
            + &line(2, 9, Status::Revoked, &[3])
            + &change(3, &[4, 5], 2, &[1, 2]);
        let log = replay(2, &text).unwrap();
        assert_eq!(log.high_water().seq, 3);
        let Some(dir) = std::env::var_os("BASALT_CORPUS") else { return };
        let write = |kind: &str, name: &str, text: &str| {
            let dir = std::path::Path::new(&dir).join(kind);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(name), text).unwrap();
        };
        write("statement", "log", &text);
        write("statement", "line", &line(1, 9, Status::Approved, &[1, 2]));
        let empty = replay(1, "").unwrap().high_water();
        let head = Checkpoint { origin: "log.example".into(), size: empty.seq, root: empty.root };
        let note = head.sign(&key(9)).unwrap();
        let body = note.split_inclusive('\n').take(3).collect::<String>();
        write(
            "checkpoint",
            "witnessed",
            &(note + &note::cosign(&body, "w1.example", &key(1), 1500)),
        );
        write(
            "checkpoint",
            "vkey",
            &NoteKey::new("log.example", Role::Log, key(9).verifying_key()).unwrap().to_string(),
        );
    }
}
