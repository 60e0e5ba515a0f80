//! The owner's API. Anonymous clients have its attestation part: `POST /v1/quote`,
//! `GET /v1/endorsement` and `POST /v1/activate-credential`.

mod attestation;
mod ledger;
mod modules;
mod node;
mod root_key;
mod status;

pub use deployment::{DesiredState, SignedSpec};
pub use measure::Record;
pub use policy::{Escrow, Policies, SignedPolicy};

pub use self::attestation::{ActivatedCredential, Credential, Endorsement};
pub use self::ledger::{BundleUpdate, LedgerReset, LedgerUpdate};
pub use self::modules::{
    AppliedSpec, DenialCode, LayerProgress, LedgerDecision, Module, ModuleLog, ModuleStatus,
    Modules, PreviousVersion, Progress, RejectedSpec, StoredImage,
};
pub use self::node::{AcceptedRequest, AuditLog};
pub use self::root_key::{AcceptedPolicies, PolicyRequirement, RestoredRootKey, RootKey};
pub use self::status::{
    ChainHead, ChainStatus, EngineState, LedgerState, LedgerStatus, LockedStatus, LogSummary,
    Memory, NodeStatus, Registers, SourceStatus, Status,
};
