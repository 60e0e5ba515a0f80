//! Enforcement of the ledger's decisions on running containers.
//!
//! Invariants:
//! - A thread of its own decides and acts. It waits for neither the engine, the TPM nor the disk:
//!   it needs the inventory, which is on a tmpfs, the ledger in memory, and init.
//! - When a denial takes effect, the container gets no further answer on its socket, and init kills
//!   its control group: at once if the image was revoked, otherwise after [`TERMINATION_TIME`].
//! - init gets a report only after a complete pass. Without reports it kills all modules.
//!
//! What needs the engine or the TPM follows in a task for each container: the engine removes the
//! container, and the event is recorded. Both are retried until they succeed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::{ChainReason, Decision, Reason};
use serde_json::json;
use tokio::runtime::Handle;

use super::cgroups;
use super::controller::Modules;
use super::ending::Ending;
use super::error::ReconcileError;
use super::status::{ModuleState, ModuleStatus};
use crate::audit::EventKind;
use crate::engine::inventory::ContainerRecord;
use crate::util::atomic_file::PathError;
use crate::util::error_chain::error_chain;
use crate::util::lock::lock;
use crate::util::{clock, init_client};

/// Longest time between two passes.
const PASS_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two passes while denied containers are not removed yet.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest time between two passes.
const MIN_PASS_INTERVAL: Duration = Duration::from_millis(20);
/// Time between SIGTERM and SIGKILL for a container that is denied and not revoked.
/// `stop-within-s` is for modules whose owner stops them.
const TERMINATION_TIME: Duration = Duration::from_secs(1);
/// Time between two reports to init (image/root/etc/basalt/services/trustd.toml, `max-absence-s`).
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const REPORT: &str = "watching trustd";
/// Time for the engine to remove a container, and pause before the next attempt.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before an event is recorded again that could not be recorded.
const RECORD_RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Ends the thread on drop.
pub(super) struct ThreadGuard(Arc<Modules>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        self.0.wakeup.next_thread();
    }
}

/// Problems that the thread has logged.
#[derive(Default)]
struct Reported {
    pass: Option<String>,
    init: Option<String>,
}

impl Modules {
    /// Starts the thread. It ends when the returned guard is dropped. Without the thread, init
    /// gets no reports.
    pub(super) fn start_enforcement(self: &Arc<Self>) -> std::io::Result<ThreadGuard> {
        let (modules, runtime) = (self.clone(), Handle::current());
        let number = self.wakeup.next_thread();
        std::thread::Builder::new().name("enforce".into()).spawn(move || {
            modules.enforce_forever(number, &runtime);
        })?;
        Ok(ThreadGuard(self.clone()))
    }

