//! Drift detection: containers that are unknown or altered are removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::controller::Modules;
use super::error::ReconcileError;
use crate::audit::EventKind;
use crate::engine::inventory::ContainerRecord;
use crate::engine::{Container, Engine};
use crate::util::error_chain::error_chain;
use crate::util::lock::lock;

/// Reason why a container is removed.
struct Removal {
    kind: EventKind,
    /// Altered part or action; `None` for a container that trustd did not create.
    change: Option<String>,
}

impl Modules {
    /// Removes containers that trustd did not create or that were altered. Returns the first problem.
    pub(super) async fn check_containers(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        containers: &[Container],
        records: &BTreeMap<String, ContainerRecord>,
    ) -> Option<ReconcileError> {
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
        self.deps.sockets.end_answers(id);
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
}

/// Reports whether an action is the engine's own health check, which it runs as an exec session of
/// the module's command. The engine writes the action as `exec_…: PROGRAM ARGUMENTS`.
fn is_health_check(action: &str, record: &ContainerRecord) -> bool {
    let Some((program, arguments)) = record.health_command.split_first() else { return false };
    let command = format!("{program} {}", arguments.join(" "));
    action.starts_with("exec_") && action.split_once(": ").is_some_and(|(_, c)| c == command)
}
