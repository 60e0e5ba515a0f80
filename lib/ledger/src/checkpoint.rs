//! How large a log is and what is in it, signed by the log and seen by witnesses: C2SP
//! tlog-checkpoint.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;

use crate::LogError;
use crate::merkle::Hash;
use crate::note::{self, Note, NoteKey, Role};

/// Clocks of witnesses and nodes may differ by so much, in seconds.
const CLOCKS_DIFFER: u64 = 300;

/// The head of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log: also the name of its key.
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

impl Checkpoint {
    /// What is signed.
    fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// The note, with the log's signature under it.
    pub fn sign(&self, key: &SigningKey) -> Result<String, String> {
        note::sign(&self.body(), &self.origin, key)
    }

    /// Reads a note without believing its signatures.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of(&Note::parse(text)?)
    }

    fn of(note: &Note) -> Result<Self, String> {
        let expected =
            || "expected three lines: origin, number of statements, root (base64)".to_owned();
        let mut lines = note.body.lines();
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(expected());
        };
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|root| root.try_into().ok())
            .ok_or_else(expected)?;
        let found =
            Self { origin: origin.to_owned(), size: size.parse().map_err(|_| expected())?, root };
        // One spelling: no leading zeros, no signs.
        if found.body() == note.body { Ok(found) } else { Err(expected()) }
    }
}

/// Whose signatures a checkpoint needs, and for how long it then counts.
#[derive(Debug, Clone)]
pub struct Witnessing {
    log: NoteKey,
    witnesses: Vec<NoteKey>,
    threshold: usize,
    /// Seconds since the time that enough witnesses vouch for.
    pub max_age: u64,
}

impl Witnessing {
    pub fn new(
        log: &str,
        witnesses: &[String],
        threshold: usize,
        max_age: u64,
    ) -> Result<Self, LogError> {
        let key = |text: &str, role| match NoteKey::parse(text) {
            Ok(key) if key.role == role => Ok(key),
            Ok(key) => Err(LogError::Policy(format!(
                "{} is a key of another kind: expected {role:?}",
                key.name
            ))),
            Err(problem) => Err(LogError::Policy(problem)),
        };
        let log = key(log, Role::Log)?;
        let witnesses: Vec<NoteKey> =
            witnesses.iter().map(|text| key(text, Role::Witness)).collect::<Result<_, _>>()?;
        for (n, witness) in witnesses.iter().enumerate() {
            // One who holds two of the keys would be two witnesses.
            if witness.key == log.key || witnesses[..n].iter().any(|w| w.key == witness.key) {
                return Err(LogError::Policy(format!(
                    "the key of the witness {} is there twice",
                    witness.name
                )));
            }
        }
        if threshold > witnesses.len() || (threshold == 0 && !witnesses.is_empty()) {
            return Err(LogError::Policy(format!(
                "{threshold} of {} witnesses cannot be what is meant",
                witnesses.len()
            )));
        }
        Ok(Self { log, witnesses, threshold, max_age })
    }

    pub fn origin(&self) -> &str {
        &self.log.name
    }

    /// When each of the witnesses saw this checkpoint last, the newest first.
    fn seen(&self, note: &Note) -> Result<Vec<u64>, LogError> {
        let unusable = |problem: String| LogError::Checkpoint { problem };
        if !note.signed(&self.log).map_err(unusable)? {
            return Err(unusable(format!("the log {} did not sign it", self.log.name)));
        }
        let mut times = Vec::new();
        for witness in &self.witnesses {
            times.extend(note.cosigned(witness).map_err(unusable)?);
        }
        if times.len() < self.threshold {
            return Err(LogError::Cosignatures { found: times.len(), needed: self.threshold });
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        Ok(times)
    }

    /// The time that enough witnesses vouch for at `now`: so many saw it then or later. What is
    /// dated later than now, but for how much clocks differ, says nothing. None where no witness is
    /// asked for.
    pub(crate) fn vouched(&self, times: &[u64], now: u64) -> Option<Result<u64, Early>> {
        let nth = self.threshold.checked_sub(1)?;
        let known =
            times.iter().filter(|time| **time <= now.saturating_add(CLOCKS_DIFFER)).nth(nth);
        Some(known.copied().ok_or_else(|| Early {
            floor: times.get(nth).copied().unwrap_or_default().saturating_sub(CLOCKS_DIFFER),
        }))
    }
}

/// The clock is before what witnesses saw.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Early {
    pub floor: u64,
}

