//! Errors of the light client and of the proofs behind its headers.

use super::registry::RecordError;
use super::types::Hash;

/// Reason why settings, persisted state or a relay's bundle are rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The text is not a bundle.
    #[error("it is not a bundle of the format basalt-chain-v1: {0}")]
    Format(String),
    /// A setting of the chain is invalid.
    #[error("the settings of the chain are invalid: {0}")]
    Settings(String),
    /// The persisted state cannot be read or restored.
    #[error("the persisted state of the chain cannot be used: {0}")]
    PersistedState(String),
    /// The node does not follow the chain yet and the bundle has no bootstrap.
    #[error(
        "the bundle has no bootstrap, but this node does not follow the chain yet: the relay must \
         be asked with the checkpoint"
    )]
    NoBootstrap,
    /// The bootstrap is that of another block.
    #[error("the bootstrap is of the block {found}, expected the pinned checkpoint {expected}")]
    WrongCheckpoint {
        /// The pinned checkpoint.
        expected: Hash,
        /// Root of the bootstrap's block.
        found: Hash,
    },
    /// The checkpoint, or the newest block that the node knows, is too old to continue from.
    #[error(
        "the checkpoint is {age} s old, at most {max_age} s are allowed: validators of that time \
         may have left since and sign without a stake; pin a newer one in node.toml"
    )]
    CheckpointTooOld {
        /// Age of the checkpoint in seconds.
        age: u64,
        /// Greatest age of a checkpoint in seconds.
        max_age: u64,
    },
    /// A sync committee has the wrong size.
    #[error("a sync committee has {found} members, expected {expected}")]
    CommitteeSize {
        /// Size of the network's sync committees.
        expected: usize,
        /// Number of public keys.
        found: usize,
    },
    /// A public key of a sync committee is not a point of the right group.
    #[error("the key of sync committee member {member} is invalid: {problem}")]
    PublicKey {
        /// Index of the member.
        member: usize,
        /// Error of the BLS library.
        problem: String,
    },
    /// An update names another next sync committee than an earlier one.
    #[error("the next sync committee is not the one that an earlier update named")]
    ConflictingCommittee,
    /// A Merkle branch does not verify, or a branch or the object that it proves is missing.
    #[error("the Merkle branch of the {0} does not lead to its root")]
    Branch(&'static str),
    /// The participation bits have the wrong length.
    #[error("the participation bits have {found} bytes, expected {expected}")]
    ParticipationBits {
        /// Length for the network's sync committees.
        expected: usize,
        /// Length in the update.
        found: usize,
    },
    /// Less than a third of the sync committee signed.
    #[error("{found} of {size} members of the sync committee signed, expected at least a third")]
    Participation {
        /// Number of members that signed.
        found: usize,
        /// Size of the sync committee.
        size: usize,
    },
    /// The signature of the sync committee is invalid.
    #[error(
        "the sync committee's signature is invalid ({problem}): the data was altered, or signed by \
         other keys or for another network"
    )]
    Signature {
        /// Error of the BLS library.
        problem: String,
    },
    /// The bundle has too many updates, or not in order.
    #[error("the bundle's updates are invalid: expected at most {0}, one a period, oldest first")]
    Updates(usize),
    /// The slots of an update contradict each other or the clock.
    #[error(
        "the slots are out of order: now {now}, signature {signed}, attested {attested}, finalized \
         {finalized}"
    )]
    Slots {
        /// Current slot by the node's clock.
        now: u64,
        /// Slot of the signature.
        signed: u64,
        /// Slot of the attested header.
        attested: u64,
        /// Slot of the finalized header, 0 without one.
        finalized: u64,
    },
    /// The update is of a period whose sync committee the node does not know.
    #[error(
        "it is of the sync committee period {found}, this node is in {known}: updates between them \
         are missing"
    )]
    Period {
        /// Period of the node.
        known: u64,
        /// Period of the update.
        found: u64,
    },
    /// The update attests a slot that is not newer than the finalized one.
    #[error("it attests slot {found}, but this node already has {known} as finalized")]
    Irrelevant {
        /// Finalized slot of the node.
        known: u64,
        /// Attested slot of the update.
        found: u64,
    },
    /// The bundle is behind the node and proves no revocation that the node does not know.
    #[error("its finalized slot is {found}, this node has already seen {known}: an older state")]
    OlderState {
        /// Finalized slot of the node.
        known: u64,
        /// Finalized slot of the bundle.
        found: u64,
    },
    /// The header has no execution block.
    #[error("the header at slot {slot} is from before Capella: it leads to no execution block")]
    NoBlock {
        /// Slot of the header.
        slot: u64,
    },
    /// The header of the execution block has another hash.
    #[error("the execution block's header has the hash {found}, expected {expected}")]
    BlockHash {
        /// Hash that the beacon block's header leads to.
        expected: Hash,
        /// Hash of the header.
        found: Hash,
    },
    /// The header of the execution block is malformed.
    #[error("the execution block's header is malformed: {0}")]
    BlockHeader(String),
    /// The proof of the registry's account does not verify.
    #[error("the proof of the contract's account is invalid: {0}")]
    AccountProof(String),
    /// The state proves that the registry does not exist.
    #[error(
        "there is no contract at {address}: is it another network, or was the contract never \
         deployed?"
    )]
    NoContract {
        /// Pinned address of the registry.
        address: String,
    },
    /// The account at the registry's address has other code.
    #[error("the contract's code has the hash {found}, expected the pinned {expected}")]
    Code {
        /// Pinned hash of the code.
        expected: Hash,
        /// Hash of the account's code.
        found: Hash,
    },
    /// The proof of a record does not verify.
    #[error("the proof of the record of {digest} is invalid: {problem}")]
    RecordProof {
        /// Digest of the image.
        digest: Hash,
        /// Error of the trie library.
        problem: String,
    },
    /// A word that was proved is not a record.
    #[error("the record of {digest} is malformed: {problem}")]
    Record {
        /// Digest of the image.
        digest: Hash,
        /// Reason why the word is rejected.
        problem: RecordError,
    },
    /// A record is older than the one that the node has seen, or takes a revocation back.
    #[error(
        "the record of {digest} has the sequence {found}, this node has already seen {known}: an \
         older state"
    )]
    Sequence {
        /// Digest of the image.
        digest: Hash,
        /// Sequence of the record that the node has seen.
        known: u64,
        /// Sequence of the record in the bundle.
        found: u64,
    },
}
