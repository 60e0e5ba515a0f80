use sha2::{Digest as _, Sha256};

use super::forks::{Fork, LAYOUTS, MAINNET, MINIMAL, Network};
use super::registry::Approval;
use super::state::Contract;
use super::types::{Hash, Hex};
use super::{ChainError, Root};

/// What is pinned of a chain: all that a node trusts of it beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub network: Network,
    /// Root of the beacon block to begin with.
    pub checkpoint: Root,
    pub contract: Contract,
    /// How old the final block may be whose state decides, in seconds.
    pub max_age: u64,
    pub require: Approval,
}

impl Settings {
    /// Which registry it is, whatever else changes.
    pub(super) fn contract_id(&self) -> Hash {
        let Contract { address, code, mapping } = &self.contract;
        let hasher = Sha256::new()
            .chain_update(address.0)
            .chain_update(code.0)
            .chain_update(mapping.to_be_bytes());
        Hash::new(hasher.finalize().into())
    }
}

impl TryFrom<&config::Chain> for Settings {
    type Error = ChainError;

    fn try_from(chain: &config::Chain) -> Result<Self, ChainError> {
        let wrong = |what: &str, problem: String| {
            ChainError::Settings(format!("ledger.chain.{what}: {problem}"))
        };
        let root = |what: &str, text: &str| {
            text.parse::<Hash>().map(|hash| hash.0).map_err(|e| wrong(what, e))
        };
        let mut forks = Vec::new();
        for fork in &chain.forks {
            let layout =
                LAYOUTS.iter().find(|layout| layout.name == fork.name).ok_or_else(|| {
                    let known: Vec<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
                    wrong(
                        "forks",
                        format!(
                            "{:?} is not known to this image; it knows {}",
                            fork.name,
                            known.join(", ")
                        ),
                    )
                })?;
            let Hex(version) = fork.version.parse().map_err(|e| wrong("forks", e))?;
            forks.push(Fork { epoch: fork.epoch, version, layout: *layout });
        }
        if forks.first().is_none_or(|first| first.epoch != 0) {
            return Err(wrong("forks", "the first one must begin with epoch 0".into()));
        }
        if !forks.is_sorted_by_key(|fork| fork.epoch) {
            return Err(wrong("forks", "they must be in the order of their epochs".into()));
        }
        if chain.seconds_per_slot == 0 {
            return Err(wrong("seconds-per-slot", "expected at least 1".into()));
        }
        Ok(Self {
            network: Network {
                preset: match chain.preset {
                    config::Preset::Mainnet => MAINNET,
                    config::Preset::Minimal => MINIMAL,
                },
                genesis_validators_root: root(
                    "genesis-validators-root",
                    &chain.genesis_validators_root,
                )?,
                genesis_time: chain.genesis_time,
                seconds_per_slot: chain.seconds_per_slot,
                forks,
            },
            checkpoint: root("checkpoint", &chain.checkpoint)?,
            contract: Contract {
                address: chain.contract.parse().map_err(|e| wrong("contract", e))?,
                code: Hash::new(root("code-hash", &chain.code_hash)?),
                mapping: chain.mapping_slot,
            },
            max_age: chain.max_age_s,
            require: match chain.require {
                config::Required::Clear => Approval::Clear,
                config::Required::Proof => Approval::Proof,
            },
        })
    }
}
