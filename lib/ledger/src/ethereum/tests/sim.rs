//! A small chain with real keys, real trees and real tries: every bundle of it holds until a test
//! alters something.

use std::collections::BTreeMap;

use alloy_primitives::{B256, keccak256};
use alloy_trie::{HashBuilder, Nibbles, proof::ProofRetainer};
use blst::min_pk::{AggregatePublicKey, AggregateSignature, PublicKey, SecretKey, Signature};

use super::super::ssz::{Root, parent};
use super::super::types::*;
use super::super::*;

const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
pub(super) const GENESIS: u64 = 1_700_000_000;
pub(super) const MAPPING: u64 = 0;

/// A tree of which only some nodes are known; all else is zero.
struct Tree(BTreeMap<u64, Root>);

impl Tree {
    fn node(&self, index: u64) -> Root {
        if let Some(leaf) = self.0.get(&index) {
            return *leaf;
        }
        let below = |leaf: &u64| {
            *leaf > index
                && leaf.ilog2() >= index.ilog2()
                && leaf >> (leaf.ilog2() - index.ilog2()) == index
        };
        if self.0.keys().any(below) {
            parent(&self.node(2 * index), &self.node(2 * index + 1))
        } else {
            [0; 32]
        }
    }

    fn branch(&self, index: u64) -> Vec<Hash> {
        (0..index.ilog2()).map(|height| Hash::new(self.node(index >> height ^ 1))).collect()
    }
}

pub(super) struct Sim {
    pub settings: Settings,
    /// What the registry says, by digest.
    pub words: BTreeMap<Hash, Root>,
    /// Of how many of each committee's members there are signatures.
    pub signers: usize,
}

pub(super) struct Made {
    pub header: Header,
    pub proofs: Proofs,
    state: Tree,
}

pub(super) fn digest(n: u8) -> Hash {
    Hash::new([n; 32])
}

/// A record as the contract packs it.
pub(super) fn word(status: u8, not_after: u64, seq: u8) -> Root {
    let mut word = [0; 32];
    word[31] = status;
    word[15..23].copy_from_slice(&not_after.to_be_bytes());
    word[14] = seq;
    word
}

