//! The execution layer: the header of a block, its state, and the storage of one contract
//! (Ethereum yellow paper, 4.3 and appendix D; EIP-1186).

use alloy_primitives::{B256, U256};
use alloy_rlp::{Encodable as _, Header as RlpHeader};
use alloy_trie::{Nibbles, proof::verify_proof};

use super::error::ChainError;
use super::ssz::Root;
use super::types::{AccountProof, Bytes, Hash, Hex, RecordProof};

/// Indices of fields in a block's header: parentHash, ommersHash, beneficiary, stateRoot, …,
/// number, gasLimit, gasUsed, timestamp.
const STATE_ROOT: usize = 3;
const NUMBER: usize = 8;
const TIMESTAMP: usize = 11;
/// Number of fields of a header since London. Later forks add fields.
const MIN_HEADER_FIELDS: usize = 16;
const MAX_HEADER_FIELDS: usize = 40;

/// The fields of an execution block's header that a light client needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutionBlock {
    /// Number of the block.
    pub number: u64,
    /// Time of the block in seconds since 1970.
    pub timestamp: u64,
    /// Root of the state after the block.
    pub state_root: Root,
}

impl ExecutionBlock {
    /// Verifies that a header in RLP has this hash, and decodes it.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::BlockHash`] or [`ChainError::BlockHeader`].
    pub fn decode(header: &Bytes, hash: &Hash) -> Result<Self, ChainError> {
        let found = Hash::new(keccak256(&header.0));
        if found != *hash {
            return Err(ChainError::BlockHash { expected: *hash, found });
        }
        let malformed = |problem: &str| ChainError::BlockHeader(problem.to_owned());
        let mut rest = &header.0[..];
        let mut list =
            RlpHeader::decode_bytes(&mut rest, true).map_err(|e| malformed(&e.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        let mut fields = Vec::new();
        while !list.is_empty() {
            if fields.len() == MAX_HEADER_FIELDS {
                return Err(malformed("it has too many fields"));
            }
            let field = RlpHeader::decode_bytes(&mut list, false);
            fields.push(field.map_err(|e| malformed(&e.to_string()))?);
        }
        if fields.len() < MIN_HEADER_FIELDS {
            return Err(malformed("it has too few fields"));
        }
        let number = |n: usize| -> Result<u64, ChainError> {
            let bytes = fields[n];
            if bytes.len() > 8 || bytes.first() == Some(&0) {
                return Err(malformed("a number has more than 8 bytes or a leading zero"));
            }
            Ok(bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        let state_root = fields[STATE_ROOT]
            .try_into()
            .map_err(|_| malformed("its state root does not have 32 bytes"))?;
        Ok(Self { number: number(NUMBER)?, timestamp: number(TIMESTAMP)?, state_root })
    }
}

/// The registry contract that a node pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryContract {
    /// Address of the contract.
    pub address: Hex<20>,
    /// Keccak-256 of the contract's code.
    pub code_hash: Hash,
    /// Storage slot of the mapping with the records.
    pub mapping_slot: u64,
}

impl RegistryContract {
    /// Verifies the proof of the contract's account and its code, and returns the root of its
    /// storage.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::AccountProof`], [`ChainError::NoContract`] or [`ChainError::Code`].
    pub fn verify_account(
        &self,
        state_root: &Root,
        account: &AccountProof,
    ) -> Result<Root, ChainError> {
        let key = Nibbles::unpack(keccak256(&self.address.0));
        let value = account.value.as_ref();
        let encoded = value.map(|value| {
            let nonce = value.nonce.to_be_bytes();
            let nonce = nonce[value.nonce.leading_zeros() as usize / 8..].to_vec();
            let (storage, code) = (value.storage.0.to_vec(), value.code.0.to_vec());
            rlp_list(&[nonce, value.balance.0.clone(), storage, code])
        });
        verify_proof(B256::from(*state_root), key, encoded, &trie_nodes(&account.proof))
            .map_err(|e| ChainError::AccountProof(e.to_string()))?;
        let Some(value) = value else {
            return Err(ChainError::NoContract { address: self.address.to_string() });
        };
        if value.code != self.code_hash {
            return Err(ChainError::Code { expected: self.code_hash, found: value.code });
        }
        Ok(value.storage.0)
    }

    /// Verifies that a word is that of a digest's record. A zero word proves that there is none.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::RecordProof`] if the proof does not verify.
    pub fn verify_record(
        &self,
        storage_root: &Root,
        digest: &Hash,
        record: &RecordProof,
    ) -> Result<(), ChainError> {
        let key = Nibbles::unpack(keccak256(&storage_key(digest, self.mapping_slot).0));
        let word = U256::from_be_bytes(record.word.0);
        let value = (!word.is_zero()).then(|| {
            let mut encoded = Vec::new();
            word.encode(&mut encoded);
            encoded
        });
        verify_proof(B256::from(*storage_root), key, value, &trie_nodes(&record.proof))
            .map_err(|e| ChainError::RecordProof { digest: *digest, problem: e.to_string() })
    }
}

fn trie_nodes(proof: &[Bytes]) -> Vec<alloy_primitives::Bytes> {
    proof.iter().map(|node| node.0.clone().into()).collect()
}

/// Returns the place of `mapping[digest]` in a contract's storage (Solidity documentation, layout
/// of mappings).
pub fn storage_key(digest: &Hash, mapping_slot: u64) -> Hash {
    let mut text = [0; 64];
    text[..32].copy_from_slice(&digest.0);
    text[56..].copy_from_slice(&mapping_slot.to_be_bytes());
    Hash::new(keccak256(&text))
}

/// Encodes a list of byte strings in RLP: an account, or a block's header.
pub fn rlp_list(items: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for item in items {
        item[..].encode(&mut payload);
    }
    rlp_list_of_encoded(&payload)
}

/// Encodes a list in RLP whose items are already encoded.
pub fn rlp_list_of_encoded(payload: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    RlpHeader { list: true, payload_length: payload.len() }.encode(&mut encoded);
    encoded.extend(payload);
    encoded
}

/// Encodes one byte string in RLP.
pub fn rlp_bytes(bytes: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    bytes.encode(&mut encoded);
    encoded
}

/// Computes Keccak-256.
pub fn keccak256(bytes: &[u8]) -> Root {
    alloy_primitives::keccak256(bytes).0
}
