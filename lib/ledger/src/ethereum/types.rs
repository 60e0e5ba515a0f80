//! What a relay sends: the light client's objects in the shape of the Beacon API, but for headers,
//! and the proofs of `eth_getProof`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::ssz::{Root, merkleize, number};

/// Bytes of a known length, `0x` and hex digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex<const N: usize>(pub [u8; N]);

/// Bytes of any length.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

pub type Hash = Hex<32>;

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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = unhex(text).and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            format!("expected 0x and {} hex digits, found {:?}", 2 * N, shortened(text))
        })
    }
}

/// In either case: addresses come with the checksum of ERC-55 in theirs.
fn unhex(text: &str) -> Option<Vec<u8>> {
    measure::unhex(&text.strip_prefix("0x")?.to_ascii_lowercase())
}

fn shortened(text: &str) -> String {
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
        unhex(&text).map(Self).ok_or_else(|| {
            D::Error::custom(format!("expected 0x and hex digits, found {:?}", shortened(&text)))
        })
    }
}

/// Numbers are decimal strings in the Beacon API.
pub mod decimal {
    use super::*;

    pub fn serialize<S: Serializer>(n: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(n)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let plain = text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| plain).ok_or_else(|| {
            D::Error::custom(format!("expected a decimal number, found {:?}", shortened(&text)))
        })
    }
}

/// The spec's `BeaconBlockHeader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beacon {
    #[serde(with = "decimal")]
    pub slot: u64,
    #[serde(with = "decimal")]
    pub proposer_index: u64,
    pub parent_root: Hash,
    pub state_root: Hash,
    pub body_root: Hash,
}

impl Beacon {
    pub fn root(&self) -> Root {
        merkleize(
            &[
                number(self.slot),
                number(self.proposer_index),
                self.parent_root.0,
                self.state_root.0,
                self.body_root.0,
            ],
            3,
        )
    }
}

/// A beacon header and the way to its execution block: only the block's hash, whatever the fork
/// puts around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub beacon: Beacon,
    /// Missing before Capella.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_hash: Option<Hash>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub block_hash_branch: Vec<Hash>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncCommittee {
    pub pubkeys: Vec<Hex<48>>,
    pub aggregate_pubkey: Hex<48>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncAggregate {
    /// A bit a member, the first one the lowest of the first byte.
    pub sync_committee_bits: Bytes,
    pub sync_committee_signature: Hex<96>,
}

impl SyncAggregate {
    pub fn participants(&self) -> usize {
        self.sync_committee_bits.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    pub fn has(&self, member: usize) -> bool {
        self.sync_committee_bits.0.get(member / 8).is_some_and(|byte| byte >> (member % 8) & 1 == 1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    pub header: Header,
    pub current_sync_committee: SyncCommittee,
    pub current_sync_committee_branch: Vec<Hash>,
}

/// The spec's `LightClientUpdate`, `…FinalityUpdate` and `…OptimisticUpdate` in one: parts may be
/// missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    pub attested_header: Header,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_sync_committee: Option<SyncCommittee>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_sync_committee_branch: Vec<Hash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalized_header: Option<Header>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finality_branch: Vec<Hash>,
    pub sync_aggregate: SyncAggregate,
    #[serde(with = "decimal")]
    pub signature_slot: u64,
}

/// What the registry says at one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proofs {
    /// The execution block's header, RLP.
    pub header: Bytes,
    pub account: Account,
    /// By digest: `0x` and 64 hex digits.
    pub records: std::collections::BTreeMap<Hash, Slot>,
}

/// As `eth_getProof` gives it; without the fields where there is no such account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<AccountValue>,
    pub proof: Vec<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountValue {
    #[serde(with = "decimal")]
    pub nonce: u64,
    /// Big-endian, without leading zeros.
    pub balance: Bytes,
    pub storage: Hash,
    pub code: Hash,
}

/// One word of the registry's storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    pub word: Hash,
    pub proof: Vec<Bytes>,
}

/// All that a node needs from a relay at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    pub format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// One a period, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<Update>,
    pub finality: Update,
    /// The newest that a committee signed, if it is newer than `finality`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimistic: Option<Update>,
    /// At the final block.
    #[serde(rename = "final")]
    pub at_final: Proofs,
    /// At the attested block of `optimistic`, or else of `finality`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<Proofs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    #[serde(rename = "basalt-chain-v1")]
    V1,
}
