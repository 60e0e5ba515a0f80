//! One word of the registry contract (contracts/ImageRegistry.sol), from its lowest byte: status (1
//! byte), since, notAfter, seq (8 each).

use serde::{Deserialize, Serialize};

use super::ssz::Root;

/// How much stands behind an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approval {
    /// The approvers let it run.
    Clear,
    /// Moreover they saw a proof of how it was built: they reproduced it, or checked its
    /// provenance.
    Proof,
}

/// What the registry says of one digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum Record {
    Absent,
    Approved {
        approval: Approval,
        /// When, by the chain's clock.
        since: u64,
        /// From then on it does not hold.
        not_after: u64,
        seq: u64,
    },
    Revoked {
        since: u64,
        seq: u64,
    },
}

impl Record {
    pub fn read(word: &Root) -> Result<Self, String> {
        if *word == [0; 32] {
            return Ok(Self::Absent);
        }
        if word[..7] != [0; 7] {
            return Err("it has something where nothing belongs".into());
        }
        let number = |from: usize| {
            word[from..from + 8].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        let (seq, not_after, since) = (number(7), number(15), number(23));
        if seq == 0 {
            return Err("its sequence is 0".into());
        }
        match word[31] {
            1 => Ok(Self::Approved { approval: Approval::Clear, since, not_after, seq }),
            2 => Ok(Self::Approved { approval: Approval::Proof, since, not_after, seq }),
            3 => Ok(Self::Revoked { since, seq }),
            other => {
                Err(format!("its status is {other}, expected 1 (clear), 2 (proof) or 3 (revoked)"))
            }
        }
    }

    /// Zero for what is absent.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Approved { seq, .. } | Self::Revoked { seq, .. } => *seq,
        }
    }

    pub fn revoked(&self) -> bool {
        matches!(self, Self::Revoked { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_the_contract_packs_it_and_nothing_else_is_a_record() {
        let mut word = [0; 32];
        assert_eq!(Record::read(&word), Ok(Record::Absent));
        word[31] = 2;
        (word[30], word[22], word[14]) = (5, 9, 7);
        assert_eq!(
            Record::read(&word),
            Ok(Record::Approved { approval: Approval::Proof, since: 5, not_after: 9, seq: 7 })
        );
        word[31] = 3;
        assert_eq!(Record::read(&word), Ok(Record::Revoked { since: 5, seq: 7 }));
        for (at, with) in [(31, 0), (31, 4), (0, 1), (6, 1), (14, 0)] {
            let mut bad = word;
            bad[at] = with;
            assert!(Record::read(&bad).is_err(), "byte {at}");
        }
    }
}