impl Sim {
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
            genesis_time: GENESIS,
            seconds_per_slot: 12,
            forks,
        };
        let contract =
            Contract { address: Hex([0xc0; 20]), code: Hash::new([0xcd; 32]), mapping: MAPPING };
        let settings = Settings {
            network,
            checkpoint: [0; 32],
            contract,
            max_age: 7200,
            require: Approval::Clear,
        };
        let mut sim = Self { settings, words: BTreeMap::new(), signers: 32 };
        sim.settings.checkpoint = sim.made(8, None).header.beacon.root();
        sim
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
        let all = AggregatePublicKey::aggregate(&keys.iter().collect::<Vec<_>>(), false)
            .unwrap()
            .to_public_key();
        SyncCommittee {
            pubkeys: keys.iter().map(|key| Hex(key.compress())).collect(),
            aggregate_pubkey: Hex(all.compress()),
        }
    }

    /// The block of a slot; its state knows the final block of another one.
    pub(super) fn made(&self, slot: u64, finalized: Option<&Header>) -> Made {
        let layout = self.settings.network.layout(slot);
        let period = MINIMAL.period(slot);
        let root = |period| super::super::committee::root(&Self::committee(period));
        let mut leaves = BTreeMap::from([
            (layout.current_committee, root(period)),
            (layout.next_committee, root(period + 1)),
        ]);
        leaves.insert(layout.finalized, finalized.map_or([0; 32], |header| header.beacon.root()));
        let state = Tree(leaves);
        let (rlp, account, records) = self.execution(slot);
        let block = Hash::new(keccak(&rlp));
        let body = Tree(layout.block_hash.map(|index| (index, block.0)).into_iter().collect());
        let beacon = Beacon {
            slot,
            proposer_index: slot % 7,
            parent_root: Hash::new([slot as u8; 32]),
            state_root: Hash::new(state.node(1)),
            body_root: Hash::new(body.node(1)),
        };
        let header = Header {
            beacon,
            block_hash: layout.block_hash.map(|_| block),
            block_hash_branch: layout
                .block_hash
                .map(|index| body.branch(index))
                .unwrap_or_default(),
        };
        Made { header, proofs: Proofs { header: Bytes(rlp), account, records }, state }
    }

    fn execution(&self, slot: u64) -> (Vec<u8>, Account, BTreeMap<Hash, Slot>) {
        let contract = &self.settings.contract;
        let asked: Vec<Hash> = (1..=3).map(digest).collect();
        let mut slots: BTreeMap<B256, Vec<u8>> =
            (0..20u8).map(|n| (keccak256([n; 32]), alloy_rlp::encode(&[n + 1][..]))).collect();
        // The checkpoint is older than all records.
        for (digest, word) in self.words.iter().filter(|_| slot > 8) {
            let first = word.iter().position(|byte| *byte != 0).unwrap_or(32);
            slots.insert(
                keccak256(storage_key(digest, contract.mapping).0),
                alloy_rlp::encode(&word[first..]),
            );
        }
        let keys: Vec<B256> =
            asked.iter().map(|digest| keccak256(storage_key(digest, contract.mapping).0)).collect();
        let (storage, proofs) = trie(&slots, &keys);
        let value = AccountValue {
            nonce: 1,
            balance: Bytes(vec![1, 0]),
            storage: Hash::new(storage),
            code: contract.code,
        };
        let encoded = list(&[vec![1], vec![1, 0], storage.to_vec(), contract.code.0.to_vec()]);
        let mut accounts: BTreeMap<B256, Vec<u8>> =
            (0..20u8).map(|n| (keccak256([n; 20]), list(&[vec![n + 1; 40]]))).collect();
        let key = keccak256(contract.address.0);
        accounts.insert(key, encoded);
        let (state_root, account) = trie(&accounts, &[key]);
        let mut fields = vec![vec![0x11; 32]; 16];
        (fields[3], fields[8], fields[11]) =
            (state_root.to_vec(), vec![1, slot as u8 | 1], vec![9, 9]);
        let records = asked.iter().zip(proofs).map(|(digest, proof)| {
            let word = self.words.get(digest).copied().unwrap_or_default();
            (*digest, Slot { word: Hash::new(word), proof })
        });
        let account = Account { value: Some(value), proof: account.into_iter().next().unwrap() };
        (list(&fields), account, records.collect())
    }

    /// Signs for a block as the committee of the signature's period.
    pub(super) fn sign(&self, header: &Header, signature_slot: u64) -> SyncAggregate {
        let keys = Self::keys(MINIMAL.period(signature_slot));
        let message = self.settings.network.signing_root(&header.beacon.root(), signature_slot);
        let signatures: Vec<Signature> =
            keys[..self.signers].iter().map(|key| key.sign(&message, DST, &[])).collect();
        let whole = AggregateSignature::aggregate(&signatures.iter().collect::<Vec<_>>(), false)
            .unwrap()
            .to_signature();
        let bits = (u64::MAX >> (64 - self.signers)) as u32;
        SyncAggregate {
            sync_committee_bits: Bytes(bits.to_le_bytes().to_vec()),
            sync_committee_signature: Hex(whole.compress()),
        }
    }

    /// An update that attests one slot and has another one as final.
    pub(super) fn update(&self, attested: u64, finalized: Option<u64>, with_next: bool) -> Update {
        let finalized = finalized.map(|slot| self.made(slot, None).header);
        let made = self.made(attested, finalized.as_ref());
        let layout = self.settings.network.layout(attested);
        Update {
            next_sync_committee: with_next.then(|| Self::committee(MINIMAL.period(attested) + 1)),
            next_sync_committee_branch: if with_next {
                made.state.branch(layout.next_committee)
            } else {
                Vec::new()
            },
            finality_branch: if finalized.is_some() {
                made.state.branch(layout.finalized)
            } else {
                Vec::new()
            },
            finalized_header: finalized,
            sync_aggregate: self.sign(&made.header, attested + 1),
            signature_slot: attested + 1,
            attested_header: made.header,
        }
    }

    pub(super) fn bootstrap(&self) -> Bootstrap {
        let made = self.made(8, None);
        let branch = made.state.branch(self.settings.network.layout(8).current_committee);
        Bootstrap {
            header: made.header,
            current_sync_committee: Self::committee(0),
            current_sync_committee_branch: branch,
        }
    }

    /// From the checkpoint to a final slot, with an update a period.
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
            at_final: self.made(finalized, None).proofs,
            attested: Some(self.made(attested, None).proofs),
        }
    }

    pub(super) fn now(&self, slot: u64) -> u64 {
        self.settings.network.time(slot)
    }
}

/// A trie of these values by their hashed keys; the proofs of some keys.
fn trie(values: &BTreeMap<B256, Vec<u8>>, asked: &[B256]) -> (Root, Vec<Vec<Bytes>>) {
    let mut builder = HashBuilder::default()
        .with_proof_retainer(ProofRetainer::new(asked.iter().map(Nibbles::unpack).collect()));
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
    (root.0, asked.iter().map(proof).collect())
}