/// Of some lines those that hold under a note as cosignatures by these keys: whose each is, its
/// time, the line.
pub fn cosignatures<'a>(
    note: &str,
    lines: &'a str,
    keys: &[NoteKey],
) -> Vec<(String, u64, &'a str)> {
    let mut found = Vec::new();
    for line in lines.lines() {
        let with = format!("{note}{line}\n");
        let Ok(parsed) = Note::parse(&with) else { continue };
        found.extend(
            keys.iter()
                .filter_map(|key| Some((key.name.clone(), parsed.cosigned(key).ok()??, line))),
        );
    }
    found
}

/// Checks that the note is of this tree and, where a node asks for it, that it is signed and enough
/// witnesses saw it: says when, the newest first.
pub(crate) fn check(
    text: &str,
    size: u64,
    root: Hash,
    witnessing: Option<&Witnessing>,
) -> Result<Vec<u64>, LogError> {
    let unusable = |problem: String| LogError::Checkpoint { problem };
    let note = Note::parse(text).map_err(unusable)?;
    let found = Checkpoint::of(&note).map_err(unusable)?;
    if let Some(witnessing) = witnessing
        && found.origin != witnessing.origin()
    {
        return Err(unusable(format!(
            "it is of the log {:?}, expected {:?}",
            found.origin,
            witnessing.origin()
        )));
    }
    if (found.size, found.root) != (size, root) {
        return Err(unusable(format!(
            "it is of {} statements with the root {}, the log has {size} with the root {}",
            found.size,
            measure::hex(&found.root),
            measure::hex(&root)
        )));
    }
    witnessing.map_or(Ok(Vec::new()), |witnessing| witnessing.seen(&note))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn name(n: u8) -> String {
        format!("w{n}.example")
    }

    fn vkey(name: &str, role: Role, n: u8) -> String {
        NoteKey::new(name, role, key(n).verifying_key()).unwrap().to_string()
    }

    fn witnesses() -> Vec<String> {
        (1..=3).map(|n| vkey(&name(n), Role::Witness, n)).collect()
    }

    fn witnessing(threshold: usize) -> Witnessing {
        Witnessing::new(&vkey("log.example", Role::Log, 9), &witnesses(), threshold, 100).unwrap()
    }

    fn head() -> Checkpoint {
        Checkpoint { origin: "log.example".into(), size: 5, root: [7; 32] }
    }

    fn note(seen: &[(u8, u64)]) -> String {
        let head = head();
        seen.iter().fold(head.sign(&key(9)).unwrap(), |text, (n, time)| {
            text + &note::cosign(&head.body(), &name(*n), &key(*n), *time)
        })
    }

    fn vouched(threshold: usize, text: &str) -> Result<Option<u64>, LogError> {
        let witnessing = witnessing(threshold);
        check(text, 5, [7; 32], Some(&witnessing))
            .map(|times| witnessing.vouched(&times, 1000).and_then(Result::ok))
    }

    #[test]
    fn the_time_is_the_one_that_enough_witnesses_vouch_for() {
        let text = note(&[(1, 500), (2, 900), (3, 700)]);
        assert_eq!(
            [1, 2, 3].map(|k| vouched(k, &text).unwrap()),
            [Some(900), Some(700), Some(500)]
        );
        assert_eq!(check(&text, 5, [7; 32], None), Ok(Vec::new()));
        // What is dated later than now says nothing: neither good nor bad.
        let (two, times) = (witnessing(2), [9000, 700, 500]);
        assert_eq!(two.vouched(&times, 1000), Some(Ok(500)));
        assert_eq!(two.vouched(&[9000, 8000, 500], 1000), Some(Err(Early { floor: 7700 })));
        assert_eq!(Witnessing { threshold: 0, ..two }.vouched(&times, 1000), None);
    }

    #[test]
    fn too_few_strangers_and_one_for_two_are_refused() {
        let too_few = |text: &str| {
            matches!(vouched(2, text), Err(LogError::Cosignatures { found: 1, needed: 2 }))
        };
        assert!(too_few(&note(&[(1, 500)])));
        assert!(too_few(&note(&[(1, 500), (1, 900)])), "one that signs twice");
        assert!(too_few(&note(&[(1, 500), (4, 900)])), "a stranger");
        let under_anothers_name =
            note(&[(1, 500)]) + &note::cosign(&head().body(), &name(2), &key(4), 900);
        assert!(too_few(&under_anothers_name));
        let unsigned = note(&[(1, 500), (2, 500)]).replacen("log.example ", "leg.example ", 1);
        assert!(matches!(vouched(2, &unsigned), Err(LogError::Checkpoint { .. })));
    }

    #[test]
    fn another_log_another_size_and_another_root_are_refused() {
        let text = note(&[(1, 500), (2, 500)]);
        assert!(matches!(
            check(&text, 4, [7; 32], Some(&witnessing(2))),
            Err(LogError::Checkpoint { .. })
        ));
        assert!(matches!(
            check(&text, 5, [8; 32], Some(&witnessing(2))),
            Err(LogError::Checkpoint { .. })
        ));
        let other = Checkpoint { origin: "other.example".into(), ..head() }.sign(&key(9)).unwrap();
        assert!(vouched(2, &other).unwrap_err().to_string().contains("other.example"));
        for bad in [
            text.replacen("\n5\n", "\n05\n", 1),
            text.replacen("\n5\n", "\n+5\n", 1),
            text.replacen("\n\n", "\nmore\n\n", 1),
            String::new(),
        ] {
            assert!(matches!(vouched(2, &bad), Err(LogError::Checkpoint { .. })), "{bad}");
        }
    }

    #[test]
    fn only_lines_that_hold_are_kept() {
        let (note, body) = (head().sign(&key(9)).unwrap(), head().body());
        let keys: Vec<NoteKey> = witnesses().iter().map(|w| NoteKey::parse(w).unwrap()).collect();
        let good = note::cosign(&body, &name(1), &key(1), 500);
        let lines = [
            good.clone(),
            note::cosign(&body, &name(2), &key(1), 500),
            note::cosign("x\n", &name(2), &key(2), 500),
            "junk\n".into(),
        ]
        .concat();
        assert_eq!(cosignatures(&note, &lines, &keys), [(name(1), 500, good.trim_end())]);
        assert!(cosignatures(&note, &note, &keys).is_empty(), "the log is no witness");
    }

    #[test]
    fn every_flipped_bit_of_a_checkpoint_is_refused() {
        let text = note(&[(1, 500), (2, 500)]);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= 1 << bit;
                if let Ok(bad) = String::from_utf8(bad) {
                    assert!(vouched(2, &bad).is_err(), "byte {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_policy_that_nobody_can_mean_is_refused() {
        let log = vkey("log.example", Role::Log, 9);
        let refused = |log: &str, witnesses: &[String], threshold| {
            Witnessing::new(log, witnesses, threshold, 1).is_err()
        };
        assert!(!refused(&log, &[], 0));
        assert!(refused(&log, &witnesses(), 0));
        assert!(refused(&log, &witnesses(), 4));
        assert!(refused(&log, &[vkey("a", Role::Witness, 1), vkey("b", Role::Witness, 1)], 1));
        assert!(refused(&log, &[vkey("a", Role::Witness, 9)], 1));
        assert!(refused(&log, &[vkey("a", Role::Log, 1)], 1));
        assert!(refused(&vkey("log.example", Role::Witness, 9), &witnesses(), 1));
    }
}
