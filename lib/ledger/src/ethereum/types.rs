//! Types of a relay's bundle: the light client's objects in the form of the Beacon API, except for
//! headers, and the proofs of `eth_getProof`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::ssz::{Root, merkleize, uint64_root};

/// Bytes of a fixed length, in JSON `0x` and hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex<const N: usize>(pub [u8; N]);

/// Bytes of any length, in JSON `0x` and hex digits.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

/// A hash of 32 bytes.
pub type Hash = Hex<32>;

impl Hash {
    /// Wraps the bytes of a hash.
    pub fn new(root: Root) -> Self {
        Self(root)
    }
}

/// A text is not `0x` and hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 0x and {expected}, found {found:?}")]
pub struct HexError {
    /// Digits that are expected after `0x`.
    expected: String,
    /// Start of the rejected text.
    found: String,
}

impl HexError {
    fn new(expected: String, text: &str) -> Self {
        Self { expected, found: truncate(text) }
    }
}

impl<const N: usize> std::fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl<const N: usize> std::fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{}", measure::hex(&self.0))
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{}", measure::hex(&self.0))
    }
}

impl<const N: usize> std::str::FromStr for Hex<N> {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let bytes = decode_hex(text).and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or_else(|| HexError::new(format!("{} hex digits", 2 * N), text))
    }
}

/// Decodes digits of either case: the checksum of an address is in the case of its digits (ERC-55).
fn decode_hex(text: &str) -> Option<Vec<u8>> {
    measure::unhex(&text.strip_prefix("0x")?.to_ascii_lowercase())
}

fn truncate(text: &str) -> String {
    text.chars().take(80).collect()
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let malformed = || HexError::new("hex digits".into(), &text);
        decode_hex(&text).map(Self).ok_or_else(malformed).map_err(D::Error::custom)
    }
}

/// Serialises numbers as decimal strings, the form of the Beacon API.
pub(super) mod decimal {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(n: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(n)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let digits_only = text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits_only).ok_or_else(|| {
            D::Error::custom(format!("expected a decimal number, found {:?}", truncate(&text)))
        })
    }
}

/// The specification's `BeaconBlockHeader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeaconBlockHeader {
    /// Slot of the block.
    #[serde(with = "decimal")]
    pub slot: u64,
    /// Index of the validator that proposed the block.
    #[serde(with = "decimal")]
    pub proposer_index: u64,
    /// Root of the previous block's header.
    pub parent_root: Hash,
    /// Root of the beacon state after the block.
    pub state_root: Hash,
    /// Root of the block's body.
    pub body_root: Hash,
}

impl BeaconBlockHeader {
    /// Computes the specification's `hash_tree_root`, which identifies the block.
    pub fn root(&self) -> Root {
        merkleize(
            &[
                uint64_root(self.slot),
                uint64_root(self.proposer_index),
                self.parent_root.0,
                self.state_root.0,
                self.body_root.0,
            ],
            3,
        )
    }
}

/// The specification's `LightClientHeader`, with the hash of the execution block in place of the
/// fork's execution payload header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Header of the beacon block.
    pub beacon: BeaconBlockHeader,
    /// Hash of the execution block. Missing before Capella.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_hash: Option<Hash>,
    /// Merkle branch from the execution block's hash to the body of the beacon block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub block_hash_branch: Vec<Hash>,
}

/// The specification's `SyncCommittee`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncCommittee {
    /// BLS public keys of the members.
    pub pubkeys: Vec<Hex<48>>,
    /// Sum of the public keys.
    pub aggregate_pubkey: Hex<48>,
}

/// The specification's `SyncAggregate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncAggregate {
    /// Participation: one bit per member, the first member in the lowest bit of the first byte.
    pub sync_committee_bits: Bytes,
    /// Aggregate BLS signature of the members whose bits are set.
    pub sync_committee_signature: Hex<96>,
}

impl SyncAggregate {
    /// Returns the number of members that signed.
    pub fn participants(&self) -> usize {
        self.sync_committee_bits.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Reports whether the member with this index signed.
    pub fn has_signed(&self, member: usize) -> bool {
        self.sync_committee_bits.0.get(member / 8).is_some_and(|byte| byte >> (member % 8) & 1 == 1)
    }
}

/// The specification's `LightClientBootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Header of the checkpoint's block.
    pub header: Header,
    /// Sync committee of the block's period.
    pub current_sync_committee: SyncCommittee,
    /// Merkle branch from the committee to the block's state.
    pub current_sync_committee_branch: Vec<Hash>,
}

/// The specification's `LightClientUpdate`, `LightClientFinalityUpdate` and
/// `LightClientOptimisticUpdate` in one type, whose parts may be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Header that the sync committee signed.
    pub attested_header: Header,
    /// Sync committee of the period after the attested header's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_sync_committee: Option<SyncCommittee>,
    /// Merkle branch from the next committee to the attested header's state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_sync_committee_branch: Vec<Hash>,
    /// Header that the attested header's state has as finalized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalized_header: Option<Header>,
    /// Merkle branch from the finalized header to the attested header's state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finality_branch: Vec<Hash>,
    /// Signature over the attested header.
    pub sync_aggregate: SyncAggregate,
    /// Slot at which the signature was made.
    #[serde(with = "decimal")]
    pub signature_slot: u64,
}

/// Registry records at one block, with their proofs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proofs {
    /// Header of the execution block, RLP.
    pub header: Bytes,
    /// Account of the registry.
    pub account: AccountProof,
    /// Records, by image digest.
    pub records: BTreeMap<Hash, RecordProof>,
}

/// An account with its proof, as `eth_getProof` returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountProof {
    /// Fields of the account, `None` if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<AccountValue>,
    /// Nodes of the state trie, from the root.
    pub proof: Vec<Bytes>,
}

/// Fields of an account (Ethereum yellow paper, 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountValue {
    /// Number of contracts that the account created, plus one.
    #[serde(with = "decimal")]
    pub nonce: u64,
    /// Balance in wei, big-endian, without leading zeros.
    pub balance: Bytes,
    /// Root of the account's storage.
    pub storage: Hash,
    /// Keccak-256 of the account's code.
    pub code: Hash,
}

/// One word of the registry's storage with its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordProof {
    /// The word; zero if the storage does not have it.
    pub word: Hash,
    /// Nodes of the storage trie, from the root.
    pub proof: Vec<Bytes>,
}

/// Everything that a node needs from a relay at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Version of the format.
    pub format: Format,
    /// Start at the pinned checkpoint, for a node that does not follow the chain yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// Updates with the next sync committee: one per period, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<Update>,
    /// The newest update with a finalized header.
    pub finality: Update,
    /// The newest update, if it is newer than `finality`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimistic: Option<Update>,
    /// Records at the finalized block.
    #[serde(rename = "final")]
    pub at_final: Proofs,
    /// Records at the attested block of `optimistic`, or without one of `finality`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<Proofs>,
}

/// Version of the bundle's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// The first version.
    #[serde(rename = "basalt-chain-v1")]
    V1,
}
