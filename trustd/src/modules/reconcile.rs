//! The reconcile loop: it inspects what the engine runs, removes what must not run, and starts a
//! rollout for each module that is not as desired.
//!
//! It has three sources, so that none has to be trusted alone: the engine's event stream (at once),
//! the engine's lists (in each pass), and the control groups (processes that the engine does not
//! know).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deployment::DesiredState;
use serde_json::json;
use tokio::time::Instant;

use super::controller::Modules;
use super::error::ReconcileError;
use super::status::{ModuleState, ModuleStatus};
use crate::audit::EventKind;
use crate::engine::inventory::ContainerRecord;
use crate::engine::{Container, Engine};
use crate::util::error_chain::error_chain;
use crate::util::lock::lock;

/// Time between the starts of two passes, unless an event starts one earlier.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
/// Time for all requests of one pass to the engine.
const PASS_TIMEOUT: Duration = Duration::from_secs(60);

impl Modules {
    /// Enforces the ledger's decisions and runs the reconcile loop, without end.
    pub async fn run(self: Arc<Self>) {
        let _enforcement = match self.start_enforcement() {
            Ok(guard) => guard,
            Err(error) => {
                // Without reports, init ends all modules.
                return logging::error!("no module runs: cannot start a thread: {error}");
            }
        };
        let mut reported = None;
        loop {
            let began = Instant::now();
            let pass = tokio::time::timeout(PASS_TIMEOUT, self.reconcile_once()).await;
            let result =
                pass.unwrap_or(Err(ReconcileError::Timeout { seconds: PASS_TIMEOUT.as_secs() }));
            if result.is_err() {
                *lock(&self.engine) = None;
                self.events.close();
            }
            let problem = match result {
                Ok(problem) => problem,
                Err(error) => Some(error),
            };
            let problem = problem.map(|error| error_chain(&error));
            if problem != reported {
                match &problem {
                    Some(problem) => logging::warn!("{problem}"),
                    None => logging::info!("the reconcile loop works again"),
                }
                reported = problem;
            }
            let pause = RECONCILE_INTERVAL.saturating_sub(began.elapsed());
            let _ = tokio::time::timeout(pause, self.changed.notified()).await;
        }
    }

    async fn connect(&self) -> Result<Arc<Engine>, ReconcileError> {
        if let Some(engine) = self.engine() {
            return Ok(engine);
        }
        let socket = &self.deps.settings.engine_socket;
        let engine = Arc::new(Engine::connect(socket, self.deps.tickets.clone()).await?);
        logging::info!("the engine answers");
        *lock(&self.engine) = Some(engine.clone());
        Ok(engine)
    }

    fn listen(self: &Arc<Self>, engine: &Engine) {
        let modules = self.clone();
        self.events.listen(engine, move || modules.wake());
    }

    /// Reports missed events and opens the event stream again.
    async fn check_events(self: &Arc<Self>, engine: &Engine) -> Result<(), ReconcileError> {
        let missed = self.events.add_missed(engine).await?;
        if missed > 0 {
            let event = json!({ "missed": missed });
            self.deps.audit.record(EventKind::EngineEventsMissed, &event).await?;
            self.listen(engine);
        }
        Ok(())
    }

    /// Makes one pass. Returns a problem that the next pass may solve, if there is one. An error
    /// means that the engine does not answer or the inventory cannot be read.
    async fn reconcile_once(self: &Arc<Self>) -> Result<Option<ReconcileError>, ReconcileError> {
        let engine = self.connect().await?;
        self.listen(&engine);
        let mut problem = self.check_events(&engine).await.err();
        let containers = engine.containers().await?;
        // The inventory is read after the list, so that it has every container of the list that
        // trustd created.
        let records = self.inventory.all()?;
        problem = self.check_containers(&engine, &containers, &records).await.or(problem);
        problem = self.clean_images(&engine).await.err().or(problem);
        problem = self.clean_cgroups(&containers).await.err().or(problem);
        self.forget_missing(&containers, &records)?;
        self.start_rollouts(&engine, &containers, &records);
        Ok(problem)
    }

    /// Removes records of containers that the engine no longer has.
    fn forget_missing(
        &self,
        containers: &[Container],
        records: &BTreeMap<String, ContainerRecord>,
    ) -> Result<(), ReconcileError> {
        let listed = |id: &str| containers.iter().any(|container| container.id == id);
        let missing: BTreeSet<String> = records.keys().filter(|id| !listed(id)).cloned().collect();
        // A container that was created after the list was made is missing in one pass only.
        let missing_before = std::mem::replace(&mut *lock(&self.missing), missing.clone());
        // The record of a denied container stays until its end is in the audit log.
        let is_ending = |id: &String| lock(&self.ending).contains_key(id);
        for id in missing.intersection(&missing_before).filter(|id| !is_ending(id)) {
            self.inventory.remove(id)?;
        }
        self.events.retain(|id| records.contains_key(id) && !missing.contains(id));
        Ok(())
    }

    /// Starts a rollout for each module that is not as desired.
    fn start_rollouts(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        containers: &[Container],
        records: &BTreeMap<String, ContainerRecord>,
    ) {
        let mut rollouts = Vec::new();
        for (name, state) in lock(&self.states).iter_mut().filter(|(_, state)| !state.busy) {
            let own: Vec<(&Container, &ContainerRecord)> = containers
                .iter()
                .filter(|container| !self.is_being_removed(&container.id))
                .filter_map(|container| Some((container, records.get(&container.id)?)))
                .filter(|(_, record)| record.module == *name)
                .collect();
            match is_reconciled(state, &own) {
                None => {}
                Some(true) => {
                    if let [(container, _)] = &own[..] {
                        state.set_running(&container.id);
                    }
                }
                Some(false) if !state.is_backing_off() => {
                    state.busy = true;
                    rollouts.push(name.clone());
                }
                Some(false) => {}
            }
        }
        for name in rollouts {
            tokio::spawn(self.clone().roll_out(name, engine.clone()));
        }
    }
}

/// Reports whether the module's containers are as desired, or returns `None` if there is no
/// version.
fn is_reconciled(state: &ModuleState, own: &[(&Container, &ContainerRecord)]) -> Option<bool> {
    let target = state.target()?;
    Some(match (target.desired, own, &state.status) {
        (
            DesiredState::Run,
            [(container, record)],
            ModuleStatus::Running { container: running },
        ) => {
            container.running
                && container.id == *running
                && !record.stopping
                && record.fingerprint == target.fingerprint()
                && state.target_is_good()
        }
        (DesiredState::Run, ..) => false,
        (DesiredState::Stop | DesiredState::Remove, own, status) => {
            own.is_empty() && *status == ModuleStatus::Stopped
        }
    })
}
