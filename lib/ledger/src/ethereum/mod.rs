//! What a registry contract on an Ethereum-like chain says, checked by a light client.
//!
//! Invariants:
//! - Nothing that a relay sends counts until a chain of proofs leads from it to the pinned
//!   checkpoint.
//! - An approval needs final state; a revocation counts from attested state on.
//! - A contract that is missing or has other code is an error, not an empty registry.
//! - Heights and the registry's sequence never go back.
//!
//! The way: checkpoint → sync committees → final header → hash of the execution block → its header
//! → state root → account, whose code's hash is pinned → storage root → the record of one digest.
//! docs/chain.md has the formats.

mod client;
mod committee;
mod follower;
mod forks;
pub mod payload;
mod registry;
mod settings;
mod ssz;
mod state;
pub mod types;

pub use client::Store;
pub use committee::Committee;
pub use follower::{
    Anchor, Follower, Found, LARGEST_BUNDLE, MOST_DIGESTS, OLDEST_CHECKPOINT, Saved, View,
};
pub use forks::{Fork, LAYOUTS, Layout, MAINNET, MINIMAL, Network, Preset};
pub use registry::{Approval, Record};
pub use settings::Settings;
pub use ssz::Root;
pub use state::{Block, Contract, keccak, list, list_of, storage_key, string};
pub use types::{Bundle, Hash};

impl Hash {
    pub fn new(root: Root) -> Self {
        Self(root)
    }
}

/// Why what a relay sent, or what is kept, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("it is not a bundle of the format basalt-chain-v1: {0}")]
    Format(String),
    #[error("the chain's settings cannot be used: {0}")]
    Settings(String),
    #[error("what was kept of the chain cannot be used: {0}")]
    Saved(String),
    #[error(
        "it has no bootstrap, and this node has not begun to follow the chain: the relay must be asked with the checkpoint"
    )]
    NoBootstrap,
    #[error("its bootstrap is of the block {found}, pinned is {expected}")]
    WrongCheckpoint { expected: Hash, found: Hash },
    #[error(
        "the checkpoint is {age} s old, more than {most} s: who held keys then may have left since; pin a newer one in node.toml"
    )]
    CheckpointTooOld { age: u64, most: u64 },
    #[error("a sync committee has {found} members, expected {expected}")]
    CommitteeSize { expected: usize, found: usize },
    #[error("key {member} of a sync committee is not one: {problem}")]
    PublicKey { member: usize, problem: String },
    #[error("the next sync committee is not the one that was already signed for")]
    OtherCommittee,
    #[error("the branch of the {0} does not lead to its root")]
    Branch(&'static str),
    #[error("the participation has {found} bytes, expected {expected}")]
    Bits { expected: usize, found: usize },
    #[error("{found} of {size} of the sync committee signed; less than a third says nothing")]
    Participation { found: usize, size: usize },
    #[error(
        "the sync committee's signature does not hold ({problem}): altered, by others, or of another network"
    )]
    Signature { problem: String },
    #[error("its updates are more than {0}, or not one a period and the oldest first")]
    Updates(usize),
    #[error(
        "its slots are not in order: now {now}, signed {signed}, attested {attested}, final {finalized}"
    )]
    Slots { now: u64, signed: u64, attested: u64, finalized: u64 },
    #[error(
        "it is of the sync committee period {found}, this node is in {known}: updates between are missing"
    )]
    Period { known: u64, found: u64 },
    #[error("it attests slot {found}, this node already has {known} as final")]
    NotRelevant { known: u64, found: u64 },
    #[error("it shows slot {found} as {what}, this node has seen {known}: an older state")]
    Older { what: &'static str, known: u64, found: u64 },
    #[error(
        "the header at slot {slot} does not lead to an execution block: it is of before Capella"
    )]
    NoBlock { slot: u64 },
    #[error("the execution block's header has the hash {found}, expected {expected}")]
    BlockHash { expected: Hash, found: Hash },
    #[error("the execution block's header cannot be read: {0}")]
    BlockHeader(String),
    #[error("the proof of the contract's account does not hold: {0}")]
    AccountProof(String),
    #[error(
        "there is no contract at {address}: is it another network, or was the contract never deployed?"
    )]
    NoContract { address: String },
    #[error("the contract's code has the hash {found}, pinned is {expected}")]
    Code { expected: Hash, found: Hash },
    #[error("the proof of the record of {digest} does not hold: {problem}")]
    RecordProof { digest: Hash, problem: String },
    #[error("the record of {digest} is not one: {problem}")]
    Record { digest: Hash, problem: String },
    #[error(
        "the record of {digest} has the sequence {found}, this node has seen {known}: an older state"
    )]
    Sequence { digest: Hash, known: u64, found: u64 },
}

#[cfg(test)]
mod tests;
