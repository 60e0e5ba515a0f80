//! Looking at the engine: what runs, what is there, what happens; and ending what has no business
//! there.
//!
//! Three sources, so that none of them has to be trusted alone: the stream of events (at once), the
//! lists (every second), and the control groups (what runs without the engine's knowledge). A
//! stream that delivers less than the engine reports when it is asked for the same time is a stream
//! that stalled: that is recorded and it is opened anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use deployment::DesiredState;
use futures_util::StreamExt as _;
use ledger::Decision;
use serde_json::json;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Modules, State, lock};
use crate::engine::inventory::Started;
use crate::engine::{Container, Engine, tag};

const PERIOD: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A stream may be so late.
const LATE: i64 = 1_000_000_000;
/// What is done to a container by nobody but somebody who wants to change it, or to look into it.
const ALTERING: [&str; 12] = [
    "exec_create",
    "exec_start",
    "update",
    "rename",
    "pause",
    "unpause",
    "attach",
    "archive-path",
    "extract-to-dir",
    "commit",
    "export",
    "checkpoint",
];

/// Of one container between two looks; more say nothing more.
const MOST_ALTERATIONS: usize = 64;

/// What the events told.
#[derive(Default)]
pub(super) struct Watched {
    /// The newest event that the stream delivered, in nanoseconds since 1970.
    newest: AtomicI64,
    /// Containers that somebody altered, and how.
    altered: Mutex<BTreeMap<String, BTreeSet<String>>>,
    stream: Mutex<Option<AbortHandle>>,
    /// When a container was first found to be forbidden.
    denied: Mutex<BTreeMap<String, Instant>>,
    /// Remembered, and not in the last list.
    gone: Mutex<BTreeSet<String>>,
}

impl Watched {
    fn event(&self, event: &EventMessage) {
        self.newest.fetch_max(event.time_nano.unwrap_or_default(), Ordering::Relaxed);
        let (Some(EventMessageTypeEnum::CONTAINER), Some(action)) = (event.typ, &event.action)
        else {
            return;
        };
        let name = action.split(':').next().unwrap_or_default();
        if ALTERING.contains(&name)
            && let Some(id) = event.actor.as_ref().and_then(|a| a.id.clone())
        {
            let mut altered = lock(&self.altered);
            let how = altered.entry(id).or_default();
            if how.len() < MOST_ALTERATIONS {
                how.insert(action.clone());
            }
        }
    }
}

fn nanoseconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_nanos()).ok())
        .unwrap_or_default()
}

