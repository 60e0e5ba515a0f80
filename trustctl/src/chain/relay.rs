//! The relay: makes bundles of headers and proofs for nodes. Nodes verify all of it, so a relay can
//! be slow or silent, but it cannot lie.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use ledger::ethereum::beacon_api::{ApiBootstrap, ApiUpdate};
use ledger::ethereum::types::{
    AccountProof, AccountValue, Bootstrap, Bytes, Format, Header, Hex, Proofs, RecordProof, Update,
};
use ledger::ethereum::{Bundle, ExecutionBlock, Hash, MAX_BUNDLE_BYTES, keccak256, storage_key};
use serde::Deserialize;
use serde_json::{Value, json};

use super::encoding::{number_bytes, word_of};
use super::nodes::{BeaconNode, ExecutionNode};
use super::query::{BundleRequest, StartingPoint};

/// Updates that a beacon node gives at once (beacon-APIs, MAX_REQUEST_LIGHT_CLIENT_UPDATES).
const MAX_UPDATES_PER_REQUEST: u64 = 128;
/// Bytes of an update in JSON for each member of the sync committee: a key of 48 bytes in hex, with
/// `0x`, quotes and comma.
const UPDATE_BYTES_PER_KEY: u64 = 102;
/// Bytes of the rest of an update in JSON.
const UPDATE_BYTES_FIXED: u64 = 4000;

/// Maker of bundles, with a beacon node and an execution node.
pub struct Relay {
    beacon: BeaconNode,
    execution: ExecutionNode,
    contract: Hex<20>,
    mapping_slot: u64,
    slots_per_period: u64,
    /// Sync committee periods whose updates fit into one bundle.
    max_periods: u64,
}

/// Result of `eth_getProof` (EIP-1186).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GetProofResult {
    account_proof: Vec<Bytes>,
    nonce: String,
    balance: String,
    storage_hash: Hash,
    code_hash: Hash,
    storage_proof: Vec<StorageProof>,
}

#[derive(Deserialize)]
struct StorageProof {
    value: String,
    proof: Vec<Bytes>,
}

impl Relay {
    /// Makes a relay and asks the beacon node for its network's sizes. `mapping_slot` is the
    /// storage slot of the registry's mapping of records.
    ///
    /// # Errors
    /// Returns an error if the beacon node cannot be reached or has no valid sizes.
    pub fn new(
        beacon: &str,
        execution: &str,
        contract: Hex<20>,
        mapping_slot: u64,
    ) -> Result<Self> {
        let beacon = BeaconNode::new(beacon);
        let slots_per_period = beacon
            .spec("SLOTS_PER_EPOCH")?
            .saturating_mul(beacon.spec("EPOCHS_PER_SYNC_COMMITTEE_PERIOD")?);
        ensure!(slots_per_period > 0, "the beacon node's sync committee period has no slots");
        let keys = beacon.spec("SYNC_COMMITTEE_SIZE")?;
        let update_bytes = keys.saturating_mul(UPDATE_BYTES_PER_KEY) + UPDATE_BYTES_FIXED;
        Ok(Self {
            beacon,
            execution: ExecutionNode::new(execution),
            contract,
            mapping_slot,
            slots_per_period,
            max_periods: MAX_BUNDLE_BYTES as u64 / update_bytes,
        })
    }

    /// Makes a bundle from the present state of the chain.
    ///
    /// # Errors
    /// Returns an error if a node cannot be reached or lacks a block, nothing is finalized yet, or
    /// the node that asks is too far behind for one bundle.
    pub fn bundle(&self, request: &BundleRequest) -> Result<Bundle> {
        let finality = self.update("/eth/v1/beacon/light_client/finality_update")?;
        // Not every beacon node serves optimistic updates; a bundle is useful without one.
        let optimistic = self.update("/eth/v1/beacon/light_client/optimistic_update").ok();
        let optimistic = optimistic.filter(|newer| {
            newer.attested_header.beacon.slot > finality.attested_header.beacon.slot
        });
        let (bootstrap, first) = match &request.from {
            StartingPoint::Checkpoint(root) => {
                let bootstrap = self.bootstrap(root)?;
                let period = self.period(&bootstrap.header);
                (Some(bootstrap), period)
            }
            StartingPoint::Period(period) => (None, *period),
        };
        let last = self.period(&finality.attested_header);
        let periods = (last + 1).saturating_sub(first);
        ensure!(
            periods <= self.max_periods,
            "{periods} periods are too many for one bundle, at most {} fit: \
             a newer checkpoint is needed",
            self.max_periods
        );
        let finalized_header = finality
            .finalized_header
            .as_ref()
            .context("the beacon node has no finalized block yet; wait for two more epochs")?;
        let at_final = self.proofs(finalized_header, &request.digests)?;
        let attested_header = &optimistic.as_ref().unwrap_or(&finality).attested_header;
        let attested = self.proofs(attested_header, &request.digests).ok();
        Ok(Bundle {
            format: Format::V1,
            bootstrap,
            updates: self.updates(first, last)?,
            finality,
            optimistic,
            at_final,
            attested,
        })
    }

