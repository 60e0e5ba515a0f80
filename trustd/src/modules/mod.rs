//! Modules: which containers should run, and the reconcile loop that makes them run.
//!
//! Invariants:
//! - A module runs only while the ledger allows its digest.
//! - A container that trustd did not start in this boot, or that was altered, is removed.
//! - Every change is in the audit log before it takes effect. If the event cannot be recorded,
//!   nothing is started, upgraded or rolled back. Containers that are unknown, altered, replaced or
//!   not desired are still removed, and denied ones end without waiting for the event.
//! - Work on one module never touches another module's containers.
//!
//! A thread ends what the ledger denies (`enforce.rs`). It needs neither the engine nor the TPM.
//! [`Modules::run`] inspects everything at short intervals and never waits for slow work. Slow work
//! (fetching, loading, waiting for health) happens in rollouts, at most one for each module. A
//! rollout leaves nothing in memory that a restart would need: the next pass finds the containers
//! and the specs, and resumes from there.

mod cgroups;
mod cleanup;
mod controller;
mod denials;
mod deploy;
mod desired;
mod drift;
mod ending;
mod enforce;
mod error;
mod event_watch;
mod health;
mod reconcile;
mod rollout;
mod shipped;
mod status;
mod trial;
mod version;

pub use controller::{Dependencies, Modules};
pub use error::{ModuleError, SignatureError, SpecRejection};
pub use status::{ModuleStatus, ModuleView};
