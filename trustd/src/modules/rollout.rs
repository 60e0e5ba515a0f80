//! Rollout of one module: it deploys the newest version, or the last good one if that fails while
//! nothing runs, and sets the module's status.

use std::sync::Arc;
use std::time::Duration;

use deployment::DesiredState;
use serde_json::json;

use super::controller::Modules;
use super::deploy::Deployment;
use super::error::RolloutError;
use super::status::{ModuleState, ModuleStatus};
use crate::audit::EventKind;
use crate::engine::Engine;
use crate::util::error_chain::error_chain;

/// Interval at which a rollout checks for a newer spec.
const SUPERSEDED_POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Modules {
    /// Rolls out a module and sets its status.
    pub(super) async fn roll_out(self: Arc<Self>, name: String, engine: Arc<Engine>) {
        let generation = self.generation(&name);
        let result = tokio::select! {
            result = self.reconcile_module(&name, &engine) => result,
            // The rollout stops as if the process was killed. The next one resumes from there.
            () = self.superseded(&name, generation) => {
                Err(RolloutError::Waiting("a newer spec".into()))
            }
        };
        if let Err(error) = result {
            self.set_rollout_error(&name, error).await;
        }
        self.with(&name, |state| state.busy = false);
        self.wake();
    }

    /// Sets the status after a failed rollout. The status stays running while a container runs.
    async fn set_rollout_error(&self, name: &str, error: RolloutError) {
        let running = self.running_container(name);
        let set_error = |state: &mut ModuleState, reason: String, status: ModuleStatus| {
            state.last_error = Some(reason);
            match &running {
                Some(container) => state.set_running(container),
                None => state.status = status,
            }
            state.back_off();
        };
        match error {
            RolloutError::Waiting(reason) => {
                self.with(name, |state| {
                    if running.is_none() {
                        state.status = ModuleStatus::Waiting { reason };
                    }
                    state.retry_soon();
                });
            }
            RolloutError::Denied { code, reason, digest } => {
                self.record_denial(name, code, &reason, &digest).await;
                let reason = format!("{code}: {reason}");
                let status = ModuleStatus::Denied { reason: reason.clone() };
                self.with(name, |state| set_error(state, reason, status));
            }
            RolloutError::Failed(reason) => {
                logging::error!("module {name}: {reason}");
                let status = ModuleStatus::Failed { reason: reason.clone() };
                self.with(name, |state| set_error(state, reason, status));
            }
        }
    }

    /// Records a denial, once for each spec and code.
    async fn record_denial(&self, name: &str, code: &str, reason: &str, digest: &str) {
        let new = self.with(name, |state| state.recorded.insert(format!("denied {code}")));
        if new != Some(true) {
            return;
        }
        logging::warn!("module {name} is denied: {reason}");
        let event = json!({ "digest": digest, "module": name, "reason": code });
        if let Err(error) = self.deps.audit.record(EventKind::ModuleDenied, &event).await {
            logging::error!("module {name}: {}", error_chain(&error));
        }
    }

    /// Deploys the newest version. If that fails while nothing runs, deploys the last good version
    /// and returns the error of the newest.
    async fn reconcile_module(&self, name: &str, engine: &Arc<Engine>) -> Result<(), RolloutError> {
        let target = |state: &mut ModuleState| {
            state.target().cloned().map(|target| (target, state.target_is_good()))
        };
        let Some((target, target_is_good)) = self.with(name, target).flatten() else {
            return Ok(());
        };
        let containers = self.containers_of(name, engine).await?;
        let newest = Deployment { modules: self, name, engine, target: &target, target_is_good };
        let result = newest.run(&containers).await;
        let fallback = self
            .with(name, |state| state.history.last_good.clone())
            .flatten()
            .filter(|good| !target_is_good && good.desired == DesiredState::Run);
        let (Err(error), Some(fallback)) = (&result, fallback) else { return result };
        let containers = self.containers_of(name, engine).await?;
        if matches!(error, RolloutError::Waiting(_))
            || target.desired != DesiredState::Run
            || containers.iter().any(|container| container.running)
        {
            return result;
        }
        let last_good = Deployment { target: &fallback, target_is_good: true, ..newest };
        if let Err(RolloutError::Failed(reason) | RolloutError::Denied { reason, .. }) =
            last_good.run(&containers).await
        {
            logging::error!("module {name}: the last good version does not run either: {reason}");
        }
        result
    }

    /// Returns the generation of the newest version.
    pub(super) fn generation(&self, name: &str) -> Option<u64> {
        let generation =
            |state: &mut ModuleState| state.history.desired.as_ref().map(|v| v.generation);
        self.with(name, generation).flatten()
    }

    /// Waits until there is a newer spec.
    async fn superseded(&self, name: &str, generation: Option<u64>) {
        while self.generation(name) == generation {
            tokio::time::sleep(SUPERSEDED_POLL_INTERVAL).await;
        }
    }
}