    fn enforce_forever(self: &Arc<Self>, number: u64, runtime: &Handle) {
        let (mut reported, mut last_report) = (Reported::default(), None::<Instant>);
        loop {
            let began = Instant::now();
            let problem = match self.enforce_once(runtime) {
                Ok(()) if last_report.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL) => {
                    let sent = init_client::send(&self.deps.settings.init_socket, REPORT);
                    last_report = Some(began);
                    log_change(&mut reported.init, sent.err().map(describe_unsent));
                    None
                }
                Ok(()) => None,
                Err(error) => Some(error_chain(&error)),
            };
            log_change(&mut reported.pass, problem);
            let is_idle = lock(&self.ending).is_empty();
            let pause = if is_idle { PASS_INTERVAL } else { KILL_INTERVAL };
            if !self.wakeup.wait(number, pause.saturating_sub(began.elapsed())) {
                return;
            }
            std::thread::sleep(MIN_PASS_INTERVAL.saturating_sub(began.elapsed()));
        }
    }

    /// Makes one pass over the containers of the inventory.
    fn enforce_once(self: &Arc<Self>, runtime: &Handle) -> Result<(), PathError> {
        let records = self.inventory.all()?;
        let mut denied = Vec::new();
        for (id, record) in &records {
            if let Decision::Deny(reason) = self.decide(&record.requested_digest, &record.digest) {
                if self.is_grace_over(id, &reason) {
                    self.end_denied(runtime, id, record, &reason);
                }
                denied.push(id.as_str());
            }
        }
        self.denials.retain(|id| denied.contains(&id));
        // A container can be added after the records were read.
        let exists = |id: &str| records.contains_key(id) || self.inventory.get(id).is_some();
        self.deps.sockets.retain(exists);
        self.kill_ending();
        Ok(())
    }

    /// Reports whether a denial takes effect. The grace period begins when the denial is first
    /// known.
    fn is_grace_over(&self, id: &str, reason: &Reason) -> bool {
        match self.deps.admission.grace_period(reason) {
            Duration::ZERO => true,
            Duration::MAX => false,
            grace => {
                let now = clock::since_boot();
                now.saturating_sub(self.denials.first_known(id, reason.code(), now)) >= grace
            }
        }
    }

    /// Ends all answers to a container, and begins its removal, unless this has happened before.
    fn end_denied(
        self: &Arc<Self>,
        runtime: &Handle,
        id: &str,
        record: &ContainerRecord,
        reason: &Reason,
    ) {
        let is_revoked = matches!(
            reason,
            Reason::Revoked { .. } | Reason::Chain { reason: ChainReason::Revoked { .. }, .. }
        );
        let time = if is_revoked { Duration::ZERO } else { TERMINATION_TIME };
        let kill_at = Instant::now() + time;
        let mut ending = lock(&self.ending);
        if let Some(known) = ending.get_mut(id) {
            // The image may be revoked after its approval expired.
            known.kill_at = known.kill_at.min(kill_at);
            return;
        }
        self.deps.sockets.end_answers(id);
        ending.insert(id.to_owned(), Ending { kill_at, problem: None });
        drop(ending);
        let module = &record.module;
        logging::warn!("module {module}: {reason}");
        self.with(module, |state| set_denied(state, id, reason));
        let event = json!({ "digest": record.digest, "module": module, "reason": reason.code() });
        runtime.spawn(self.clone().finish_denied(id.to_owned(), event, !is_revoked));
    }

    /// Has init kill the control groups of denied containers. This is repeated until the container
    /// is removed, because the engine may be about to start its processes.
    fn kill_ending(&self) {
        let settings = &self.deps.settings;
        let now = Instant::now();
        for (id, ending) in lock(&self.ending).iter_mut().filter(|(_, e)| e.kill_at <= now) {
            let group = cgroups::group_of(id);
            if settings
                .cgroup_root
                .as_ref()
                .is_some_and(|root| !cgroups::is_populated(root, &group))
            {
                continue;
            }
            let sent = init_client::send(&settings.init_socket, &format!("kill-group {group}"));
            log_change(&mut ending.problem, sent.err().map(describe_unsent));
        }
    }

    /// Reports whether a container is being removed, so that no rollout must use it.
    pub(super) fn is_being_removed(&self, id: &str) -> bool {
        lock(&self.removing).contains(id) || lock(&self.ending).contains_key(id)
    }

    /// Has the engine remove a container and records the event, each as soon as possible.
    async fn finish_denied(self: Arc<Self>, id: String, event: serde_json::Value, terminate: bool) {
        let record = self.record_until_done(EventKind::ModuleStopped, &event);
        // The record in the inventory stays until both are done, so that the next process of trustd
        // does the rest if this one ends.
        tokio::join!(record, self.remove_until_done(&id, terminate));
        if let Err(error) = self.inventory.remove(&id) {
            logging::error!("container {id}: {}", error_chain(&error));
        }
        lock(&self.ending).remove(&id);
        self.wake();
    }

    async fn record_until_done(&self, kind: EventKind, event: &serde_json::Value) {
        let mut reported = None;
        while let Err(error) = self.deps.audit.record(kind, event).await {
            log_change(
                &mut reported,
                Some(format!("cannot record {kind}: {}", error_chain(&error))),
            );
            tokio::time::sleep(RECORD_RETRY_PAUSE).await;
        }
    }

    /// Has the engine remove a container. Returns when it is removed.
    async fn remove_until_done(&self, id: &str, mut terminate: bool) {
        let mut reported = None;
        loop {
            if let Some(engine) = self.engine() {
                let removal = async {
                    if std::mem::take(&mut terminate) {
                        // The removal kills the container if it could not be stopped.
                        let _ = engine.stop(id, TERMINATION_TIME.as_secs() as u32).await;
                    }
                    engine.remove(id).await
                };
                let problem = match tokio::time::timeout(REMOVE_TIMEOUT, removal).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error_chain(&error),
                    Err(_) => {
                        let seconds = REMOVE_TIMEOUT.as_secs();
                        format!("the engine did not remove it within {seconds} s")
                    }
                };
                log_change(&mut reported, Some(format!("container {id}: {problem}")));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Sets the status of a module whose container is denied, unless another container runs. The engine
/// may not answer, so the status does not wait for a rollout.
fn set_denied(state: &mut ModuleState, id: &str, reason: &Reason) {
    if let ModuleStatus::Running { container } | ModuleStatus::Starting { container } =
        &state.status
        && container == id
    {
        let reason = format!("{}: {reason}", reason.code());
        state.last_error = Some(reason.clone());
        state.status = ModuleStatus::Denied { reason };
    }
}

fn describe_unsent(error: std::io::Error) -> String {
    error_chain(&ReconcileError::Init(error))
}

/// Logs a problem unless it is the one that was logged last, and its end.
fn log_change(reported: &mut Option<String>, problem: Option<String>) {
    if *reported == problem {
        return;
    }
    match &problem {
        Some(problem) => logging::error!("enforcement of the ledger: {problem}"),
        None => logging::info!("enforcement of the ledger works again"),
    }
    *reported = problem;
}
