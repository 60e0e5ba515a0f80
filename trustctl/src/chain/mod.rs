//! Ethereum-like chains: the relay that makes bundles for nodes, and the approvers' access to the
//! registry contract.

mod abi;
mod encoding;
mod nodes;
mod pin;
mod query;
mod registry;
mod relay;
mod serve;
mod signer;
mod transaction;
mod votes;

pub use encoding::{EncodingError, parse_address, parse_digest};
pub use nodes::{BeaconNode, ExecutionNode};
pub use pin::pin;
pub use query::{BundleRequest, QueryError, StartingPoint};
pub use registry::{Approvers, RecordAtBlock, Registry, code_hash};
pub use relay::Relay;
pub use serve::{BUNDLE_PATH, serve};
pub use signer::Signer;
pub use transaction::{FinalityProgress, Receipt, wait_until_final};
pub use votes::{OpenVote, Proposal, RecentVotes, VOTE_LIFETIME_SECONDS};
