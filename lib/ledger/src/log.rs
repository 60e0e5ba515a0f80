use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use sha2::{Digest as _, Sha256};

use crate::{Decision, Entry, Evidence, Reason, Status};

/// A log of more lines than this is refused.
const MOST_LINES: usize = 100_000;
const LONGEST_LINE: usize = 16 * 1024;

/// Whose signatures count.
#[derive(Debug, Clone)]
pub struct Policy {
    pub name: String,
    pub approvers: Vec<VerifyingKey>,
    pub threshold: usize,
}

/// The furthest point of a log that a node has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HighWater {
    pub seq: u64,
    /// `SHA-256(head before, signed bytes)` over all statements, starting from 32 zero bytes. Signatures are not in it:
    /// a further approver may add his later.
    pub head: [u8; 32],
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    #[error("line {line} is not a statement: {problem}")]
    NotAStatement { line: usize, problem: String },
    #[error("line {line} is not in canonical form (fixed order, no white space)")]
    NotCanonical { line: usize },
    #[error("line {line} has sequence {found}, expected {expected}: statements are missing or in another order")]
    Sequence { line: usize, expected: u64, found: u64 },
    #[error("line {line} is signed by {found} of the pinned approvers, {needed} are needed")]
    Signatures { line: usize, found: usize, needed: usize },
    #[error("line {line}: it would expire at {exp}, before it holds at {iat}")]
    Times { line: usize, iat: u64, exp: u64 },
    #[error("the log ends at {found}, this node has already seen {seen}: an older state is shown to it")]
    RolledBack { seen: u64, found: u64 },
    #[error("statement {seq} is not the one that this node has seen: the log was forked")]
    Forked { seq: u64 },
    #[error("the log is too long: more than {MOST_LINES} lines or a line of more than {LONGEST_LINE} bytes")]
    TooLong,
    #[error("the policy is not usable: {0}")]
    Policy(String),
}

impl Policy {
    pub fn new(name: &str, approvers: &[String], threshold: usize) -> Result<Self, LogError> {
        let mut keys: Vec<VerifyingKey> = Vec::new();
        for hex in approvers {
            let raw: Option<[u8; 32]> = measure::unhex(hex).and_then(|b| b.try_into().ok());
            let key = raw.and_then(|raw| VerifyingKey::from_bytes(&raw).ok()).filter(|key| !key.is_weak());
            let Some(key) = key else { return Err(LogError::Policy(format!("{hex} is not an Ed25519 public key"))) };
            if keys.contains(&key) {
                return Err(LogError::Policy(format!("the approver {hex} is there twice")));
            }
            keys.push(key);
        }
        if threshold == 0 || threshold > keys.len() {
            return Err(LogError::Policy(format!("{threshold} of {} approvers cannot be reached", keys.len())));
        }
        Ok(Self { name: name.to_owned(), approvers: keys, threshold })
    }

    /// Bad news needs weaker evidence: any one approver can revoke.
    fn needed(&self, status: Status) -> usize {
        match status {
            Status::Approved => self.threshold,
            Status::Revoked => 1,
        }
    }
}

/// A replayed log.
#[derive(Debug, Clone)]
pub struct Log {
    pub high_water: HighWater,
    latest: BTreeMap<String, (Entry, usize)>,
}

impl Log {
    /// Checks every line and refuses the whole log for one bad one. `seen` is what this node knew before.
    pub fn replay(policy: &Policy, text: &str, seen: &HighWater) -> Result<Self, LogError> {
        let mut log = Self { high_water: HighWater::default(), latest: BTreeMap::new() };
        if text.lines().count() > MOST_LINES {
            return Err(LogError::TooLong);
        }
        if text.contains('\r') || !(text.is_empty() || text.ends_with('\n')) {
            return Err(LogError::NotCanonical { line: text.lines().count() });
        }
        for line in text.lines() {
            log.append(policy, line)?;
            if log.high_water.seq == seen.seq && log.high_water.head != seen.head {
                return Err(LogError::Forked { seq: seen.seq });
            }
        }
        if log.high_water.seq < seen.seq {
            return Err(LogError::RolledBack { seen: seen.seq, found: log.high_water.seq });
        }
        Ok(log)
    }

    /// Checks one more line and takes it in.
    pub fn append(&mut self, policy: &Policy, text: &str) -> Result<(), LogError> {
        let expected = self.high_water.seq + 1;
        let line = expected as usize;
        if text.len() > LONGEST_LINE {
            return Err(LogError::TooLong);
        }
        let entry: Entry = serde_json::from_str(text).map_err(|e| LogError::NotAStatement { line, problem: e.to_string() })?;
        if entry.line() != text {
            return Err(LogError::NotCanonical { line });
        }
        entry.well_signed(&policy.name, &policy.approvers).map_err(|problem| LogError::NotAStatement { line, problem })?;
        let s = &entry.statement;
        if !is_digest(&s.digest) {
            return Err(LogError::NotAStatement {
                line,
                problem: format!("{:?} is not a digest: expected sha256: and 64 lower-case hex digits", s.digest),
            });
        }
        if s.seq != expected {
            return Err(LogError::Sequence { line, expected, found: s.seq });
        }
        if s.exp <= s.iat {
            return Err(LogError::Times { line, iat: s.iat, exp: s.exp });
        }
        let (found, needed) = (entry.signers(&policy.name, &policy.approvers), policy.needed(s.status));
        if found < needed {
            return Err(LogError::Signatures { line, found, needed });
        }
        self.high_water = HighWater {
            seq: expected,
            head: Sha256::new().chain_update(self.high_water.head).chain_update(s.signed_bytes(&policy.name)).finalize().into(),
        };
        let revoked = self.latest.get(&s.digest).is_some_and(|(old, _)| old.statement.status == Status::Revoked);
        if !revoked {
            self.latest.insert(s.digest.clone(), (entry, found));
        }
        Ok(())
    }

