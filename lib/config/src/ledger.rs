//! The ledger whose approvals decide which images may run.

use serde::{Deserialize, Serialize};

use crate::error::check_positive;
use crate::{Chain, ConfigProblem, InvalidValue, LogSource};

/// Ledger whose approvals decide which images may run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ledger {
    /// Records that an approval needs.
    pub kind: LedgerKind,
    /// Name that the approvers' signatures cover. Entries for a ledger of another name are
    /// rejected.
    pub name: String,
    /// Ed25519 public keys of the approvers as hex. The list is empty in the repository: the build
    /// adds the user's own key.
    #[serde(default)]
    pub approvers: Vec<String>,
    /// Number of approvers that must sign an approval.
    pub threshold: usize,
    /// Time in seconds that a running module may keep running after its revocation.
    #[serde(default)]
    pub revocation_grace_s: u64,
    /// Checkpoints that a log needs. Without this table the signatures of the approvers suffice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Checkpoints>,
    /// Locations of newer logs: `https://HOST[:PORT]/PATH`, `http://…`, `file:PATH` or
    /// `oci:HOST[:PORT]/REPOSITORY:TAG`. They are not trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Interval between two polls of the sources, in seconds.
    #[serde(default = "default_poll_s")]
    pub poll_s: u64,
    /// The chain of a ledger of kind `ethereum`; absent for every other kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
}

/// Records that an approval needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LedgerKind {
    /// Entries in a log that `threshold` of the approvers signed.
    Log,
    /// Entries in such a log, and a record in the finalized state of a registry contract.
    Ethereum,
}

/// Checkpoint and cosignatures that a log needs in addition to the signatures of its approvers
/// (C2SP tlog-checkpoint and tlog-cosignature).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Checkpoints {
    /// Verifier key of the log, `NAME+HASH+KEY` (`trustctl key new log`).
    pub log: String,
    /// Verifier keys of the witnesses, `NAME+HASH+KEY`.
    #[serde(default)]
    pub witnesses: Vec<String>,
    /// Number of witnesses that must cosign a checkpoint.
    #[serde(default)]
    pub threshold: usize,
    /// Greatest age of the cosignatures, in seconds.
    #[serde(default = "default_max_age_s")]
    pub max_age_s: u64,
    /// Time in seconds that a running module may keep running after the cosignatures exceed their
    /// greatest age.
    #[serde(default)]
    pub stale_grace_s: u64,
}

fn default_poll_s() -> u64 {
    300
}

fn default_max_age_s() -> u64 {
    7 * 86_400
}

impl Ledger {
    pub(crate) fn check(&self) -> Result<(), ConfigProblem> {
        crate::hex::check_keys("ledger.approvers", &self.approvers)?;
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.check()?;
        }
        for source in &self.sources {
            source.parse::<LogSource>().map_err(|e| e.at("ledger.sources"))?;
        }
        check_positive("ledger.poll-s", self.poll_s)?;
        match (self.kind, &self.chain) {
            (LedgerKind::Log, None) => {}
            (LedgerKind::Ethereum, Some(chain)) => chain.check()?,
            (LedgerKind::Log, Some(_)) => {
                let expected = "no table, or kind = \"ethereum\"";
                let found = "a table and kind = \"log\"";
                return Err(InvalidValue::new(expected, found).at("ledger.chain"));
            }
            (LedgerKind::Ethereum, None) => {
                let expected = "a table, because kind is \"ethereum\" (docs/chain.md)";
                return Err(InvalidValue::new(expected, "none").at("ledger.chain"));
            }
        }
        crate::check_name(&self.name).map_err(|e| e.at("ledger.name"))?;
        let approvers = self.approvers.len();
        if self.threshold == 0 || (approvers != 0 && self.threshold > approvers) {
            let expected = format!("1 to the number of approvers ({approvers})");
            return Err(InvalidValue::new(expected, self.threshold).at("ledger.threshold"));
        }
        Ok(())
    }
}

impl Checkpoints {
    fn check(&self) -> Result<(), ConfigProblem> {
        let (witnesses, threshold) = (self.witnesses.len(), self.threshold);
        if threshold > witnesses || (threshold == 0) != (witnesses == 0) {
            let expected =
                format!("1 to the number of witnesses ({witnesses}), or 0 without witnesses");
            return Err(InvalidValue::new(expected, threshold).at("ledger.checkpoints.threshold"));
        }
        check_positive("ledger.checkpoints.max-age-s", self.max_age_s)
    }
}
