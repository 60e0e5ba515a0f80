//! The Ethereum chain that an image's approval is read from.

use serde::{Deserialize, Serialize};

use crate::error::check_positive;
use crate::{ConfigProblem, InvalidValue, LogSource};

/// Chain with a registry contract that must approve an image in addition to the log's approvers
/// (docs/chain.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Chain {
    /// Relays that serve bundles (`trustctl relay`): `https://HOST[:PORT]/PATH`, `http://…` or
    /// `file:PATH`. They are not trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<String>,
    /// Interval between two requests to the relays, in seconds.
    #[serde(default = "default_poll_s")]
    pub poll_s: u64,
    /// Root of a finalized beacon block that is at most two weeks old at the first start of the
    /// node: `0x` and 64 hex digits.
    pub checkpoint: String,
    /// Genesis validators root of the network: `0x` and 64 hex digits.
    pub genesis_validators_root: String,
    /// Genesis time of the network in seconds since 1970.
    pub genesis_time: u64,
    /// Length of a slot in seconds.
    #[serde(default = "default_seconds_per_slot")]
    pub seconds_per_slot: u64,
    /// Constants of the network.
    #[serde(default)]
    pub preset: Preset,
    /// Address of the registry contract: `0x` and 40 hex digits.
    pub contract: String,
    /// Keccak-256 of the registry's code: `0x` and 64 hex digits.
    pub code_hash: String,
    /// Storage slot of the mapping with the registry's records.
    #[serde(default)]
    pub mapping_slot: u64,
    /// Greatest age in seconds of the finalized block that a decision is based on.
    #[serde(default = "default_max_age_s")]
    pub max_age_s: u64,
    /// Time in seconds that a running module may keep running after the block exceeds its greatest
    /// age.
    #[serde(default)]
    pub stale_grace_s: u64,
    /// Kind of approval that the registry must hold.
    #[serde(default)]
    pub require: RequiredApproval,
    /// Forks of the network in the order of their epochs, the first one at epoch 0.
    pub forks: Vec<ChainFork>,
}

/// One fork of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChainFork {
    /// Name in the consensus specification, in lower case.
    pub name: String,
    /// First epoch of the fork.
    pub epoch: u64,
    /// Fork version: `0x` and 8 hex digits.
    pub version: String,
}

/// Constants of the consensus specification that a network was built with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The preset of the main network and its public test networks.
    #[default]
    Mainnet,
    /// The preset for tests.
    Minimal,
}

/// Kind of approval that the registry must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequiredApproval {
    /// Any approval.
    #[default]
    Clear,
    /// An approval that includes a proof of how the image was built.
    Proof,
}

fn default_poll_s() -> u64 {
    60
}

fn default_seconds_per_slot() -> u64 {
    12
}

fn default_max_age_s() -> u64 {
    2 * 3600
}

impl Chain {
    pub(crate) fn check(&self) -> Result<(), ConfigProblem> {
        for relay in &self.relays {
            relay.parse::<LogSource>().map_err(|e| e.at("ledger.chain.relays"))?;
        }
        let hex = [
            ("checkpoint", &self.checkpoint, 64),
            ("genesis-validators-root", &self.genesis_validators_root, 64),
            ("contract", &self.contract, 40),
            ("code-hash", &self.code_hash, 64),
        ];
        let versions = self.forks.iter().map(|fork| ("forks", &fork.version, 8));
        for (key, text, digits) in hex.into_iter().chain(versions) {
            if !text.strip_prefix("0x").is_some_and(|rest| crate::is_lower_hex(rest, digits)) {
                let expected = format!("0x and {digits} lower-case hex digits");
                return Err(InvalidValue::text(expected, text).at(format!("ledger.chain.{key}")));
            }
        }
        check_positive("ledger.chain.poll-s", self.poll_s)?;
        check_positive("ledger.chain.seconds-per-slot", self.seconds_per_slot)?;
        check_positive("ledger.chain.max-age-s", self.max_age_s)?;
        if self.forks.first().is_none_or(|first| first.epoch != 0)
            || !self.forks.is_sorted_by_key(|fork| fork.epoch)
        {
            let expected = "the forks of the network in the order of their epochs, the first at 0";
            let epochs: Vec<u64> = self.forks.iter().map(|fork| fork.epoch).collect();
            let found = format!("epochs {epochs:?}");
            return Err(InvalidValue::new(expected, found).at("ledger.chain.forks"));
        }
        Ok(())
    }
}