    /// The same log as if what was approved after a statement had not been; what was revoked stays so.
    #[must_use]
    pub fn without_approvals_after(mut self, seq: u64) -> Self {
        self.latest.retain(|_, (entry, _)| entry.statement.seq <= seq || entry.statement.status == Status::Revoked);
        self
    }

    /// May the image with this manifest digest run at `now`? `floor` is a moment before which no clock can be right.
    pub fn decide(&self, digest: &str, now: u64, floor: u64) -> Decision {
        let digest = digest.to_owned();
        let Some((entry, signers)) = self.latest.get(&digest) else { return Decision::Deny(Reason::Unknown { digest }) };
        let s = &entry.statement;
        let (seq, exp, iat) = (s.seq, s.exp, s.iat);
        if s.status == Status::Revoked {
            Decision::Deny(Reason::Revoked { digest, seq })
        } else if now < floor {
            Decision::Deny(Reason::Clock { now, floor })
        } else if now < iat {
            Decision::Deny(Reason::NotYet { digest, seq, iat, now })
        } else if now >= exp {
            Decision::Deny(Reason::Expired { digest, seq, exp, now })
        } else {
            Decision::Allow(Evidence { digest, seq, exp, signers: *signers })
        }
    }

    /// All images that a statement speaks of, with the newest one that counts.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.latest.values().map(|(entry, _)| entry)
    }
}

/// The longer of two copies of one log; `None` if their statements part. Signatures do not count: both copies are checked
/// by whoever uses them.
pub fn longer<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    let statements = |text: &str| -> Vec<Option<crate::Statement>> {
        text.lines().map(|line| serde_json::from_str::<Entry>(line).ok().map(|entry| entry.statement)).collect()
    };
    let (one, two) = (statements(a), statements(b));
    let common = one.len().min(two.len());
    // A line that is no statement is like no other, not even one that is the same.
    let same = a == b || (0..common).all(|n| one[n].is_some() && one[n] == two[n]);
    same.then_some(if two.len() > one.len() { b } else { a })
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").and_then(measure::unhex).is_some_and(|b| b.len() == 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SigningKey, Statement};

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn policy(threshold: usize) -> Policy {
        let approvers: Vec<String> = (1..=3).map(|n| measure::hex(key(n).verifying_key().as_bytes())).collect();
        Policy::new("home", &approvers, threshold).unwrap()
    }

    fn digest(n: u8) -> String {
        format!("sha256:{}", measure::hex(&[n; 32]))
    }

    fn line(seq: u64, image: u8, status: Status, signers: &[u8]) -> String {
        let mut entry = Entry::new(Statement { digest: digest(image), exp: 2000, iat: 1000, seq, status });
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
        assert!(matches!(replay(2, &text).unwrap().decide(&digest(9), 1500, 0), Decision::Allow(Evidence { seq: 1, signers: 2, .. })));
        text += &line(2, 9, Status::Revoked, &[3]);
        text += &line(3, 9, Status::Approved, &[1, 2]);
        assert!(matches!(replay(2, &text).unwrap().decide(&digest(9), 1500, 0), Decision::Deny(Reason::Revoked { seq: 2, .. })));
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
        let refused = |text: &str| matches!(replay(2, text), Err(LogError::Signatures { needed: 2, .. }));
        assert!(refused(&line(1, 9, Status::Approved, &[1])));
        // A stranger's signature, or the same one twice, has no business in a line at all.
        let stowaway = |text: &str| matches!(replay(2, text), Err(LogError::NotAStatement { .. }));
        assert!(stowaway(&line(1, 9, Status::Approved, &[1, 7])));
        let mut twice = Entry::new(Statement { digest: digest(9), exp: 2000, iat: 1000, seq: 1, status: Status::Approved });
        twice.sign("home", &key(1));
        twice.signatures.push(twice.signatures[0].clone());
        assert!(stowaway(&(twice.line() + "\n")));
        let mut other = Entry::new(twice.statement.clone());
        other.sign("office", &key(1));
        other.sign("office", &key(2));
        assert!(stowaway(&(other.line() + "\n")));
        assert!(stowaway(&line(1, 9, Status::Revoked, &[7])));
        assert!(matches!(replay(2, &line(1, 9, Status::Revoked, &[])), Err(LogError::Signatures { needed: 1, .. })));
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
        let seen = replay(1, &(one.clone() + &two)).unwrap().high_water;
        assert!(Log::replay(&policy(1), &(one.clone() + &two), &seen).is_ok());
        assert_eq!(Log::replay(&policy(1), &one, &seen).unwrap_err(), LogError::RolledBack { seen: 2, found: 1 });
        let fork = one.clone() + &line(2, 7, Status::Approved, &[1]) + &line(3, 6, Status::Approved, &[1]);
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
        assert!(matches!(replay(1, &good.replacen(':', ": ", 1)), Err(LogError::NotCanonical { .. })));
        assert!(matches!(replay(1, &good.replacen('{', "{\"x\":1,", 1)), Err(LogError::NotAStatement { .. })));
        assert!(matches!(replay(1, &good.replace('\n', "\r\n")), Err(LogError::NotCanonical { .. })));
        assert!(matches!(replay(1, good.trim_end()), Err(LogError::NotCanonical { .. })));
        assert!(matches!(replay(1, "\n"), Err(LogError::NotAStatement { .. })));
        assert!(Policy::new("x", &["00".repeat(32)], 1).is_err());
        assert!(Policy::new("x", &[], 1).is_err());
    }
}
