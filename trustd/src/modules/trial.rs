//! Trial of a new container: it must become healthy in time before it replaces the old version.
//! Otherwise the module is rolled back.

use std::time::Duration;

use ledger::Decision;
use serde_json::json;
use tokio::time::Instant;

use super::controller::SetGuard;
use super::deploy::{Deployment, ModuleContainer};
use super::error::RolloutError;
use super::health::is_healthy;
use super::status::ModuleStatus;
use super::version::FailedRollout;
use crate::audit::EventKind;
use crate::engine::inventory::ContainerRecord;
use crate::util::failpoint::fail_point;

const HEALTH_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Part of a failed container's log that is reported.
const LOG_LINES: u32 = 5;
const MAX_LOG_CHARS: usize = 300;

impl Deployment<'_> {
    /// Waits until the new container is healthy, and switches to it. If it does not become healthy
    /// in time, rolls back.
    pub(super) async fn await_healthy(
        &self,
        id: &str,
        others: &[&ModuleContainer],
    ) -> Result<(), RolloutError> {
        if !others.iter().any(|other| other.running) {
            let status = ModuleStatus::Starting { container: id.to_owned() };
            self.modules.with(self.name, |state| state.status = status);
        }
        let (began, health) = (Instant::now(), &self.target.settings.health);
        let timeout = Duration::from_secs(health.within_s.into());
        loop {
            // What is denied ends. That is no failure of this version.
            if let Some(record) = self.modules.inventory.get(id) {
                self.require_allowed(&record.digest)?;
            }
            let Some(inspection) = self.engine.inspect(id).await? else {
                return Err(container_is_gone());
            };
            if is_healthy(health, &inspection, began.elapsed()).await {
                break;
            }
            let problem = if !inspection.running {
                let status = inspection.exit_code.unwrap_or_default();
                format!("the container exited with status {status} before it was healthy")
            } else if began.elapsed() >= timeout {
                format!("the container was not healthy within {} s", health.within_s)
            } else {
                tokio::time::sleep(HEALTH_POLL_INTERVAL).await;
                continue;
            };
            return self.fail_trial(id, others, problem).await;
        }
        fail_point("healthy");
        self.switch_to(id, others).await
    }

    /// Records the failure, removes the container, and rolls back.
    async fn fail_trial(
        &self,
        id: &str,
        others: &[&ModuleContainer],
        problem: String,
    ) -> Result<(), RolloutError> {
        let reason = format!("{problem}{}", self.last_log_lines(id).await);
        let digest = self.modules.inventory.get(id).map(|record| record.digest);
        let event = json!({ "digest": digest, "module": self.name });
        self.modules.deps.audit.record(EventKind::ModuleFailed, &event).await?;
        self.discard(id).await?;
        self.roll_back(others, reason).await
    }

    /// Makes the healthy container the module's only one.
    async fn switch_to(&self, id: &str, others: &[&ModuleContainer]) -> Result<(), RolloutError> {
        let modules = self.modules;
        let record = modules.inventory.get(id).ok_or_else(container_is_gone)?;
        // The approval may have been revoked during the trial.
        if let Decision::Deny(reason) = modules.decide(&record.requested_digest, &record.digest) {
            return Err(RolloutError::Denied {
                code: reason.code(),
                reason: reason.to_string(),
                digest: record.digest,
            });
        }
        let plan = self.plan(&record.digest)?;
        if !record.joined_peers {
            let _changing = SetGuard::new(&modules.changing, id);
            self.engine.join_peer_networks(id, &plan).await?;
            modules.inventory.insert(id, &ContainerRecord { joined_peers: true, ..record })?;
        }
        if !self.target_is_good {
            if let Some(other) = others.first() {
                let event = json!({
                    "from": other.record.digest, "module": self.name, "to": plan.digest,
                });
                modules.deps.audit.record(EventKind::ModuleUpgraded, &event).await?;
            }
            modules.desired.persist_good(self.name, self.target)?;
            modules.with(self.name, |state| {
                state.history.previous_good = state.history.last_good.take();
                state.history.last_good = Some(self.target.clone());
            });
            fail_point("good");
        }
        // The status names the new container before the old ones stop, which takes time.
        modules.with(self.name, |state| state.set_running(id));
        for other in others {
            self.stop_container(other).await?;
        }
        modules.pin_images(self.name);
        modules.with(self.name, |state| {
            state.loaded.retain(|fingerprint, _| *fingerprint == self.target.fingerprint());
            if state.history.rollback_reason().is_none() {
                state.last_error = None;
            }
        });
        logging::info!("module {} runs", self.name);
        Ok(())
    }

    /// Rolls back to the last good version, if there is one. A version that was healthy before
    /// fails instead.
    pub(super) async fn roll_back(
        &self,
        others: &[&ModuleContainer],
        reason: String,
    ) -> Result<(), RolloutError> {
        let modules = self.modules;
        let last_good = modules.with(self.name, |state| state.history.last_good.clone()).flatten();
        let Some(good) = last_good.filter(|_| !self.target_is_good) else {
            return Err(RolloutError::Failed(reason));
        };
        let reason = format!("rolled back to {}: {reason}", good.source.digest);
        let event = json!({
            "from": self.target.source.digest, "module": self.name, "to": good.source.digest,
        });
        modules.deps.audit.record(EventKind::ModuleRolledBack, &event).await?;
        if modules.generation(self.name) == Some(self.target.generation) {
            let generation = self.target.generation;
            let failed = FailedRollout { generation, reason: reason.clone() };
            modules.desired.persist_failed(self.name, &failed)?;
            modules.with(self.name, |state| {
                state.history.failed = Some(failed);
                state.last_error = Some(reason.clone());
            });
        }
        logging::warn!("module {}: {reason}", self.name);
        fail_point("rolled-back");
        let fingerprint = good.fingerprint();
        for other in others.iter().filter(|other| other.record.fingerprint == fingerprint) {
            // It was stopped only if the two versions cannot run concurrently.
            if self.is_allowed(&other.record) && self.engine.start(&other.id).await.is_ok() {
                modules.with(self.name, |state| state.set_running(&other.id));
            }
        }
        Ok(())
    }

    /// Returns the end of a container's log as the end of a message, or nothing if it is empty.
    pub(super) async fn last_log_lines(&self, id: &str) -> String {
        let log = self.engine.logs(id, LOG_LINES).await.unwrap_or_default();
        let text: String = log.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = text.trim();
        let start = text.char_indices().rev().nth(MAX_LOG_CHARS).map_or(0, |(at, _)| at);
        if text.is_empty() {
            String::new()
        } else {
            format!("; end of its log: {}", &text[start..])
        }
    }
}

fn container_is_gone() -> RolloutError {
    RolloutError::Failed("the container is gone".into())
}
