//! State of the node and of its ledger.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::text_enum::text_enum;

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NodeStatus {
    /// The node has no root key and runs no modules.
    Locked(LockedStatus),
    /// The node has its root key.
    Unlocked(Box<Status>),
}

impl NodeStatus {
    /// Returns the status of a node that has its root key, or why it has none.
    ///
    /// # Errors
    /// Status of a locked node.
    pub fn unlocked(self) -> Result<Status, Box<LockedStatus>> {
        match self {
            Self::Locked(status) => Err(Box::new(status)),
            Self::Unlocked(status) => Ok(*status),
        }
    }
}

/// Status of a locked node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LockedStatus {
    /// Name of the machine that the image was built for.
    pub machine: String,
    /// Variant of the image.
    pub variant: String,
    /// Version of the image.
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// SHA-256 of the certificate that the node presents, hex: the identity that specs name.
    pub certificate: String,
    /// Seconds since the boot, if known.
    pub uptime_s: Option<f64>,
    /// Why the node has no root key, and what would unlock it.
    pub locked: String,
}

/// Status of a node that has its root key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the machine that the image was built for.
    pub machine: String,
    /// Variant of the image.
    pub variant: String,
    /// Version of the image.
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// SHA-256 of the certificate that the node presents, hex: the identity that specs name.
    pub certificate: String,
    /// Time of the node's clock.
    pub time: u64,
    /// Seconds since the boot, if known.
    pub uptime_s: Option<f64>,
    /// Whether the container engine answers.
    pub engine: EngineState,
    /// State of the ledger.
    pub ledger: LedgerStatus,
    /// Memory of the node.
    pub memory: Memory,
    /// Number of processes, without the kernel's threads.
    pub processes: usize,
    /// Values of the platform configuration registers.
    pub registers: Registers,
}

text_enum! {
    /// Whether the container engine answers.
    pub enum EngineState {
        /// The engine answers.
        Available = "available",
        /// The engine does not answer.
        Unavailable = "unavailable",
    }
}

/// Memory of the node in KiB, as in `/proc/meminfo`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All memory, if known.
    pub total_kib: Option<u64>,
    /// Memory that programs can use without swapping, if known.
    pub available_kib: Option<u64>,
}

/// Values of PCR 14 and 15.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Registers {
    /// The TPM did not give them.
    Unavailable {
        /// Error of the TPM.
        problem: String,
    },
    /// Values in hex, by PCR number.
    Values(BTreeMap<String, String>),
}

/// State of the ledger and of what feeds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// The log, or why it cannot be used.
    #[serde(flatten)]
    pub log: LedgerState,
    /// Sources of newer logs, by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceStatus>,
    /// Relays of the chain, by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relays: BTreeMap<String, SourceStatus>,
}

/// The log, or why it cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LedgerState {
    /// The log cannot be used, and every image is denied.
    Unusable {
        /// Why the log cannot be used.
        problem: String,
    },
    /// The log decides which images may run.
    Usable(LogSummary),
}

impl LedgerState {
    /// Returns the summary of a log that can be used.
    pub fn usable(&self) -> Option<&LogSummary> {
        match self {
            Self::Usable(log) => Some(log),
            Self::Unusable { .. } => None,
        }
    }
}

/// Summary of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSummary {
    /// Number of statements.
    pub statements: u64,
    /// Root of the log's Merkle tree (RFC 6962, section 2.1), hex.
    pub root: String,
    /// Public keys of the approvers, hex.
    pub approvers: Vec<String>,
    /// Number of approvers who must sign an approval.
    pub threshold: usize,
    /// Time at which enough witnesses had seen the log, if the node requires witnesses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnessed: Option<u64>,
    /// Seconds after that time for which the log is fresh, if the node requires witnesses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// State of the chain, if the node follows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainStatus>,
}

/// Result of the last poll of a log source or relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Time of the poll.
    pub polled: u64,
    /// Why the poll failed; absent if it gave valid data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// State of the chain as the node follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainStatus {
    /// Newest verified blocks; absent before the first valid bundle.
    #[serde(flatten)]
    pub head: Option<ChainHead>,
    /// Seconds for which a finalized block is fresh.
    pub max_age_s: u64,
    /// Why the chain cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Newest blocks of a chain that the node verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Slot of the finalized beacon block.
    pub slot: u64,
    /// Number of the finalized execution block.
    pub block: u64,
    /// Time of the finalized block's slot.
    pub time: u64,
    /// Age of the finalized block in seconds.
    pub age_s: u64,
    /// Slot of the newest attested beacon block.
    pub attested_slot: u64,
    /// Number of the newest attested execution block.
    pub attested_block: u64,
    /// Sync committee period of the finalized block.
    pub period: u64,
    /// Number of images whose records are known.
    pub records: usize,
}
