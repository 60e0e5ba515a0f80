//! Records of the registry contract (contracts/ImageRegistry.sol).
//!
//! A record is one word of storage. Its fields are, from the lowest byte: status (1 byte), since,
//! notAfter and seq (8 bytes each).

use serde::{Deserialize, Serialize};

use super::ssz::Root;

/// Strength of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApprovalLevel {
    /// The approvers allow the image.
    Clear,
    /// The approvers also saw a proof of how the image was built: they reproduced it, or verified
    /// its provenance.
    Proof,
}

/// Record of one digest. Times are in seconds since 1970, by the chain's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum Record {
    /// The registry has no record.
    Absent,
    /// The image is approved.
    Approved {
        /// Strength of the approval.
        approval: ApprovalLevel,
        /// Time of the block that has the deciding vote.
        since: u64,
        /// First second at which the approval is no longer valid.
        not_after: u64,
        /// Sequence of the change in the registry.
        seq: u64,
    },
    /// The image is revoked.
    Revoked {
        /// Time of the block that has the deciding vote.
        since: u64,
        /// Sequence of the change in the registry.
        seq: u64,
    },
}

/// Reason why a word is not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Bytes that belong to no field are not zero.
    #[error("its unused bytes are not zero")]
    UnusedBytes,
    /// The sequence is 0.
    #[error("its sequence is 0, expected at least 1")]
    ZeroSequence,
    /// The status is unknown.
    #[error("its status is {found}, expected 1 (clear), 2 (proof) or 3 (revoked)")]
    Status {
        /// Value of the status byte.
        found: u8,
    },
}

impl Record {
    /// Decodes a word of the registry's storage.
    ///
    /// # Errors
    ///
    /// Returns [`RecordError`] if the contract cannot have written the word.
    pub fn decode(word: &Root) -> Result<Self, RecordError> {
        if *word == [0; 32] {
            return Ok(Self::Absent);
        }
        if word[..7] != [0; 7] {
            return Err(RecordError::UnusedBytes);
        }
        let number = |from: usize| {
            word[from..from + 8].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        let (seq, not_after, since) = (number(7), number(15), number(23));
        if seq == 0 {
            return Err(RecordError::ZeroSequence);
        }
        let approved = |approval| Self::Approved { approval, since, not_after, seq };
        match word[31] {
            1 => Ok(approved(ApprovalLevel::Clear)),
            2 => Ok(approved(ApprovalLevel::Proof)),
            3 => Ok(Self::Revoked { since, seq }),
            found => Err(RecordError::Status { found }),
        }
    }

    /// Returns the sequence of the change, 0 if the record is absent.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Approved { seq, .. } | Self::Revoked { seq, .. } => *seq,
        }
    }

    /// Reports whether the image is revoked.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Revoked { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_the_contract_can_write_are_decoded() {
        let mut word = [0; 32];
        assert_eq!(Record::decode(&word), Ok(Record::Absent));
        word[31] = 2;
        (word[30], word[22], word[14]) = (5, 9, 7);
        let approval = ApprovalLevel::Proof;
        assert_eq!(
            Record::decode(&word),
            Ok(Record::Approved { approval, since: 5, not_after: 9, seq: 7 })
        );
        word[31] = 3;
        assert_eq!(Record::decode(&word), Ok(Record::Revoked { since: 5, seq: 7 }));
        for (at, value) in [(31, 0), (31, 4), (0, 1), (6, 1), (14, 0)] {
            let mut bad = word;
            bad[at] = value;
            assert!(Record::decode(&bad).is_err(), "byte {at}");
        }
    }
}