fn moment(nanoseconds: i64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

impl Modules {
    /// Looks again and again, without end.
    pub async fn keep(self: Arc<Self>) {
        let mut said = String::new();
        loop {
            let begun = Instant::now();
            let looked = tokio::time::timeout(ANSWER_WITHIN, self.look())
                .await
                .map_err(anyhow::Error::from)
                .and_then(|r| r);
            let problem = looked.as_ref().map_or_else(
                |error| format!("{error:#}"),
                |problem| problem.clone().unwrap_or_default(),
            );
            if problem != said {
                println!(
                    "modules: {}",
                    if problem.is_empty() { "all is well again" } else { &problem }
                );
                said = problem;
            }
            if looked.is_err() {
                *lock(&self.engine) = None;
                if let Some(stream) = lock(&self.watched.stream).take() {
                    stream.abort();
                }
            }
            let _ = tokio::time::timeout(
                PERIOD.saturating_sub(begun.elapsed()),
                self.changed.notified(),
            )
            .await;
        }
    }

    async fn connected(self: &Arc<Self>) -> anyhow::Result<Arc<Engine>> {
        if let Some(engine) = self.engine() {
            return Ok(engine);
        }
        let engine = Arc::new(
            Engine::connect(&self.parts.settings.engine, self.parts.tickets.clone()).await?,
        );
        println!("the engine answers");
        *lock(&self.engine) = Some(engine.clone());
        Ok(engine)
    }

    fn listen(self: &Arc<Self>, engine: &Engine) {
        let mut stream = lock(&self.watched.stream);
        if stream.as_ref().is_some_and(|s| !s.is_finished()) {
            return;
        }
        self.watched.newest.fetch_max(nanoseconds(), Ordering::Relaxed);
        let (modules, mut events) = (self.clone(), Box::pin(engine.events()));
        let task = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                modules.watched.event(&event);
                modules.wake();
            }
        });
        *stream = Some(task.abort_handle());
    }

    /// Asks for what the stream should have delivered.
    async fn compare_events(self: &Arc<Self>, engine: &Engine) -> anyhow::Result<()> {
        let (newest, until) = (self.watched.newest.load(Ordering::Relaxed), nanoseconds() - LATE);
        if until <= newest {
            return Ok(());
        }
        let missed: Vec<EventMessage> = engine
            .events_between(&moment(newest + 1), &moment(until))
            .await?
            .into_iter()
            .filter(|e| {
                e.time_nano.is_some_and(|t| t > self.watched.newest.load(Ordering::Relaxed))
            })
            .collect();
        if missed.is_empty() {
            return Ok(());
        }
        for event in &missed {
            self.watched.event(event);
        }
        if let Some(stream) = lock(&self.watched.stream).take() {
            stream.abort();
        }
        self.parts.audit.record("engine-events-missed", &json!({ "missed": missed.len() })).await?;
        self.listen(engine);
        Ok(())
    }

    /// One look at everything. What could not be done is told; an error means that the engine does
    /// not answer.
    async fn look(self: &Arc<Self>) -> anyhow::Result<Option<String>> {
        let engine = self.connected().await?;
        self.listen(&engine);
        let mut problem = self.compare_events(&engine).await.err();
        // Without the list nothing can be judged; all else is said and tried again at the next
        // look.
        let containers = engine.containers().await?;
        // Read after the list: one that was remembered meanwhile is known.
        let started = self.started.all()?;
        problem = self.judge_containers(&engine, &containers, &started).await.or(problem);
        problem = self.judge_images(&engine).await.err().or(problem);
        problem = self.judge_groups(&containers).await.err().or(problem);
        self.forget_gone(&containers, &started)?;
        self.assign(&engine, &containers, &started);
        Ok(problem.map(|p| format!("{p:#}")))
    }

    /// Removes what trustd did not start, what somebody changed, and what is forbidden by now.
    async fn judge_containers(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        containers: &[Container],
        started: &BTreeMap<String, Started>,
    ) -> Option<anyhow::Error> {
        // What is forbidden first: the rest takes its time.
        for (container, known) in containers.iter().filter_map(|c| Some((c, started.get(&c.id)?))) {
            self.judge_approval(engine, container, known);
        }
        let mut problem = None;
        for container in containers {
            let (kind, why) = match started.get(&container.id) {
                // Being made; or made and remembered since the list was read.
                None if lock(&self.creating).contains(&container.name)
                    || self.started.of(&container.id).is_some() =>
                {
                    continue;
                }
                None => ("unknown-container-removed", None),
                Some(known) if known.digest != container.image => {
                    ("unknown-container-removed", Some("another image".to_owned()))
                }
                Some(known) => match self.changed(engine, container, known).await {
                    Ok(None) => continue,
                    Ok(Some(how)) => ("module-tampered", Some(how)),
                    Err(error) => {
                        problem = problem.or(Some(error));
                        continue;
                    }
                },
            };
            let mut event = json!({ "container": container.id, "image": container.image });
            if let Some(known) = started.get(&container.id) {
                event["module"] = known.module.clone().into();
            }
            if let Some(why) = why {
                event["change"] = why.into();
            }
            self.expel(engine, &container.id, kind, event);
        }
        problem
    }

    /// Records and removes a container, beside everything else: one that does not go holds nothing
    /// up.
    fn expel(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        id: &str,
        kind: &'static str,
        event: serde_json::Value,
    ) {
        if !lock(&self.ending).insert(id.to_owned()) {
            return;
        }
        let (modules, engine, id) = (self.clone(), engine.clone(), id.to_owned());
        tokio::spawn(async move {
            // Removed in any case, even if that cannot be said.
            let said = modules.parts.audit.record(kind, &event).await.map_err(|e| e.to_string());
            let removed = engine.remove(&id).await.map_err(|e| e.to_string());
            let forgotten = if removed.is_ok() {
                modules.started.forget(&id).map_err(|e| e.to_string())
            } else {
                Ok(())
            };
            for problem in [said, removed, forgotten].into_iter().filter_map(Result::err) {
                println!("container {id}: {problem}");
            }
            lock(&modules.ending).remove(&id);
            modules.wake();
        });
    }

    /// Whether a container of ours is no longer as it was made, and in what.
    async fn changed(
        &self,
        engine: &Engine,
        container: &Container,
        known: &Started,
    ) -> anyhow::Result<Option<String>> {
        if lock(&self.touched).contains(&container.id) {
            return Ok(None);
        }
        let told = lock(&self.watched.altered).remove(&container.id).unwrap_or_default();
        // The engine's own check of a module's health runs in the container too; this is how the
        // engine writes it.
        let check = known
            .check
            .split_first()
            .map(|(program, arguments)| format!("{program} {}", arguments.join(" ")));
        let own = |how: &String| {
            how.starts_with("exec_")
                && how.split_once(": ").map(|(_, what)| what) == check.as_deref()
        };
        if let Some(how) = told.into_iter().find(|how| !own(how)) {
            return Ok(Some(how));
        }
        if !container.running {
            return Ok(None);
        }
        // It may have ended since the list was made.
        let Some(look) = engine.look(&container.id).await? else { return Ok(None) };
        if look.shape != known.shape {
            // trustd itself may have been at it: looked at again, now that it is not.
            let (Some(again), Some(known)) =
                (engine.look(&container.id).await?, self.started.of(&container.id))
            else {
                return Ok(None);
            };
            let parts: Vec<&str> = again
                .shape
                .iter()
                .filter(|(part, hash)| known.shape.get(*part) != Some(hash))
                .map(|(part, _)| part.as_str())
                .collect();
            if !parts.is_empty() && !lock(&self.touched).contains(&container.id) {
                return Ok(Some(parts.join(", ")));
            }
        }
        if look.execs && known.check.is_empty() {
            return Ok(Some("something runs in it".into()));
        }
        Ok(None)
    }

    /// Ends what the ledger no longer allows, once its grace is over. This never waits for the work
    /// on the module.
    fn judge_approval(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        container: &Container,
        known: &Started,
    ) {
        let reason = match self.decide(&known.asked, &known.digest) {
            Decision::Allow(_) => {
                lock(&self.watched.denied).remove(&container.id);
                return;
            }
            Decision::Deny(reason) => reason,
        };
        let since =
            *lock(&self.watched.denied).entry(container.id.clone()).or_insert_with(Instant::now);
        if since.elapsed() < self.parts.approvals.grace(&reason)
            || !lock(&self.ending).insert(container.id.clone())
        {
            return;
        }
        let (modules, engine, id, known) =
            (self.clone(), engine.clone(), container.id.clone(), known.clone());
        tokio::spawn(async move {
            println!("module {}: {reason}", known.module);
            let event =
                json!({ "digest": known.digest, "module": known.module, "reason": reason.code() });
            let said = modules.parts.audit.record("module-stopped", &event).await;
            let within = modules
                .with(&known.module, |u| u.target().map(|t| t.settings.stop_within_s))
                .flatten();
            let ended = engine.stop(&id, within.unwrap_or(1)).await;
            for problem in
                [said.err().map(|e| e.to_string()), ended.as_ref().err().map(ToString::to_string)]
                    .into_iter()
                    .flatten()
            {
                println!("module {}: {problem}", known.module);
            }
            if ended.is_ok() {
                let _ = modules.started.forget(&id);
            }
            lock(&modules.ending).remove(&id);
            if ended.is_ok() {
                lock(&modules.watched.denied).remove(&id);
            }
            modules.wake();
        });
    }

    /// Removes images and names that trustd did not load, and those that nothing needs any more.
    async fn judge_images(&self, engine: &Engine) -> anyhow::Result<()> {
        // The list first: what is expected before it is loaded is expected when it shows.
        let images = engine.images().await?;
        let ours = self.started.images()?;
        let mut problem = None;
        for image in &images {
            let known = ours.contains(&image.digest);
            let foreign: Vec<&String> =
                image.tags.iter().filter(|t| known && **t != tag(&image.digest)).collect();
            let (kind, event, names) = match (known, foreign.is_empty()) {
                (true, true) => continue,
                (true, false) => (
                    "unknown-tag-removed",
                    json!({ "image": image.digest, "tags": foreign }),
                    foreign,
                ),
                (false, _) => (
                    "unknown-image-removed",
                    json!({ "image": image.digest, "tags": image.tags }),
                    vec![&image.digest],
                ),
            };
            // Removed in any case, even if that cannot be said.
            problem = self
                .parts
                .audit
                .record(kind, &event)
                .await
                .err()
                .map(anyhow::Error::from)
                .or(problem);
            for name in names {
                problem =
                    engine.remove_image(name).await.err().map(anyhow::Error::from).or(problem);
            }
        }
        // Not while an image is on its way into the engine: that one may be among those to go.
        let Ok(_one) = self.loading.try_lock() else { return problem.map_or(Ok(()), Err) };
        let started: BTreeSet<String> =
            self.started.all()?.into_values().map(|s| s.digest).collect();
        let needed: BTreeSet<String> = lock(&self.units)
            .values()
            .flat_map(|u| u.loaded.values().cloned())
            .chain(started)
            .collect();
        for digest in self.started.images()?.difference(&needed) {
            match engine.remove_image(digest).await {
                Ok(()) => self.started.forget_image(digest)?,
                Err(error) => problem = Some(error.into()),
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Ends what runs in a control group that is neither a service's nor a known container's.
    async fn judge_groups(&self, containers: &[Container]) -> anyhow::Result<()> {
        let Some(root) = &self.parts.settings.groups else { return Ok(()) };
        let found = foreign(root, &self.parts.settings.services)?;
        // Read after the groups: a container is remembered before it has processes.
        let started = self.started.all()?;
        let container = |group: &str| group.strip_prefix("node/modules/").map(str::to_owned);
        let known =
            |id: &String| started.contains_key(id) || containers.iter().any(|c| c.id == *id);
        let mut problem = None;
        for group in
            found.into_iter().filter(|group| !container(group).is_some_and(|id| known(&id)))
        {
            // Ended in any case, even if that cannot be said.
            problem = self
                .parts
                .audit
                .record("unknown-cgroup-killed", &json!({ "group": group }))
                .await
                .err()
                .map(anyhow::Error::from)
                .or(problem);
            problem =
                crate::util::init_client::send(&self.parts.settings.init, &format!("end {group}"))
                    .err()
                    .map(anyhow::Error::from)
                    .or(problem);
        }
        problem.map_or(Ok(()), Err)
    }

    /// What the engine no longer has need not be remembered.
    fn forget_gone(
        &self,
        containers: &[Container],
        started: &BTreeMap<String, Started>,
    ) -> anyhow::Result<()> {
        let gone: BTreeSet<String> =
            started.keys().filter(|id| !containers.iter().any(|c| c.id == **id)).cloned().collect();
        // Twice in a row: one may have been made after the list was.
        let before = std::mem::replace(&mut *lock(&self.watched.gone), gone.clone());
        for id in gone.intersection(&before) {
            self.started.forget(id)?;
            lock(&self.watched.denied).remove(id);
        }
        lock(&self.watched.altered).retain(|id, _| started.contains_key(id) && !gone.contains(id));
        Ok(())
    }

    /// Gives every module that is not as desired to a job of its own.
    fn assign(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        containers: &[Container],
        started: &BTreeMap<String, Started>,
    ) {
        let mut jobs = Vec::new();
        for (name, unit) in lock(&self.units).iter_mut().filter(|(_, unit)| !unit.busy) {
            let Some(target) = unit.target() else { continue };
            let mine: Vec<(&Container, &Started)> = containers
                .iter()
                .filter(|c| !lock(&self.ending).contains(&c.id))
                .filter_map(|c| Some((c, started.get(&c.id)?)))
                .filter(|(_, s)| s.module == *name)
                .collect();
            let reconciled = match (target.desired, &mine[..], &unit.state) {
                (DesiredState::Run, [(one, as_what)], State::Running { container }) => {
                    one.running
                        && one.id == *container
                        && as_what.settings == target.fingerprint()
                        && unit.proven()
                }
                (DesiredState::Run, ..) => false,
                (_, mine, state) => mine.is_empty() && *state == State::Stopped,
            };
            if reconciled {
                if let [(one, _)] = &mine[..] {
                    unit.running(&one.id);
                }
            } else if !unit.resting() {
                unit.busy = true;
                jobs.push(name.clone());
            }
        }
        for name in jobs {
            tokio::spawn(self.clone().work(name, engine.clone()));
        }
    }
}

/// Control groups below `root` with processes in them that are no service's, as init names them.
fn foreign(root: &Path, services: &[String]) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut next = vec![String::new()];
    while let Some(group) = next.pop() {
        let dir = root.join(&group);
        let entries = match std::fs::read_dir(&dir) {
            // It ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let name = entry.file_name().to_string_lossy().into_owned();
            next.push(if group.is_empty() { name } else { format!("{group}/{name}") });
        }
        // The kernel's own threads are in the root of all groups.
        let known = group.is_empty() || services.contains(&group);
        let populated = || {
            std::fs::read_to_string(dir.join("cgroup.procs"))
                .is_ok_and(|text| !text.trim().is_empty())
        };
        if !known && populated() {
            found.push(group);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_outside_of_services_and_containers_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let group = |path: &str, procs: &str| {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
            std::fs::write(dir.path().join(path).join("cgroup.procs"), procs).unwrap();
        };
        group("", "");
        group("trustd", "10\n");
        group("node", "");
        group("node/dockerd", "11\n");
        group("node/modules/aaa", "12\n");
        group("node/modules/bbb", "13\n");
        group("node/modules/aaa/inner", "14\n");
        group("default/ctr", "15\n");
        group("node/empty", "");
        let services = ["trustd".to_owned(), "node/dockerd".to_owned()];
        let mut found = foreign(dir.path(), &services).unwrap();
        found.sort();
        assert_eq!(
            found,
            ["default/ctr", "node/modules/aaa", "node/modules/aaa/inner", "node/modules/bbb"]
        );
    }

    #[test]
    fn moments_are_as_the_engine_reads_them() {
        assert_eq!(moment(1_700_000_000_000_000_001), "1700000000.000000001");
    }
}
