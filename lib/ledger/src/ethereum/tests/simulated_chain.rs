//! A small chain with real keys, Merkle trees and tries. Every bundle of it is valid until a test
//! alters it.

use std::collections::BTreeMap;

use alloy_primitives::B256;
use alloy_trie::{HashBuilder, Nibbles, proof::ProofRetainer};
use blst::min_pk::{AggregatePublicKey, AggregateSignature, PublicKey, SecretKey, Signature};

use super::super::committee::committee_root;
use super::super::ssz::hash_pair;
use super::super::types::*;
use super::super::*;

const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
pub(super) const GENESIS_TIME: u64 = 1_700_000_000;
const SECONDS_PER_SLOT: u64 = 12;
const MAPPING_SLOT: u64 = 0;
/// Slot of the block that is the checkpoint.
const CHECKPOINT_SLOT: u64 = 8;

/// A Merkle tree with few nodes, by generalized index. All others are zero.
struct SparseTree(BTreeMap<u64, Root>);

impl SparseTree {
    fn node(&self, index: u64) -> Root {
        if let Some(leaf) = self.0.get(&index) {
            return *leaf;
        }
        let is_below = |leaf: &u64| {
            *leaf > index
                && leaf.ilog2() >= index.ilog2()
                && leaf >> (leaf.ilog2() - index.ilog2()) == index
        };
        if self.0.keys().any(is_below) {
            hash_pair(&self.node(2 * index), &self.node(2 * index + 1))
        } else {
            [0; 32]
        }
    }

    fn branch(&self, index: u64) -> Vec<Hash> {
        (0..index.ilog2()).map(|height| Hash::new(self.node(index >> height ^ 1))).collect()
    }
}

pub(super) struct SimulatedChain {
    pub(super) settings: Settings,
    /// Words of the registry's records, by digest.
    pub(super) words: BTreeMap<Hash, Root>,
    /// Number of members of each committee that sign.
    pub(super) signers: usize,
}

pub(super) struct SimulatedBlock {
    pub(super) header: Header,
    pub(super) proofs: Proofs,
    state: SparseTree,
}

/// Returns the start of a slot in seconds since 1970.
pub(super) fn time(slot: u64) -> u64 {
    GENESIS_TIME + slot * SECONDS_PER_SLOT
}

pub(super) fn digest(n: u8) -> Hash {
    Hash::new([n; 32])
}

/// Packs a record as the contract does.
pub(super) fn word(status: u8, not_after: u64, seq: u8) -> Root {
    let mut word = [0; 32];
    word[31] = status;
    word[15..23].copy_from_slice(&not_after.to_be_bytes());
    word[14] = seq;
    word
}

impl SimulatedChain {
    /// Makes a chain whose forks are given by name and epoch.
    pub(super) fn new(forks: &[(&str, u64)]) -> Self {
        let layout = |name: &str| *LAYOUTS.iter().find(|layout| layout.name == name).unwrap();
        let forks: Vec<Fork> = forks
            .iter()
            .enumerate()
            .map(|(n, (name, epoch))| Fork {
                epoch: *epoch,
                version: [n as u8, 0, 0, 1],
                layout: layout(name),
            })
            .collect();
        let network = Network {
            preset: MINIMAL,
            genesis_validators_root: [0x77; 32],
            genesis_time: GENESIS_TIME,
            seconds_per_slot: SECONDS_PER_SLOT,
            forks,
        };
        let contract = RegistryContract {
            address: Hex([0xc0; 20]),
            code_hash: Hash::new([0xcd; 32]),
            mapping_slot: MAPPING_SLOT,
        };
        let settings = Settings {
            network,
            checkpoint: [0; 32],
            contract,
            max_age: 7200,
            require: ApprovalLevel::Clear,
        };
        let mut chain = Self { settings, words: BTreeMap::new(), signers: 32 };
        chain.settings.checkpoint = chain.block(CHECKPOINT_SLOT, None).header.beacon.root();
        chain
    }

    /// Makes a chain that has been in Capella from its first slot.
    pub(super) fn capella() -> Self {
        Self::new(&[("capella", 0)])
    }

    /// Makes a client that has not applied a bundle yet.
    pub(super) fn client(&self) -> LightClient {
        LightClient::new(self.settings.clone())
    }

