//! Drift detection: containers that are unknown, altered or denied are removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledger::{Decision, Reason};
use serde_json::json;
use tokio::time::Instant;

use super::controller::Modules;
use super::error::ReconcileError;
use crate::audit::EventKind;
use crate::engine::inventory::ContainerRecord;
use crate::engine::{Container, Engine};
use crate::util::error_chain::error_chain;
use crate::util::lock::lock;

/// Time in seconds for the stop of a denied container whose module has no version any more.
const DEFAULT_STOP_TIMEOUT_S: u32 = 1;

/// Reason why a container is removed.
struct Removal {
    kind: EventKind,
    /// Altered part or action; `None` for a container that trustd did not create.
    change: Option<String>,
}

impl Modules {
    /// Removes containers that trustd did not create, that were altered, or that are denied.
    /// Returns the first problem.
    pub(super) async fn check_containers(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        containers: &[Container],
        records: &BTreeMap<String, ContainerRecord>,
    ) -> Option<ReconcileError> {
        // Denied containers come first, because the inspection of the others takes time.
        for container in containers {
            if let Some(record) = records.get(&container.id) {
                self.check_admission(engine, container, record);
            }
        }
        let mut problem = None;
        for container in containers {
            let record = records.get(&container.id);
            match self.find_drift(engine, container, record).await {
                Ok(None) => {}
                Ok(Some(Removal { kind, change })) => {
                    let mut event = json!({ "container": container.id, "image": container.image });
                    if let Some(record) = record {
                        event["module"] = record.module.clone().into();
                    }
                    if let Some(change) = change {
                        event["change"] = change.into();
                    }
                    self.remove_container(engine, &container.id, kind, event);
                }
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        problem
    }

    async fn find_drift(
        &self,
        engine: &Engine,
        container: &Container,
        record: Option<&ContainerRecord>,
    ) -> Result<Option<Removal>, ReconcileError> {
        let unknown = |change| Some(Removal { kind: EventKind::UnknownContainerRemoved, change });
        let Some(record) = record else {
            // The container is being created, or was recorded after the records were read.
            let known = lock(&self.creating).contains(&container.name)
                || self.inventory.get(&container.id).is_some();
            return Ok(if known { None } else { unknown(None) });
        };
        if record.digest != container.image {
            return Ok(unknown(Some("another image".to_owned())));
        }
        let change = self.find_alteration(engine, container, record).await?;
        Ok(change.map(|change| Removal { kind: EventKind::ModuleTampered, change: Some(change) }))
    }

    /// Records an event and removes a container in a task of its own, so that a container that
    /// cannot be removed delays nothing else.
    fn remove_container(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        id: &str,
        kind: EventKind,
        event: serde_json::Value,
    ) {
        if !lock(&self.removing).insert(id.to_owned()) {
            return;
        }
        let (modules, engine, id) = (self.clone(), engine.clone(), id.to_owned());
        tokio::spawn(async move {
            let recorded = modules.deps.audit.record(kind, &event).await;
            // The container is removed even if the event cannot be recorded.
            let removed = engine.remove(&id).await;
            let forgotten = if removed.is_ok() { modules.inventory.remove(&id) } else { Ok(()) };
            let problems = [
                recorded.err().map(|error| error_chain(&error)),
                removed.err().map(|error| error_chain(&error)),
                forgotten.err().map(|error| error_chain(&error)),
            ];
            for problem in problems.into_iter().flatten() {
                logging::error!("container {id}: {problem}");
            }
            lock(&modules.removing).remove(&id);
            modules.wake();
        });
    }

    /// Returns how a container was altered, if it was: an action from the events, or the parts of
    /// its configuration that changed.
    async fn find_alteration(
        &self,
        engine: &Engine,
        container: &Container,
        record: &ContainerRecord,
    ) -> Result<Option<String>, ReconcileError> {
        if lock(&self.changing).contains(&container.id) {
            return Ok(None);
        }
        let actions = self.events.take_actions(&container.id);
        if let Some(action) = actions.into_iter().find(|a| !is_health_check(a, record)) {
            return Ok(Some(action));
        }
        if !container.running {
            return Ok(None);
        }
        // The container may have exited since the list was made.
        let Some(inspection) = engine.inspect(&container.id).await? else { return Ok(None) };
        if inspection.config_digest != record.config_digest {
            // A rollout may have changed container and record meanwhile. Both are read again.
            let (Some(inspection), Some(record)) =
                (engine.inspect(&container.id).await?, self.inventory.get(&container.id))
            else {
                return Ok(None);
            };
            let changed: Vec<&str> = inspection
                .config_digest
                .iter()
                .filter(|(part, hash)| record.config_digest.get(*part) != Some(hash))
                .map(|(part, _)| part.as_str())
                .collect();
            if !changed.is_empty() && !lock(&self.changing).contains(&container.id) {
                return Ok(Some(changed.join(", ")));
            }
        }
        if inspection.has_execs && record.health_command.is_empty() {
            return Ok(Some("exec session".into()));
        }
        Ok(None)
    }

    /// Stops a container that the ledger no longer allows, once its grace period is over. This does
    /// not wait for a rollout of the module.
    fn check_admission(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        container: &Container,
        record: &ContainerRecord,
    ) {
        let reason = match self.decide(&record.requested_digest, &record.digest) {
            Decision::Allow(_) => {
                lock(&self.denied_since).remove(&container.id);
                return;
            }
            Decision::Deny(reason) => reason,
        };
        let since =
            *lock(&self.denied_since).entry(container.id.clone()).or_insert_with(Instant::now);
        if since.elapsed() < self.deps.admission.grace_period(&reason)
            || !lock(&self.removing).insert(container.id.clone())
        {
            return;
        }
        let (id, record) = (container.id.clone(), record.clone());
        tokio::spawn(self.clone().stop_denied(engine.clone(), id, record, reason));
    }

    async fn stop_denied(
        self: Arc<Self>,
        engine: Arc<Engine>,
        id: String,
        record: ContainerRecord,
        reason: Reason,
    ) {
        let module = &record.module;
        logging::warn!("module {module}: {reason}");
        let event = json!({ "digest": record.digest, "module": module, "reason": reason.code() });
        let recorded = self.deps.audit.record(EventKind::ModuleStopped, &event).await;
        let timeout = self
            .with(module, |state| state.target().map(|target| target.settings.stop_within_s))
            .flatten();
        // The container is stopped even if the event cannot be recorded.
        let stopped = engine.stop_and_remove(&id, timeout.unwrap_or(DEFAULT_STOP_TIMEOUT_S)).await;
        let problems = [
            recorded.err().map(|error| error_chain(&error)),
            stopped.as_ref().err().map(|error| error_chain(error)),
        ];
        for problem in problems.into_iter().flatten() {
            logging::error!("module {module}: {problem}");
        }
        if stopped.is_ok() {
            // The reconcile loop removes a record that stays here.
            let _ = self.inventory.remove(&id);
        }
        lock(&self.removing).remove(&id);
        if stopped.is_ok() {
            lock(&self.denied_since).remove(&id);
        }
        self.wake();
    }
}

/// Reports whether an action is the engine's own health check, which it runs as an exec session of
/// the module's command. The engine writes the action as `exec_…: PROGRAM ARGUMENTS`.
fn is_health_check(action: &str, record: &ContainerRecord) -> bool {
    let Some((program, arguments)) = record.health_command.split_first() else { return false };
    let command = format!("{program} {}", arguments.join(" "));
    action.starts_with("exec_") && action.split_once(": ").is_some_and(|(_, c)| c == command)
}
