//! The witnesses that must have seen a log, and their cosignatures: C2SP tlog-cosignature.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::merkle::Hash;
use crate::note::{Note, NoteKey, NoteKeyError, Role};

/// Greatest tolerated difference between the clocks of a witness and a node.
const MAX_CLOCK_SKEW_SECONDS: u64 = 300;

/// Reason why a witness policy is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitnessPolicyError {
    /// A key is malformed or weak.
    #[error(transparent)]
    Key(#[from] NoteKeyError),
    /// A key has another role.
    #[error("the key {name} is of another kind: expected {expected:?}")]
    Role {
        /// Name of the key.
        name: String,
        /// Role that is required in this place.
        expected: Role,
    },
    /// A witness's key is also that of the log or of another witness.
    #[error("the key of the witness {name} is listed twice, or is the log's own")]
    Repeated {
        /// Name of the witness.
        name: String,
    },
    /// The threshold does not fit the number of witnesses.
    #[error(
        "a threshold of {threshold} does not fit {witnesses} witnesses: expected 1 to their \
         number, or 0 if there are none"
    )]
    Threshold {
        /// Number of witnesses that must have cosigned.
        threshold: usize,
        /// Number of listed witnesses.
        witnesses: usize,
    },
}

/// The keys that must have signed a checkpoint, and how long it then counts.
#[derive(Debug, Clone)]
pub struct WitnessPolicy {
    log: NoteKey,
    witnesses: Vec<NoteKey>,
    threshold: usize,
    /// Greatest age of the cosignatures in seconds.
    pub max_age: u64,
}

impl WitnessPolicy {
    /// Makes a policy that requires the signature of `log` and cosignatures of `threshold` of the
    /// `witnesses`. All keys are C2SP vkeys.
    ///
    /// # Errors
    ///
    /// Returns [`WitnessPolicyError`] for a malformed or repeated key, a key with another role, and
    /// a threshold that is zero or exceeds the number of witnesses. Without witnesses the
    /// threshold must be zero.
    pub fn new(
        log: &str,
        witnesses: &[String],
        threshold: usize,
        max_age: u64,
    ) -> Result<Self, WitnessPolicyError> {
        let parse = |text: &str, role| {
            let key = NoteKey::parse(text)?;
            if key.role != role {
                return Err(WitnessPolicyError::Role { name: key.name, expected: role });
            }
            Ok(key)
        };
        let log = parse(log, Role::Log)?;
        let witnesses: Vec<NoteKey> =
            witnesses.iter().map(|text| parse(text, Role::Witness)).collect::<Result<_, _>>()?;
        for (n, witness) in witnesses.iter().enumerate() {
            // The holder of a key that is listed twice would count as two witnesses.
            if witness.key == log.key || witnesses[..n].iter().any(|w| w.key == witness.key) {
                return Err(WitnessPolicyError::Repeated { name: witness.name.clone() });
            }
        }
        if threshold > witnesses.len() || (threshold == 0 && !witnesses.is_empty()) {
            let witnesses = witnesses.len();
            return Err(WitnessPolicyError::Threshold { threshold, witnesses });
        }
        Ok(Self { log, witnesses, threshold, max_age })
    }

    /// Returns the times at which the witnesses cosigned this checkpoint, the newest first, one
    /// for each witness.
    fn cosignature_times(&self, note: &Note) -> Result<Vec<u64>, CheckpointError> {
        if !note.is_signed_by(&self.log)? {
            return Err(CheckpointError::Unsigned { log: self.log.name.clone() });
        }
        let mut times = Vec::new();
        for witness in &self.witnesses {
            times.extend(note.cosigned_at(witness)?);
        }
        if times.len() < self.threshold {
            let (found, required) = (times.len(), self.threshold);
            return Err(CheckpointError::TooFewCosignatures { found, required });
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        Ok(times)
    }

    /// Returns the newest time at which `threshold` witnesses had cosigned, given the times of
    /// [`verify_checkpoint`]. Times after `now` are ignored, except for the tolerated difference
    /// between clocks. Returns `None` if the policy requires no witness.
    pub(crate) fn witnessed_at(
        &self,
        times: &[u64],
        now: u64,
    ) -> Option<Result<u64, ClockBehindWitnesses>> {
        let nth = self.threshold.checked_sub(1)?;
        let latest = now.saturating_add(MAX_CLOCK_SKEW_SECONDS);
        let time = times.iter().filter(|time| **time <= latest).nth(nth);
        Some(time.copied().ok_or_else(|| {
            let newest = times.get(nth).copied().unwrap_or_default();
            ClockBehindWitnesses { floor: newest.saturating_sub(MAX_CLOCK_SKEW_SECONDS) }
        }))
    }
}

/// The node's clock is before the time that the witnesses confirm.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClockBehindWitnesses {
    /// Earliest possible time in seconds since 1970.
    pub(crate) floor: u64,
}

