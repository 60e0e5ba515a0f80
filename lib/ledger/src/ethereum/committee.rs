//! A sync committee, ready to check signatures.

use blst::BLST_ERROR;
use blst::min_pk::{PublicKey, Signature};

use super::ChainError;
use super::ssz::{Root, merkleize, parent, vector};
use super::types::{Hex, SyncAggregate, SyncCommittee};

/// Ethereum's: proof of possession, so that one aggregate stands for all (consensus-specs,
/// phase0/beacon-chain.md, BLS signatures).
const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// Its keys are points of the right subgroup, none is at infinity.
#[derive(Debug, Clone)]
pub struct Committee {
    pub raw: SyncCommittee,
    root: Root,
    keys: Vec<PublicKey>,
}

impl PartialEq for Committee {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

/// The spec's `hash_tree_root(SyncCommittee)`.
pub(super) fn root(committee: &SyncCommittee) -> Root {
    let leaves: Vec<Root> = committee.pubkeys.iter().map(|Hex(key)| vector(key)).collect();
    let depth = leaves.len().max(1).next_power_of_two().ilog2();
    parent(&merkleize(&leaves, depth), &vector(&committee.aggregate_pubkey.0))
}

impl Committee {
    /// Validates every key: the costly part, once a period.
    pub fn load(raw: &SyncCommittee, size: usize) -> Result<Self, ChainError> {
        if raw.pubkeys.len() != size {
            return Err(ChainError::CommitteeSize { expected: size, found: raw.pubkeys.len() });
        }
        let keys = raw.pubkeys.iter().enumerate().map(|(member, Hex(bytes))| {
            PublicKey::key_validate(bytes)
                .map_err(|error| ChainError::PublicKey { member, problem: format!("{error:?}") })
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, root: root(raw), raw: raw.clone() })
    }

    /// Whether those whose bits are set signed.
    pub fn check(&self, aggregate: &SyncAggregate, message: &Root) -> Result<(), ChainError> {
        let signature = Signature::sig_validate(&aggregate.sync_committee_signature.0, true)
            .map_err(|error| ChainError::Signature { problem: format!("{error:?}") })?;
        let signers: Vec<&PublicKey> = self
            .keys
            .iter()
            .enumerate()
            .filter(|(n, _)| aggregate.has(*n))
            .map(|(_, key)| key)
            .collect();
        match signature.fast_aggregate_verify(false, message, DST, &signers) {
            BLST_ERROR::BLST_SUCCESS => Ok(()),
            error => Err(ChainError::Signature { problem: format!("{error:?}") }),
        }
    }
}
