use serde::{Deserialize, Serialize};

use crate::LogSource;

/// The chain whose registry must approve an image besides the log's approvers (docs/chain.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Chain {
    /// Who makes bundles (`trustctl relay`): `https://HOST[:PORT]/PATH`, `http://…` or `file:PATH`.
    /// None is trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<String>,
    /// How often they are asked, in seconds.
    #[serde(default = "a_minute")]
    pub poll_s: u64,
    /// Root of a final beacon block, not older than two weeks when the node first starts: `0x` and
    /// 64 hex digits.
    pub checkpoint: String,
    /// Of the network: `0x` and 64 hex digits.
    pub genesis_validators_root: String,
    /// Seconds since 1970.
    pub genesis_time: u64,
    #[serde(default = "twelve")]
    pub seconds_per_slot: u64,
    #[serde(default)]
    pub preset: Preset,
    /// The registry: `0x` and 40 hex digits.
    pub contract: String,
    /// Keccak-256 of the registry's code: `0x` and 64 hex digits.
    pub code_hash: String,
    /// Where the mapping of records is in its storage.
    #[serde(default)]
    pub mapping_slot: u64,
    /// How old the final block may be whose state decides, in seconds.
    #[serde(default = "two_hours")]
    pub max_age_s: u64,
    /// How long what runs may go on after that, in seconds.
    #[serde(default)]
    pub stale_grace_s: u64,
    /// Which approvals count.
    #[serde(default)]
    pub require: Required,
    /// The network's forks, the first one from epoch 0 on.
    pub forks: Vec<ChainFork>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChainFork {
    /// As the consensus specification calls it, in lower case.
    pub name: String,
    pub epoch: u64,
    /// `0x` and 8 hex digits.
    pub version: String,
}

/// The constants that a network was built with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    #[default]
    Mainnet,
    Minimal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Required {
    /// Both kinds of approval.
    #[default]
    Clear,
    /// Only those behind which there is a proof of how the image was built.
    Proof,
}

fn a_minute() -> u64 {
    60
}

fn twelve() -> u64 {
    12
}

fn two_hours() -> u64 {
    7200
}

impl Chain {
    pub(crate) fn check(&self) -> Result<(), String> {
        for relay in &self.relays {
            relay.parse::<LogSource>().map_err(|e| format!("ledger.chain.relays: {e}"))?;
        }
        let hex = [
            ("checkpoint", &self.checkpoint, 64),
            ("genesis-validators-root", &self.genesis_validators_root, 64),
            ("contract", &self.contract, 40),
            ("code-hash", &self.code_hash, 64),
        ];
        let versions = self.forks.iter().map(|fork| ("forks", &fork.version, 8));
        for (key, text, digits) in hex.into_iter().chain(versions) {
            if !text.strip_prefix("0x").is_some_and(|rest| crate::node::lower_hex(rest, digits)) {
                return Err(format!(
                    "ledger.chain.{key}: expected 0x and {digits} lower-case hex digits, found {text:?}"
                ));
            }
        }
        for (key, value) in [
            ("poll-s", self.poll_s),
            ("seconds-per-slot", self.seconds_per_slot),
            ("max-age-s", self.max_age_s),
        ] {
            if value == 0 {
                return Err(format!("ledger.chain.{key}: expected at least 1, found 0"));
            }
        }
        if self.forks.first().is_none_or(|first| first.epoch != 0)
            || !self.forks.is_sorted_by_key(|fork| fork.epoch)
        {
            return Err("ledger.chain.forks: expected the network's forks in the order of their epochs, the first one at 0".into());
        }
        Ok(())
    }
}