/// Returns the `lines` that verify as cosignatures of `note` under one of `keys`, each as (witness,
/// time in seconds since 1970, line).
pub fn valid_cosignatures<'a>(
    note: &str,
    lines: &'a str,
    keys: &[NoteKey],
) -> Vec<(String, u64, &'a str)> {
    let mut found = Vec::new();
    for line in lines.lines() {
        let cosigned = format!("{note}{line}\n");
        let Ok(parsed) = Note::parse(&cosigned) else { continue };
        found.extend(keys.iter().filter_map(|key| {
            let time = parsed.cosigned_at(key).ok()??;
            Some((key.name.clone(), time, line))
        }));
    }
    found
}

/// Verifies that a note is the checkpoint of this tree and, if the node has a witness policy, that
/// the log signed it and enough witnesses cosigned it. Returns the times of the cosignatures, the
/// newest first.
pub(crate) fn verify_checkpoint(
    text: &str,
    log: (u64, Hash),
    policy: Option<&WitnessPolicy>,
) -> Result<Vec<u64>, CheckpointError> {
    let note = Note::parse(text)?;
    let Checkpoint { origin, size, root } = Checkpoint::from_note(&note)?;
    if let Some(policy) = policy
        && origin != policy.log.name
    {
        let expected = policy.log.name.clone();
        return Err(CheckpointError::Origin { expected, found: origin });
    }
    if (size, root) != log {
        return Err(CheckpointError::Tree { log, found: (size, root) });
    }
    policy.map_or(Ok(Vec::new()), |policy| policy.cosignature_times(&note))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::note;

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

    fn policy(threshold: usize) -> WitnessPolicy {
        WitnessPolicy::new(&vkey("log.example", Role::Log, 9), &witnesses(), threshold, 100)
            .unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "log.example".into(), size: 5, root: [7; 32] }
    }

    /// Makes the log's note with a cosignature for each (witness, time).
    fn note(cosigned: &[(u8, u64)]) -> String {
        let checkpoint = checkpoint();
        cosigned.iter().fold(checkpoint.sign(&key(9)).unwrap(), |text, (n, time)| {
            text + &note::cosign(&checkpoint.body(), &name(*n), &key(*n), *time)
        })
    }

    fn witnessed_at(threshold: usize, text: &str) -> Result<Option<u64>, CheckpointError> {
        let policy = policy(threshold);
        verify_checkpoint(text, (5, [7; 32]), Some(&policy))
            .map(|times| policy.witnessed_at(&times, 1000).and_then(Result::ok))
    }

    #[test]
    fn the_time_is_the_newest_that_enough_witnesses_confirm() {
        let text = note(&[(1, 500), (2, 900), (3, 700)]);
        assert_eq!(
            [1, 2, 3].map(|k| witnessed_at(k, &text).unwrap()),
            [Some(900), Some(700), Some(500)]
        );
        assert_eq!(verify_checkpoint(&text, (5, [7; 32]), None), Ok(Vec::new()));
        // Cosignatures of the future are ignored; they are no error.
        let (two, times) = (policy(2), [9000, 700, 500]);
        assert_eq!(two.witnessed_at(&times, 1000), Some(Ok(500)));
        assert_eq!(
            two.witnessed_at(&[9000, 8000, 500], 1000),
            Some(Err(ClockBehindWitnesses { floor: 7700 }))
        );
        assert_eq!(WitnessPolicy { threshold: 0, ..two }.witnessed_at(&times, 1000), None);
    }

    #[test]
    fn too_few_repeated_and_foreign_cosignatures_are_rejected() {
        let too_few = |text: &str| {
            let expected = CheckpointError::TooFewCosignatures { found: 1, required: 2 };
            witnessed_at(2, text) == Err(expected)
        };
        assert!(too_few(&note(&[(1, 500)])));
        assert!(too_few(&note(&[(1, 500), (1, 900)])), "one witness that signs twice");
        assert!(too_few(&note(&[(1, 500), (4, 900)])), "a key that the policy does not list");
        let forged_name =
            note(&[(1, 500)]) + &note::cosign(&checkpoint().body(), &name(2), &key(4), 900);
        assert!(too_few(&forged_name));
        let unsigned = note(&[(1, 500), (2, 500)]).replacen("log.example ", "leg.example ", 1);
        assert!(matches!(witnessed_at(2, &unsigned), Err(CheckpointError::Unsigned { .. })));
    }

    #[test]
    fn a_checkpoint_of_another_log_size_or_root_is_rejected() {
        let text = note(&[(1, 500), (2, 500)]);
        for log in [(4, [7; 32]), (5, [8; 32])] {
            let error = verify_checkpoint(&text, log, Some(&policy(2))).unwrap_err();
            assert_eq!(error, CheckpointError::Tree { log, found: (5, [7; 32]) });
        }
        let other =
            Checkpoint { origin: "other.example".into(), ..checkpoint() }.sign(&key(9)).unwrap();
        assert!(witnessed_at(2, &other).unwrap_err().to_string().contains("other.example"));
        for bad in [
            text.replacen("\n5\n", "\n05\n", 1),
            text.replacen("\n5\n", "\n+5\n", 1),
            text.replacen("\n\n", "\nmore\n\n", 1),
            String::new(),
        ] {
            let error = witnessed_at(2, &bad).unwrap_err();
            let malformed = matches!(error, CheckpointError::Format | CheckpointError::Note(_));
            assert!(malformed, "{bad}: {error}");
        }
    }

    #[test]
    fn only_lines_that_verify_are_returned() {
        let (note, body) = (checkpoint().sign(&key(9)).unwrap(), checkpoint().body());
        let keys: Vec<NoteKey> = witnesses().iter().map(|w| NoteKey::parse(w).unwrap()).collect();
        let good = note::cosign(&body, &name(1), &key(1), 500);
        let lines = [
            good.clone(),
            note::cosign(&body, &name(2), &key(1), 500),
            note::cosign("x\n", &name(2), &key(2), 500),
            "junk\n".into(),
        ]
        .concat();
        assert_eq!(valid_cosignatures(&note, &lines, &keys), [(name(1), 500, good.trim_end())]);
        assert!(valid_cosignatures(&note, &note, &keys).is_empty(), "the log is not a witness");
    }

    #[test]
    fn every_flipped_bit_of_a_checkpoint_is_rejected() {
        let text = note(&[(1, 500), (2, 500)]);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= 1 << bit;
                if let Ok(bad) = String::from_utf8(bad) {
                    assert!(witnessed_at(2, &bad).is_err(), "byte {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn an_impossible_policy_is_rejected() {
        let log = vkey("log.example", Role::Log, 9);
        let rejected = |log: &str, witnesses: &[String], threshold| {
            WitnessPolicy::new(log, witnesses, threshold, 1).is_err()
        };
        assert!(!rejected(&log, &[], 0));
        assert!(rejected(&log, &witnesses(), 0));
        assert!(rejected(&log, &witnesses(), 4));
        assert!(rejected(&log, &[vkey("a", Role::Witness, 1), vkey("b", Role::Witness, 1)], 1));
        assert!(rejected(&log, &[vkey("a", Role::Witness, 9)], 1));
        assert!(rejected(&log, &[vkey("a", Role::Log, 1)], 1));
        assert!(rejected(&vkey("log.example", Role::Witness, 9), &witnesses(), 1));
    }
}
