//! Settings of the chain that a node pins (`[ledger.chain]` of node.toml).

use sha2::{Digest as _, Sha256};

use super::error::ChainError;
use super::forks::{Fork, LAYOUTS, Layout, MAINNET, MINIMAL, Network};
use super::registry::ApprovalLevel;
use super::ssz::Root;
use super::state::RegistryContract;
use super::types::{Hash, Hex, HexError};

/// Everything that a node trusts of a chain from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Properties of the network.
    pub network: Network,
    /// Root of the beacon block from which the node starts.
    pub checkpoint: Root,
    /// The registry contract.
    pub contract: RegistryContract,
    /// Greatest age in seconds of the finalized block that a decision is based on.
    pub max_age: u64,
    /// Weakest approval that the node accepts.
    pub require: ApprovalLevel,
}

impl Settings {
    /// Returns the hash that identifies the registry contract.
    pub(super) fn contract_id(&self) -> Hash {
        let RegistryContract { address, code_hash, mapping_slot } = &self.contract;
        let hasher = Sha256::new()
            .chain_update(address.0)
            .chain_update(code_hash.0)
            .chain_update(mapping_slot.to_be_bytes());
        Hash::new(hasher.finalize().into())
    }
}

fn invalid(key: &str, problem: impl std::fmt::Display) -> ChainError {
    ChainError::Settings(format!("ledger.chain.{key}: {problem}"))
}

fn parse_root(key: &str, text: &str) -> Result<Root, ChainError> {
    text.parse::<Hash>().map(|hash| hash.0).map_err(|error| invalid(key, error))
}

fn find_layout(name: &str) -> Result<&'static Layout, ChainError> {
    LAYOUTS.iter().find(|layout| layout.name == name).ok_or_else(|| {
        let supported: Vec<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
        let problem = format!("this image supports {}, found {name:?}", supported.join(", "));
        invalid("forks", problem)
    })
}

fn parse_forks(forks: &[config::ChainFork]) -> Result<Vec<Fork>, ChainError> {
    let parse = |fork: &config::ChainFork| {
        let layout = *find_layout(&fork.name)?;
        let Hex(version) =
            fork.version.parse().map_err(|error: HexError| invalid("forks", error))?;
        Ok(Fork { epoch: fork.epoch, version, layout })
    };
    let forks: Vec<Fork> = forks.iter().map(parse).collect::<Result<_, _>>()?;
    if forks.first().is_none_or(|first| first.epoch != 0) {
        return Err(invalid("forks", "the first one must begin with epoch 0"));
    }
    if !forks.is_sorted_by_key(|fork| fork.epoch) {
        return Err(invalid("forks", "they must be in the order of their epochs"));
    }
    Ok(forks)
}

impl TryFrom<&config::Chain> for Settings {
    type Error = ChainError;

    fn try_from(chain: &config::Chain) -> Result<Self, ChainError> {
        let forks = parse_forks(&chain.forks)?;
        if chain.seconds_per_slot == 0 {
            return Err(invalid("seconds-per-slot", "expected at least 1"));
        }
        Ok(Self {
            network: Network {
                preset: match chain.preset {
                    config::Preset::Mainnet => MAINNET,
                    config::Preset::Minimal => MINIMAL,
                },
                genesis_validators_root: parse_root(
                    "genesis-validators-root",
                    &chain.genesis_validators_root,
                )?,
                genesis_time: chain.genesis_time,
                seconds_per_slot: chain.seconds_per_slot,
                forks,
            },
            checkpoint: parse_root("checkpoint", &chain.checkpoint)?,
            contract: RegistryContract {
                address: chain
                    .contract
                    .parse()
                    .map_err(|error: HexError| invalid("contract", error))?,
                code_hash: Hash::new(parse_root("code-hash", &chain.code_hash)?),
                mapping_slot: chain.mapping_slot,
            },
            max_age: chain.max_age_s,
            require: match chain.require {
                config::RequiredApproval::Clear => ApprovalLevel::Clear,
                config::RequiredApproval::Proof => ApprovalLevel::Proof,
            },
        })
    }
}
