//! The execution layer: a block's header, its state, one contract's storage (Ethereum yellow paper,
//! 4.3 and appendix D; EIP-1186).

use alloy_primitives::{B256, U256, keccak256};
use alloy_rlp::{Encodable as _, Header as Rlp};
use alloy_trie::{Nibbles, proof::verify_proof};

use super::ChainError;
use super::ssz::Root;
use super::types::{Account, Bytes, Hash, Hex, Slot};

/// In a header: parentHash, ommersHash, beneficiary, stateRoot, …, number, gasLimit, gasUsed,
/// timestamp.
const STATE_ROOT: usize = 3;
const NUMBER: usize = 8;
const TIMESTAMP: usize = 11;
/// What a header has since London; later forks add more.
const FEWEST_FIELDS: usize = 16;
const MOST_FIELDS: usize = 40;

/// What is used of an execution block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub number: u64,
    pub timestamp: u64,
    pub state_root: Root,
}

impl Block {
    /// The block with this hash.
    pub fn read(header: &Bytes, hash: &Hash) -> Result<Self, ChainError> {
        let found = Hash::new(keccak256(&header.0).0);
        if found != *hash {
            return Err(ChainError::BlockHash { expected: *hash, found });
        }
        let wrong = |problem: &str| ChainError::BlockHeader(problem.to_owned());
        let mut rest = &header.0[..];
        let mut fields = Rlp::decode_bytes(&mut rest, true).map_err(|e| wrong(&e.to_string()))?;
        if !rest.is_empty() {
            return Err(wrong("there is more behind it"));
        }
        let mut found = Vec::new();
        while !fields.is_empty() {
            if found.len() == MOST_FIELDS {
                return Err(wrong("it has too many fields"));
            }
            found.push(Rlp::decode_bytes(&mut fields, false).map_err(|e| wrong(&e.to_string()))?);
        }
        if found.len() < FEWEST_FIELDS {
            return Err(wrong("it has too few fields"));
        }
        let number = |n: usize| -> Result<u64, ChainError> {
            let bytes = found[n];
            if bytes.len() > 8 || bytes.first() == Some(&0) {
                return Err(wrong("a number in it is not one"));
            }
            Ok(bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        let state_root =
            found[STATE_ROOT].try_into().map_err(|_| wrong("its state root has not 32 bytes"))?;
        Ok(Self { number: number(NUMBER)?, timestamp: number(TIMESTAMP)?, state_root })
    }
}

/// The registry that is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    pub address: Hex<20>,
    /// Keccak-256 of its code.
    pub code: Hash,
    /// Where the mapping of the records is in its storage.
    pub mapping: u64,
}

impl Contract {
    /// The root of its storage, if it is the one that is pinned.
    pub fn storage(&self, state_root: &Root, account: &Account) -> Result<Root, ChainError> {
        let key = Nibbles::unpack(keccak256(self.address.0));
        let value = account.value.as_ref();
        let encoded = value.map(|value| {
            let nonce = value.nonce.to_be_bytes();
            let nonce = nonce[value.nonce.leading_zeros() as usize / 8..].to_vec();
            list(&[nonce, value.balance.0.clone(), value.storage.0.to_vec(), value.code.0.to_vec()])
        });
        let nodes: Vec<alloy_primitives::Bytes> = nodes(&account.proof);
        verify_proof(B256::from(*state_root), key, encoded, &nodes)
            .map_err(|e| ChainError::AccountProof(e.to_string()))?;
        let Some(value) = value else {
            return Err(ChainError::NoContract { address: self.address.to_string() });
        };
        if value.code != self.code {
            return Err(ChainError::Code { expected: self.code, found: value.code });
        }
        Ok(value.storage.0)
    }

    /// Checks that this is the word of a digest's record; all zero where there is none.
    pub fn check(&self, storage: &Root, digest: &Hash, slot: &Slot) -> Result<(), ChainError> {
        let key = Nibbles::unpack(keccak256(storage_key(digest, self.mapping).0));
        let word = U256::from_be_bytes(slot.word.0);
        let value = (!word.is_zero()).then(|| {
            let mut encoded = Vec::new();
            word.encode(&mut encoded);
            encoded
        });
        let nodes: Vec<alloy_primitives::Bytes> = nodes(&slot.proof);
        verify_proof(B256::from(*storage), key, value, &nodes)
            .map_err(|e| ChainError::RecordProof { digest: *digest, problem: e.to_string() })
    }
}

fn nodes(proof: &[Bytes]) -> Vec<alloy_primitives::Bytes> {
    proof.iter().map(|node| node.0.clone().into()).collect()
}

/// Where Solidity keeps `mapping[digest]` (docs.soliditylang.org, layout of mappings).
pub fn storage_key(digest: &Hash, mapping: u64) -> Hash {
    let mut text = [0; 64];
    text[..32].copy_from_slice(&digest.0);
    text[56..].copy_from_slice(&mapping.to_be_bytes());
    Hash::new(keccak256(text).0)
}

/// RLP of a list of byte strings: an account; a block's header, for relays, whose nodes speak JSON.
pub fn list(fields: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for field in fields {
        field[..].encode(&mut payload);
    }
    list_of(&payload)
}

/// RLP of a list whose items are encoded already.
pub fn list_of(payload: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    Rlp { list: true, payload_length: payload.len() }.encode(&mut whole);
    whole.extend(payload);
    whole
}

/// RLP of one byte string.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    bytes.encode(&mut encoded);
    encoded
}

/// Keccak-256, for relays and for who deploys.
pub fn keccak(bytes: &[u8]) -> Root {
    keccak256(bytes).0
}
