//! For relays: from what a beacon node's API says to what a bundle carries.
//!
//! A Beacon API header has the header of the execution payload, and a branch from it to the block's
//! body; a bundle's header has the execution block's hash and one branch from that. Nothing here is
//! trusted: nodes check what comes of it.

use serde::Deserialize;

use super::ssz::{Root, branch, bytes, number, vector};
use super::types::{
    Beacon, Bootstrap, Bytes, Hash, Header, Hex, SyncAggregate, SyncCommittee, Update, decimal,
};

#[derive(Debug, Clone, Deserialize)]
pub struct ApiHeader {
    beacon: Beacon,
    #[serde(default)]
    execution: Option<Execution>,
    /// From Gloas on.
    #[serde(default)]
    execution_block_hash: Option<Hash>,
    #[serde(default)]
    execution_branch: Vec<Hash>,
}

/// `ExecutionPayloadHeader`, of Capella or, with the two last fields, of Deneb.
#[derive(Debug, Clone, Deserialize)]
struct Execution {
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

/// In the payload's header.
const BLOCK_HASH: usize = 12;

impl Execution {
    fn branch(&self) -> Option<Vec<Root>> {
        // 128 bits are enough for any fee.
        let fee: u128 = self.base_fee_per_gas.parse().ok()?;
        let mut base_fee = [0; 32];
        base_fee[..16].copy_from_slice(&fee.to_le_bytes());
        let mut leaves = vec![
            self.parent_hash.0,
            vector(&self.fee_recipient.0),
            self.state_root.0,
            self.receipts_root.0,
            vector(&self.logs_bloom.0),
            self.prev_randao.0,
            number(self.block_number),
            number(self.gas_limit),
            number(self.gas_used),
            number(self.timestamp),
            bytes(&self.extra_data.0, 0),
            base_fee,
            self.block_hash.0,
            self.transactions_root.0,
            self.withdrawals_root.0,
        ];
        for more in [&self.blob_gas_used, &self.excess_blob_gas].into_iter().flatten() {
            leaves.push(number(more.parse().ok()?));
        }
        let depth = if leaves.len() > 16 { 5 } else { 4 };
        Some(branch(&leaves, depth, BLOCK_HASH))
    }
}

impl TryFrom<ApiHeader> for Header {
    type Error = String;

    fn try_from(api: ApiHeader) -> Result<Self, String> {
        let (hash, inner) = match (api.execution, api.execution_block_hash) {
            // The empty one of the beginning leads nowhere.
            (Some(execution), _) if execution.block_hash.0 != [0; 32] => {
                let branch = execution
                    .branch()
                    .ok_or("a number of the execution payload's header cannot be read")?;
                (Some(execution.block_hash), branch)
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

#[derive(Debug, Deserialize)]
pub struct ApiBootstrap {
    header: ApiHeader,
    current_sync_committee: SyncCommittee,
    current_sync_committee_branch: Vec<Hash>,
}

impl TryFrom<ApiBootstrap> for Bootstrap {
    type Error = String;

    fn try_from(api: ApiBootstrap) -> Result<Self, String> {
        Ok(Self {
            header: api.header.try_into()?,
            current_sync_committee: api.current_sync_committee,
            current_sync_committee_branch: api.current_sync_committee_branch,
        })
    }
}

/// An update of any kind.
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
    type Error = String;

    fn try_from(api: ApiUpdate) -> Result<Self, String> {
        // What is missing is all zero in the API.
        let missing = |branch: &[Hash]| branch.iter().all(|hash| hash.0 == [0; 32]);
        let (no_committee, no_finality) =
            (missing(&api.next_sync_committee_branch), missing(&api.finality_branch));
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
