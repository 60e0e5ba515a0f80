//! State of one module in memory: its history, its status, and the time of the next attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use api::owner::ModuleStatus;
use api::owner::{PreviousVersion, Progress};
use deployment::DesiredState;
use tokio::time::Instant;

use super::version::{History, Version};
use crate::images::fetch::ProgressCell;

/// Delay after the first failure. It doubles with each further failure.
const BACKOFF_INITIAL: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Time that a module must run until its earlier failures are forgotten.
const STABLE_TIME: Duration = Duration::from_secs(60);

/// State of a module in memory.
pub(super) struct ModuleState {
    /// Persistent versions.
    pub(super) history: History,
    /// Status.
    pub(super) status: ModuleStatus,
    /// Reason why the newest spec is not what runs.
    pub(super) last_error: Option<String>,
    /// Progress of the current fetch.
    pub(super) progress: ProgressCell,
    /// Digest of the manifest of each version that the engine has, by the version's fingerprint.
    pub(super) loaded: BTreeMap<String, String>,
    /// Events that were recorded for the newest spec and are not repeated.
    pub(super) recorded: BTreeSet<String>,
    /// Whether a rollout of this module is in progress.
    pub(super) busy: bool,
    /// Restarts after the container exited.
    pub(super) restarts: u64,
    running_since: Instant,
    backoff: Duration,
    retry_at: Option<Instant>,
}

/// Module as its owner sees it, without the ledger's decision.
#[derive(Debug)]
pub struct ModuleView {
    /// Name.
    pub name: String,
    /// Desired state of the newest spec.
    pub desired: DesiredState,
    /// Generation of the newest spec.
    pub generation: u64,
    /// Digest that the newest spec names.
    pub digest: String,
    /// Module file of the version that should run now.
    pub toml: String,
    /// Whether that module file is the one that the node's image ships.
    pub shipped: bool,
    /// Version that a rollback leads to.
    pub previous: Option<PreviousVersion>,
    /// Status.
    pub status: ModuleStatus,
    /// Whether the newest spec is what runs.
    pub reconciled: bool,
    /// Reason why the newest spec is not what runs.
    pub last_error: Option<String>,
    /// Progress of the current fetch.
    pub progress: Option<Progress>,
    /// Restarts after the container exited, since trustd started.
    pub restarts: u64,
}

impl ModuleState {
    /// Creates the state after a start of trustd.
    pub(super) fn new(history: History) -> Self {
        let last_error = history.rollback_reason().map(str::to_owned);
        Self {
            history,
            status: ModuleStatus::Waiting { reason: "not inspected yet".into() },
            last_error,
            progress: ProgressCell::default(),
            loaded: BTreeMap::new(),
            recorded: BTreeSet::new(),
            busy: false,
            restarts: 0,
            running_since: Instant::now(),
            backoff: BACKOFF_INITIAL,
            retry_at: None,
        }
    }

    /// Returns the version that should run: the newest, or the last good one if the newest was
    /// rolled back.
    pub(super) fn target(&self) -> Option<&Version> {
        let desired = self.history.desired.as_ref()?;
        let rolled_back = self.history.rollback_reason().is_some();
        match &self.history.last_good {
            Some(good) if desired.desired == DesiredState::Run && rolled_back => Some(good),
            _ => Some(desired),
        }
    }

    /// Reports whether the target was healthy before. If so, there is nothing to roll back to.
    pub(super) fn target_is_good(&self) -> bool {
        match (self.target(), &self.history.last_good) {
            (Some(target), Some(good)) => target.fingerprint() == good.fingerprint(),
            _ => false,
        }
    }

    /// Replaces the newest version.
    pub(super) fn set_desired(&mut self, version: Version) {
        self.history.generation = version.generation;
        self.history.desired = Some(version);
        self.history.failed = None;
        self.last_error = None;
        self.recorded.clear();
        (self.backoff, self.retry_at) = (BACKOFF_INITIAL, None);
    }

    /// Sets the status to running. A container that has run long enough resets the backoff.
    pub(super) fn set_running(&mut self, container: &str) {
        if !matches!(&self.status, ModuleStatus::Running { container: c } if c == container) {
            self.status = ModuleStatus::Running { container: container.to_owned() };
            self.running_since = Instant::now();
        } else if self.running_since.elapsed() >= STABLE_TIME {
            self.backoff = BACKOFF_INITIAL;
        }
        self.retry_at = None;
    }

    /// Delays the next attempt after a failure of this module, and doubles the delay.
    pub(super) fn back_off(&mut self) {
        self.retry_at = Some(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Delays the next attempt without a change of the backoff, because the module did not fail.
    pub(super) fn retry_soon(&mut self) {
        self.retry_at = Some(Instant::now() + BACKOFF_INITIAL);
    }

    /// Reports whether the time of the next attempt has not come yet.
    pub(super) fn is_backing_off(&self) -> bool {
        self.retry_at.is_some_and(|time| Instant::now() < time)
    }

    /// Returns the view for the API, or `None` if there is no version. A module that was removed has
    /// none, unless it ships: then it can be started again.
    pub(super) fn view(&self, name: &str) -> Option<ModuleView> {
        let desired = self.history.desired.as_ref()?;
        let (newest, shown) = match desired.desired {
            DesiredState::Remove => {
                (self.history.shipped.as_ref()?, self.history.shipped.as_ref()?)
            }
            _ => (desired, self.target().unwrap_or(desired)),
        };
        let good = [&self.history.last_good, &self.history.previous_good].into_iter().flatten();
        let previous =
            good.into_iter().find(|version| version.fingerprint() != newest.fingerprint());
        Some(ModuleView {
            name: name.to_owned(),
            desired: desired.desired,
            generation: desired.generation,
            digest: newest.source.digest.clone(),
            toml: shown.toml.clone(),
            shipped: shown.shipped,
            previous: previous.map(|version| PreviousVersion {
                digest: version.source.digest.clone(),
                toml: version.toml.clone(),
                shipped: version.shipped,
            }),
            status: self.status.clone(),
            reconciled: matches!(self.status, ModuleStatus::Running { .. })
                && self.target_is_good()
                && self.last_error.is_none(),
            last_error: self.last_error.clone(),
            progress: matches!(self.status, ModuleStatus::Fetching).then(|| self.progress.get()),
            restarts: self.restarts,
        })
    }
}
