//! Sync committees whose keys are validated, and the verification of their signatures.

use blst::BLST_ERROR;
use blst::min_pk::{PublicKey, Signature};

use super::error::ChainError;
use super::ssz::{Root, byte_vector_root, hash_pair, merkleize};
use super::types::{Hex, SyncAggregate, SyncCommittee};

/// Ciphersuite of Ethereum's signatures (consensus-specs, phase0/beacon-chain.md, BLS signatures).
/// It has proofs of possession, so that one aggregate signature is valid for all its signers.
const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// A sync committee whose keys are all points of the right subgroup, none of them at infinity.
#[derive(Debug, Clone)]
pub struct ValidatedCommittee {
    pub(super) raw: SyncCommittee,
    root: Root,
    keys: Vec<PublicKey>,
}

impl PartialEq for ValidatedCommittee {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

/// Computes the specification's `hash_tree_root(SyncCommittee)`.
pub(super) fn committee_root(committee: &SyncCommittee) -> Root {
    let leaves: Vec<Root> =
        committee.pubkeys.iter().map(|Hex(key)| byte_vector_root(key)).collect();
    let depth = leaves.len().max(1).next_power_of_two().ilog2();
    hash_pair(&merkleize(&leaves, depth), &byte_vector_root(&committee.aggregate_pubkey.0))
}

impl ValidatedCommittee {
    /// Validates every key of a committee of `size` members. This is the most expensive step of
    /// the light client; it is needed once a period.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::CommitteeSize`] or [`ChainError::PublicKey`].
    pub fn new(raw: &SyncCommittee, size: usize) -> Result<Self, ChainError> {
        if raw.pubkeys.len() != size {
            return Err(ChainError::CommitteeSize { expected: size, found: raw.pubkeys.len() });
        }
        let keys = raw.pubkeys.iter().enumerate().map(|(member, Hex(bytes))| {
            PublicKey::key_validate(bytes)
                .map_err(|error| ChainError::PublicKey { member, problem: format!("{error:?}") })
        });
        let keys = keys.collect::<Result<_, _>>()?;
        Ok(Self { keys, root: committee_root(raw), raw: raw.clone() })
    }

    /// Verifies the signature of the members whose participation bits are set.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::Signature`] if it is invalid.
    pub fn verify(&self, aggregate: &SyncAggregate, message: &Root) -> Result<(), ChainError> {
        let signature = Signature::sig_validate(&aggregate.sync_committee_signature.0, true)
            .map_err(|error| ChainError::Signature { problem: format!("{error:?}") })?;
        let signers: Vec<&PublicKey> = self
            .keys
            .iter()
            .enumerate()
            .filter(|(n, _)| aggregate.has_signed(*n))
            .map(|(_, key)| key)
            .collect();
        match signature.fast_aggregate_verify(false, message, DST, &signers) {
            BLST_ERROR::BLST_SUCCESS => Ok(()),
            error => Err(ChainError::Signature { problem: format!("{error:?}") }),
        }
    }
}
