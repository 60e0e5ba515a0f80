//! Conversion of a beacon node's API objects to those of a bundle, for relays.
//!
//! A header of the Beacon API has the execution payload header, and a branch from that to the
//! block's body. A bundle's header has the hash of the execution block and one branch from the
//! hash. Nothing here needs to be trusted, because nodes verify the result.

use serde::Deserialize;

use super::ssz::{Root, byte_list_root, byte_vector_root, merkle_branch, uint64_root};
use super::types::{
    BeaconBlockHeader, Bootstrap, Bytes, Hash, Header, Hex, SyncAggregate, SyncCommittee, Update,
    decimal,
};

/// A number of an execution payload header is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the execution payload header has a malformed number: expected a decimal {0}")]
pub struct PayloadError(&'static str);

/// Light client header of the Beacon API.
#[derive(Debug, Clone, Deserialize)]
pub struct ApiHeader {
    beacon: BeaconBlockHeader,
    #[serde(default)]
    execution: Option<ExecutionPayloadHeader>,
    /// Present from Gloas on.
    #[serde(default)]
    execution_block_hash: Option<Hash>,
    #[serde(default)]
    execution_branch: Vec<Hash>,
}

/// The specification's `ExecutionPayloadHeader` of Capella or, with the last two fields, of Deneb.
#[derive(Debug, Clone, Deserialize)]
struct ExecutionPayloadHeader {
    parent_hash: Hash,
    fee_recipient: Hex<20>,
    state_root: Hash,
    receipts_root: Hash,
    logs_bloom: Bytes,
    prev_randao: Hash,
    #[serde(with = "decimal")]
    block_number: u64,
    #[serde(with = "decimal")]
    gas_limit: u64,
    #[serde(with = "decimal")]
    gas_used: u64,
    #[serde(with = "decimal")]
    timestamp: u64,
    extra_data: Bytes,
    base_fee_per_gas: String,
    block_hash: Hash,
    transactions_root: Hash,
    withdrawals_root: Hash,
    #[serde(default)]
    blob_gas_used: Option<String>,
    #[serde(default)]
    excess_blob_gas: Option<String>,
}

/// Index of the block's hash among the fields of the payload header.
const BLOCK_HASH: usize = 12;

impl ExecutionPayloadHeader {
    /// Returns the branch from the block's hash to the root of the payload header.
    fn block_hash_branch(&self) -> Result<Vec<Root>, PayloadError> {
        // A fee never exceeds 128 bits, though the type has 256.
        let base_fee: u128 =
            self.base_fee_per_gas.parse().map_err(|_| PayloadError("base_fee_per_gas"))?;
        let mut base_fee_root = [0; 32];
        base_fee_root[..16].copy_from_slice(&base_fee.to_le_bytes());
        let mut leaves = vec![
            self.parent_hash.0,
            byte_vector_root(&self.fee_recipient.0),
            self.state_root.0,
            self.receipts_root.0,
            byte_vector_root(&self.logs_bloom.0),
            self.prev_randao.0,
            uint64_root(self.block_number),
            uint64_root(self.gas_limit),
            uint64_root(self.gas_used),
            uint64_root(self.timestamp),
            byte_list_root(&self.extra_data.0, 0),
            base_fee_root,
            self.block_hash.0,
            self.transactions_root.0,
            self.withdrawals_root.0,
        ];
        let deneb =
            [("blob_gas_used", &self.blob_gas_used), ("excess_blob_gas", &self.excess_blob_gas)];
        for (name, value) in deneb {
            let Some(text) = value else { continue };
            leaves.push(uint64_root(text.parse().map_err(|_| PayloadError(name))?));
        }
        let depth = if leaves.len() > 16 { 5 } else { 4 };
        Ok(merkle_branch(&leaves, depth, BLOCK_HASH))
    }
}

impl TryFrom<ApiHeader> for Header {
    type Error = PayloadError;

    fn try_from(api: ApiHeader) -> Result<Self, PayloadError> {
        let (hash, inner) = match (api.execution, api.execution_block_hash) {
            // The genesis block has an empty payload header, which leads to no block.
            (Some(execution), _) if execution.block_hash.0 != [0; 32] => {
                (Some(execution.block_hash), execution.block_hash_branch()?)
            }
            (None, Some(hash)) if hash.0 != [0; 32] => (Some(hash), Vec::new()),
            _ => (None, Vec::new()),
        };
        let outer = api.execution_branch.into_iter().filter(|_| hash.is_some());
        Ok(Self {
            beacon: api.beacon,
            block_hash: hash,
            block_hash_branch: inner.into_iter().map(Hash::new).chain(outer).collect(),
        })
    }
}

/// Light client bootstrap of the Beacon API.
#[derive(Debug, Deserialize)]
pub struct ApiBootstrap {
    header: ApiHeader,
    current_sync_committee: SyncCommittee,
    current_sync_committee_branch: Vec<Hash>,
}

impl TryFrom<ApiBootstrap> for Bootstrap {
    type Error = PayloadError;

    fn try_from(api: ApiBootstrap) -> Result<Self, PayloadError> {
        Ok(Self {
            header: api.header.try_into()?,
            current_sync_committee: api.current_sync_committee,
            current_sync_committee_branch: api.current_sync_committee_branch,
        })
    }
}

/// Light client update of the Beacon API, of any of its three kinds.
#[derive(Debug, Deserialize)]
pub struct ApiUpdate {
    attested_header: ApiHeader,
    #[serde(default)]
    next_sync_committee: Option<SyncCommittee>,
    #[serde(default)]
    next_sync_committee_branch: Vec<Hash>,
    #[serde(default)]
    finalized_header: Option<ApiHeader>,
    #[serde(default)]
    finality_branch: Vec<Hash>,
    sync_aggregate: SyncAggregate,
    #[serde(with = "decimal")]
    signature_slot: u64,
}

impl TryFrom<ApiUpdate> for Update {
    type Error = PayloadError;

    fn try_from(api: ApiUpdate) -> Result<Self, PayloadError> {
        // A part that is missing is all zero in the API.
        let is_missing = |branch: &[Hash]| branch.iter().all(|hash| hash.0 == [0; 32]);
        let (no_committee, no_finality) =
            (is_missing(&api.next_sync_committee_branch), is_missing(&api.finality_branch));
        let finalized = api
            .finalized_header
            .filter(|header| !no_finality && header.beacon.state_root.0 != [0; 32]);
        Ok(Self {
            attested_header: api.attested_header.try_into()?,
            next_sync_committee: api.next_sync_committee.filter(|_| !no_committee),
            next_sync_committee_branch: if no_committee {
                Vec::new()
            } else {
                api.next_sync_committee_branch
            },
            finalized_header: finalized.map(Header::try_from).transpose()?,
            finality_branch: if no_finality { Vec::new() } else { api.finality_branch },
            sync_aggregate: api.sync_aggregate,
            signature_slot: api.signature_slot,
        })
    }
}
