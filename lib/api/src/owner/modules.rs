//! Modules and their images.

use deployment::DesiredState;
use serde::{Deserialize, Serialize};

use crate::text_enum::text_enum;

/// Answer of `GET /v1/modules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modules {
    /// All modules, by name. A module that ships is listed even if it was removed.
    pub modules: Vec<Module>,
    /// Persisted specs that the node rejects, by module. They have no effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<RejectedSpec>,
}

/// Persisted spec that a node rejects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedSpec {
    /// Name of the module.
    pub module: String,
    /// Why the spec is rejected.
    pub reason: String,
}

/// One module of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Name of the module.
    pub name: String,
    /// Desired state of the newest spec.
    pub desired: DesiredState,
    /// Generation of the newest spec.
    pub generation: u64,
    /// Image of the newest spec: digest of its manifest or index, `sha256:` and hex.
    pub digest: String,
    /// Module file that is in effect (docs/modules.md).
    pub toml: String,
    /// Whether `toml` is the file that the node's image ships, and changes with the image.
    pub shipped: bool,
    /// Version that `trustctl module rollback` returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousVersion>,
    /// Observed state.
    pub status: ModuleStatus,
    /// Whether the newest spec is what runs.
    pub reconciled: bool,
    /// Why the newest spec is not what runs, if its rollout failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Progress of the download while the state is `fetching`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// How often the module exited by itself since trustd started.
    pub restarts: u64,
    /// The ledger's decision on the image.
    pub ledger: LedgerDecision,
}

/// Earlier version of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousVersion {
    /// Image of the version: digest of its manifest or index, `sha256:` and hex.
    pub digest: String,
    /// Module file of the version.
    pub toml: String,
    /// Whether `toml` is the file that the node's image ships.
    pub shipped: bool,
}

/// Observed state of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ModuleStatus {
    /// Not reconciled yet, or waits for another module or the engine.
    Waiting {
        /// The condition that the module waits for.
        reason: String,
    },
    /// The image is being downloaded or loaded.
    Fetching,
    /// The container runs and is not healthy yet.
    Starting {
        /// ID of the container.
        container: String,
    },
    /// The container runs and is healthy.
    Running {
        /// ID of the container.
        container: String,
    },
    /// Stopped, as desired.
    Stopped,
    /// The ledger or the verification of the image denies it.
    Denied {
        /// Rule, and what would change the decision.
        reason: String,
    },
    /// Allowed, and does not run.
    Failed {
        /// The step that failed.
        reason: String,
    },
}

impl ModuleStatus {
    /// All values of the member `state`.
    pub const STATES: [&'static str; 7] =
        ["waiting", "fetching", "starting", "running", "stopped", "denied", "failed"];

    /// Returns the value of the member `state`.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Fetching => "fetching",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Stopped => "stopped",
            Self::Denied { .. } => "denied",
            Self::Failed { .. } => "failed",
        }
    }

    /// Returns the reason of a state that has one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Waiting { reason } | Self::Denied { reason } | Self::Failed { reason } => {
                Some(reason)
            }
            _ => None,
        }
    }

    /// Returns the container of a module that runs, healthy or not.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Starting { container } | Self::Running { container } => Some(container),
            _ => None,
        }
    }
}

/// Progress of an image's download.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Layers of the image, in order.
    pub layers: Vec<LayerProgress>,
}

/// Progress of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// Digest of the layer, `sha256:` and hex.
    pub digest: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that the node has.
    pub received: u64,
}

/// The ledger's decision on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
pub enum LedgerDecision {
    /// The image may run.
    Allow {
        /// Sequence number of the statement that approves it.
        statement: u64,
        /// End of the approval.
        until: u64,
        /// Number of approvers who signed the statement.
        signers: usize,
    },
    /// The image must not run.
    Deny {
        /// Reason for programs.
        code: DenialCode,
        /// Reason for people.
        reason: String,
    },
}

impl LedgerDecision {
    /// Returns whether the image may run.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// Returns why the image must not run, or `None` if it may.
    pub fn denial(&self) -> Option<&DenialCode> {
        match self {
            Self::Allow { .. } => None,
            Self::Deny { code, .. } => Some(code),
        }
    }
}

text_enum! {
    /// Why the ledger denies an image (docs/ledger.md).
    pub open enum DenialCode {
        /// The chain's state cannot be used.
        Chain = "chain",
        /// The registry has no record of the image.
        ChainAbsent = "chain-absent",
        /// The approval in the registry expired.
        ChainExpired = "chain-expired",
        /// The registry has the digest in clear, and the node requires a proof.
        ChainNoProof = "chain-no-proof",
        /// No relay was asked for the image yet.
        ChainNotAsked = "chain-not-asked",
        /// No relay gave a valid bundle yet.
        ChainNotFollowed = "chain-not-followed",
        /// The registry has the image as revoked.
        ChainRevoked = "chain-revoked",
        /// The finalized block that decides is too old.
        ChainStale = "chain-stale",
        /// The node's clock is not set.
        Clock = "clock",
        /// The approval expired.
        Expired = "expired",
        /// The log cannot be used.
        Ledger = "ledger",
        /// The approval is not valid yet.
        NotYet = "not-yet",
        /// The image was revoked.
        Revoked = "revoked",
        /// The log's checkpoint is too old.
        Stale = "stale",
        /// No statement of the log approves the image.
        Unknown = "unknown",
    }
}

/// Answer of `PUT /v1/modules/NAME`. The request is a [`deployment::SignedSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedSpec {
    /// Name of the module.
    pub applied: String,
}

/// Answer of `PUT /v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// Digests of the image's blobs, all of which the node has.
    pub blobs: Vec<String>,
}

/// Answer of `GET /v1/modules/NAME/log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleLog {
    /// Last lines that the module wrote.
    pub log: String,
}
