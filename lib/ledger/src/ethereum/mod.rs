//! The registry contract on an Ethereum-like chain, verified by a light client.
//!
//! Invariants:
//! - Data of a relay counts only if a chain of proofs links it to the pinned checkpoint.
//! - An approval needs finalized state. A revocation counts from attested state on.
//! - A contract that is missing or has other code is an error, not an empty registry.
//! - Heights and the sequences of records never go back.
//!
//! The chain of proofs is: checkpoint, sync committees, finalized header, hash of the execution
//! block, header of the execution block, state root, account with the pinned code hash, storage
//! root, record of one digest. docs/chain.md has the formats.

pub mod beacon_api;
mod committee;
mod error;
mod forks;
mod light_client;
mod persisted;
mod records;
mod registry;
mod settings;
mod ssz;
mod state;
mod store;
pub mod types;

pub use committee::ValidatedCommittee;
pub use error::ChainError;
pub use forks::{Fork, LAYOUTS, Layout, MAINNET, MINIMAL, Network, Preset};
pub use light_client::{
    Approval, LightClient, LightClientStatus, MAX_BUNDLE_BYTES, MAX_CHECKPOINT_AGE_SECONDS,
};
pub use persisted::PersistedState;
pub use records::{BlockRef, MAX_DIGESTS};
pub use registry::{ApprovalLevel, Record, RecordError};
pub use settings::Settings;
pub use ssz::Root;
pub use state::{
    ExecutionBlock, RegistryContract, keccak256, rlp_bytes, rlp_list, rlp_list_of_encoded,
    storage_key,
};
pub use store::LightClientStore;
pub use types::{Bundle, Hash, HexError};

#[cfg(test)]
mod tests;