    /// Makes a store that starts at the checkpoint.
    pub(super) fn store(&self) -> LightClientStore {
        let (network, checkpoint) = (&self.settings.network, &self.settings.checkpoint);
        LightClientStore::bootstrap(network, checkpoint, &self.bootstrap()).unwrap()
    }

    fn keys(period: u64) -> Vec<SecretKey> {
        (0..32u8)
            .map(|n| {
                SecretKey::key_gen(&[[n; 24].as_slice(), &period.to_be_bytes()].concat(), &[])
                    .unwrap()
            })
            .collect()
    }

    pub(super) fn committee(period: u64) -> SyncCommittee {
        let keys: Vec<PublicKey> = Self::keys(period).iter().map(SecretKey::sk_to_pk).collect();
        let aggregate = AggregatePublicKey::aggregate(&keys.iter().collect::<Vec<_>>(), false)
            .unwrap()
            .to_public_key();
        SyncCommittee {
            pubkeys: keys.iter().map(|key| Hex(key.compress())).collect(),
            aggregate_pubkey: Hex(aggregate.compress()),
        }
    }

    /// Makes the block of a slot, whose state has `finalized` as finalized.
    pub(super) fn block(&self, slot: u64, finalized: Option<&Header>) -> SimulatedBlock {
        let layout = self.settings.network.layout(slot);
        let period = MINIMAL.period(slot);
        let root = |period| committee_root(&Self::committee(period));
        let finalized_root = finalized.map_or([0; 32], |header| header.beacon.root());
        let state = SparseTree(BTreeMap::from([
            (layout.current_sync_committee, root(period)),
            (layout.next_sync_committee, root(period + 1)),
            (layout.finalized_root, finalized_root),
        ]));
        let (rlp, account, records) = self.execution_block(slot);
        let hash = Hash::new(keccak256(&rlp));
        let body = SparseTree(layout.block_hash.map(|index| (index, hash.0)).into_iter().collect());
        let beacon = BeaconBlockHeader {
            slot,
            proposer_index: slot % 7,
            parent_root: Hash::new([slot as u8; 32]),
            state_root: Hash::new(state.node(1)),
            body_root: Hash::new(body.node(1)),
        };
        let branch = layout.block_hash.map(|index| body.branch(index));
        let header = Header {
            beacon,
            block_hash: layout.block_hash.map(|_| hash),
            block_hash_branch: branch.unwrap_or_default(),
        };
        SimulatedBlock { header, proofs: Proofs { header: Bytes(rlp), account, records }, state }
    }

    /// Makes the execution block of a slot: its header, and the proofs of its state.
    fn execution_block(&self, slot: u64) -> (Vec<u8>, AccountProof, BTreeMap<Hash, RecordProof>) {
        let contract = &self.settings.contract;
        let hashed_key =
            |digest: &Hash| B256::from(keccak256(&storage_key(digest, contract.mapping_slot).0));
        let digests: Vec<Hash> = (1..=3).map(digest).collect();
        let mut words: BTreeMap<B256, Vec<u8>> = (0..20u8)
            .map(|n| (B256::from(keccak256(&[n; 32])), alloy_rlp::encode(&[n + 1][..])))
            .collect();
        // The checkpoint is older than all records.
        for (digest, word) in self.words.iter().filter(|_| slot > CHECKPOINT_SLOT) {
            let first = word.iter().position(|byte| *byte != 0).unwrap_or(32);
            words.insert(hashed_key(digest), alloy_rlp::encode(&word[first..]));
        }
        let keys: Vec<B256> = digests.iter().map(hashed_key).collect();
        let (storage, proofs) = trie(&words, &keys);
        let code_hash = contract.code_hash;
        let value = AccountValue {
            nonce: 1,
            balance: Bytes(vec![1, 0]),
            storage: Hash::new(storage),
            code: code_hash,
        };
        let encoded = rlp_list(&[vec![1], vec![1, 0], storage.to_vec(), code_hash.0.to_vec()]);
        let mut accounts: BTreeMap<B256, Vec<u8>> = (0..20u8)
            .map(|n| (B256::from(keccak256(&[n; 20])), rlp_list(&[vec![n + 1; 40]])))
            .collect();
        let key = B256::from(keccak256(&contract.address.0));
        accounts.insert(key, encoded);
        let (state_root, account) = trie(&accounts, &[key]);
        let mut fields = vec![vec![0x11; 32]; 16];
        (fields[3], fields[8], fields[11]) =
            (state_root.to_vec(), vec![1, slot as u8 | 1], vec![9, 9]);
        let records = digests.iter().zip(proofs).map(|(digest, proof)| {
            let word = self.words.get(digest).copied().unwrap_or_default();
            (*digest, RecordProof { word: Hash::new(word), proof })
        });
        let account =
            AccountProof { value: Some(value), proof: account.into_iter().next().unwrap() };
        (rlp_list(&fields), account, records.collect())
    }