    fn period(&self, header: &Header) -> u64 {
        header.beacon.slot / self.slots_per_period
    }

    fn bootstrap(&self, root: &Hash) -> Result<Bootstrap> {
        let api: ApiBootstrap =
            self.beacon.data(&format!("/eth/v1/beacon/light_client/bootstrap/{root}"))?;
        Ok(api.try_into()?)
    }

    fn update(&self, path: &str) -> Result<Update> {
        let api: ApiUpdate = self.beacon.data(path)?;
        Ok(api.try_into()?)
    }

    /// Returns the updates that name the next sync committee, one per period. The present period's
    /// may be absent.
    fn updates(&self, first: u64, last: u64) -> Result<Vec<Update>> {
        let mut updates = Vec::new();
        let mut start = first;
        while start <= last {
            let count = (last - start + 1).min(MAX_UPDATES_PER_REQUEST);
            match self.updates_of(start, count) {
                Ok(answer) => updates.extend(answer),
                // Some nodes answer with an error if one update is absent: request each alone.
                Err(_) => {
                    for period in start..start + count {
                        match self.updates_of(period, 1) {
                            Ok(answer) => updates.extend(answer),
                            Err(_) if period == last => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            start += count;
        }
        Ok(updates)
    }

    fn updates_of(&self, start: u64, count: u64) -> Result<Vec<Update>> {
        let path =
            format!("/eth/v1/beacon/light_client/updates?start_period={start}&count={count}");
        self.beacon
            .data_list::<ApiUpdate>(&path)?
            .into_iter()
            .map(|api| Ok(Update::try_from(api)?))
            .collect()
    }

    /// Returns the registry's account and the records at a block, with their proofs.
    fn proofs(&self, header: &Header, digests: &[Hash]) -> Result<Proofs> {
        let slot = header.beacon.slot;
        let hash = header.block_hash.as_ref().with_context(|| {
            format!("slot {slot} is before Capella: its header does not lead to its block")
        })?;
        let (rlp, block) = self.execution.header(hash)?;
        let proof = self.get_proof(block, digests)?;
        // The execution node looked the block up by number. If the head was abandoned meanwhile,
        // another block has that number now.
        let root = ExecutionBlock::decode(&rlp, hash)?.state_root;
        let is_of_block =
            proof.account_proof.first().is_some_and(|node| keccak256(&node.0) == root);
        ensure!(
            is_of_block,
            "eth_getProof: the proofs are not of the block {block} with the hash {hash}"
        );
        let nonce =
            bytes(&proof.nonce)?.iter().fold(0, |all: u64, byte| all << 8 | u64::from(*byte));
        let value = AccountValue {
            nonce,
            balance: Bytes(bytes(&proof.balance)?),
            storage: proof.storage_hash,
            code: proof.code_hash,
        };
        // Nodes return an absent account as an empty one.
        let is_absent = value.code.0 == [0; 32]
            || (value.nonce == 0 && value.balance.0.is_empty() && value.code.0 == keccak256(&[]));
        let mut records = BTreeMap::new();
        for (digest, slot) in digests.iter().zip(proof.storage_proof) {
            let word = word_of(&bytes(&slot.value)?)
                .context("eth_getProof: a storage value has more than 32 bytes")?;
            records.insert(*digest, RecordProof { word: Hash::new(word), proof: slot.proof });
        }
        let value = (!is_absent).then_some(value);
        Ok(Proofs {
            header: rlp,
            account: AccountProof { value, proof: proof.account_proof },
            records,
        })
    }

    fn get_proof(&self, block: u64, digests: &[Hash]) -> Result<GetProofResult> {
        let keys: Vec<String> = digests
            .iter()
            .map(|digest| storage_key(digest, self.mapping_slot).to_string())
            .collect();
        let params = json!([self.contract.to_string(), keys, format!("{block:#x}")]);
        let answer: Value = self.execution.call("eth_getProof", params)?;
        serde_json::from_value(answer).context("eth_getProof: not the form of EIP-1186")
    }
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    text.strip_prefix("0x")
        .and_then(number_bytes)
        .with_context(|| format!("eth_getProof: expected 0x and hex digits, found {text:?}"))
}