    /// Signs a header as the committee of the signature's period.
    pub(super) fn sign(&self, header: &Header, signature_slot: u64) -> SyncAggregate {
        let keys = Self::keys(MINIMAL.period(signature_slot));
        let message = self.settings.network.signing_root(&header.beacon.root(), signature_slot);
        let signatures: Vec<Signature> =
            keys[..self.signers].iter().map(|key| key.sign(&message, DST, &[])).collect();
        let aggregate =
            AggregateSignature::aggregate(&signatures.iter().collect::<Vec<_>>(), false)
                .unwrap()
                .to_signature();
        let bits = (u64::MAX >> (64 - self.signers)) as u32;
        SyncAggregate {
            sync_committee_bits: Bytes(bits.to_le_bytes().to_vec()),
            sync_committee_signature: Hex(aggregate.compress()),
        }
    }

    /// Makes an update that attests one slot and has another one as finalized.
    pub(super) fn update(&self, attested: u64, finalized: Option<u64>, with_next: bool) -> Update {
        let finalized = finalized.map(|slot| self.block(slot, None).header);
        let block = self.block(attested, finalized.as_ref());
        let layout = self.settings.network.layout(attested);
        let branch = |present: bool, index: u64| {
            if present { block.state.branch(index) } else { Vec::new() }
        };
        Update {
            next_sync_committee: with_next.then(|| Self::committee(MINIMAL.period(attested) + 1)),
            next_sync_committee_branch: branch(with_next, layout.next_sync_committee),
            finality_branch: branch(finalized.is_some(), layout.finalized_root),
            finalized_header: finalized,
            sync_aggregate: self.sign(&block.header, attested + 1),
            signature_slot: attested + 1,
            attested_header: block.header,
        }
    }

    pub(super) fn bootstrap(&self) -> Bootstrap {
        let block = self.block(CHECKPOINT_SLOT, None);
        let index = self.settings.network.layout(CHECKPOINT_SLOT).current_sync_committee;
        Bootstrap {
            current_sync_committee: Self::committee(0),
            current_sync_committee_branch: block.state.branch(index),
            header: block.header,
        }
    }

    /// Makes a bundle from the checkpoint to a finalized slot, with one update a period.
    pub(super) fn bundle(&self, finalized: u64) -> Bundle {
        let attested = finalized + 16;
        let updates = (0..MINIMAL.period(attested))
            .map(|period| self.update(period * 64 + 40, Some(period * 64 + 24), true))
            .collect();
        Bundle {
            format: Format::V1,
            bootstrap: Some(self.bootstrap()),
            updates,
            finality: self.update(attested, Some(finalized), false),
            optimistic: None,
            at_final: self.block(finalized, None).proofs,
            attested: Some(self.block(attested, None).proofs),
        }
    }
}

/// Makes a trie of values by their hashed keys. Returns its root and the proofs of some keys.
fn trie(values: &BTreeMap<B256, Vec<u8>>, keys: &[B256]) -> (Root, Vec<Vec<Bytes>>) {
    let mut builder = HashBuilder::default()
        .with_proof_retainer(ProofRetainer::new(keys.iter().map(Nibbles::unpack).collect()));
    for (key, value) in values {
        builder.add_leaf(Nibbles::unpack(key), value);
    }
    let root = builder.root();
    let nodes = builder.take_proof_nodes();
    let proof = |key: &B256| {
        nodes
            .matching_nodes_sorted(&Nibbles::unpack(key))
            .into_iter()
            .map(|(_, node)| Bytes(node.to_vec()))
            .collect()
    };
    (root.0, keys.iter().map(proof).collect())
}
