//! The work on one module, from its spec to a healthy container: fetch and verify first, then start
//! the new beside the old, then switch; and back if the new one does not become healthy in time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deployment::DesiredState;
use ledger::Decision;
use oci::{Image, OciError};
use serde_json::json;
use tokio::time::Instant;

use super::desired::Kept;
use super::{Modules, State, health, lock, pin_name};
use crate::engine::inventory::Started;
use crate::engine::{self, Engine, EngineError, Loading, Plan};
use crate::images::fetch::FetchError;
use crate::util::failpoint::fail_point;

/// How often a trial is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How much of the log of one that failed is told.
const LAST_WORDS: usize = 300;

/// A container of this module, as the engine lists it.
#[derive(Debug, Clone)]
pub(super) struct Mine {
    pub id: String,
    pub started: Started,
    pub running: bool,
}

/// Why a module does not run as desired.
enum Trouble {
    /// It must not.
    Refused { code: &'static str, reason: String, digest: String },
    /// It may, and it is tried again after a pause.
    Failed(String),
    /// It waits for others.
    Waiting(String),
}

/// Every error here tells its cause by itself.
impl<E: std::error::Error> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Modules {
    /// Does what there is to do for a module, and says what became of it.
    pub(super) async fn work(self: Arc<Self>, name: String, engine: Arc<Engine>) {
        let generation = self.generation(&name);
        let trouble = tokio::select! {
            done = self.attempt(&name, &engine) => done.err(),
            // What is in the making is left as a kill would leave it; the next look goes on from
            // there.
            () = self.superseded(&name, generation) => Some(Trouble::Waiting("a newer spec".into())),
        };
        // What runs goes on running whatever becomes of the newest spec.
        let runs = self.running_of(&name);
        match trouble {
            None => {}
            Some(Trouble::Waiting(reason)) => drop(self.with(&name, |u| {
                if runs.is_none() {
                    u.state = State::Waiting { reason };
                }
                u.rest();
            })),
            Some(Trouble::Refused { code, reason, digest }) => {
                let said = format!("{code}: {reason}");
                // A no that was said already is not repeated in the log.
                if self.with(&name, |u| u.said.insert(format!("refused {code}"))) == Some(true) {
                    println!("module {name} is refused: {reason}");
                    let event = json!({ "digest": digest, "module": name, "reason": code });
                    if let Err(error) = self.parts.audit.record("module-denied", &event).await {
                        println!("module {name}: {error}");
                    }
                }
                self.with(&name, |u| {
                    u.trouble = Some(said.clone());
                    match runs {
                        Some(id) => u.running(&id),
                        None => u.state = State::Refused { reason: said },
                    }
                    u.pause();
                });
            }
            Some(Trouble::Failed(reason)) => {
                println!("module {name}: {reason}");
                self.with(&name, |u| {
                    u.trouble = Some(reason.clone());
                    match runs {
                        Some(id) => u.running(&id),
                        None => u.state = State::Failed { reason },
                    }
                    u.pause();
                });
            }
        }
        self.with(&name, |u| u.busy = false);
        self.wake();
    }

    /// The newest spec; and if that cannot be while nothing runs, the last one that was good.
    async fn attempt(&self, name: &str, engine: &Arc<Engine>) -> Result<(), Trouble> {
        let Some((target, proven)) =
            self.with(name, |u| u.target().cloned().map(|t| (t, u.proven()))).flatten()
        else {
            return Ok(());
        };
        let tried =
            self.bring(name, engine, &self.mine(name, engine).await?, &target, proven).await;
        let good = self
            .with(name, |u| u.record.good.clone())
            .flatten()
            .filter(|good| !proven && good.desired == DesiredState::Run);
        let (Err(trouble), Some(good)) = (&tried, good) else { return tried };
        let mine = self.mine(name, engine).await?;
        if matches!(trouble, Trouble::Waiting(_))
            || target.desired != DesiredState::Run
            || mine.iter().any(|m| m.running)
        {
            return tried;
        }
        if let Err(Trouble::Failed(reason) | Trouble::Refused { reason, .. }) =
            self.bring(name, engine, &mine, &good, true).await
        {
            println!("module {name}: nor does the version before run: {reason}");
        }
        tried
    }

    fn generation(&self, name: &str) -> Option<u64> {
        self.with(name, |u| u.record.now.as_ref().map(|now| now.generation)).flatten()
    }

    /// Waits until there is a newer spec.
    async fn superseded(&self, name: &str, generation: Option<u64>) {
        while self.generation(name) == generation {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The module's containers as they are now, but for those that are being ended already.
    async fn mine(&self, name: &str, engine: &Arc<Engine>) -> Result<Vec<Mine>, Trouble> {
        let containers = engine.containers().await?;
        let started = self.started.all()?;
        let mine = containers.into_iter().filter_map(|c| {
            Some(Mine { started: started.get(&c.id)?.clone(), id: c.id, running: c.running })
        });
        Ok(mine
            .filter(|m| m.started.module == name && !lock(&self.ending).contains(&m.id))
            .collect())
    }

    /// The container of a module that trustd last knew to run.
    fn running_of(&self, name: &str) -> Option<String> {
        let State::Running { container } = self.state(name)? else { return None };
        self.started.of(&container).map(|_| container)
    }

    async fn bring(
        &self,
        name: &str,
        engine: &Arc<Engine>,
        mine: &[Mine],
        target: &Kept,
        proven: bool,
    ) -> Result<(), Trouble> {
        if target.desired != DesiredState::Run {
            return self.end_all(name, engine, mine, target).await;
        }
        if mine.iter().any(|m| m.running) {
            // The folder is mounted in the container; a socket that was lost with an earlier
            // process is opened anew, whichever version has it.
            self.parts.sockets.open(name)?;
        }
        let wanted = target.fingerprint();
        let (current, others): (Vec<&Mine>, Vec<&Mine>) =
            mine.iter().partition(|m| m.started.settings == wanted);
        if let Some(old) = others.iter().find(|o| o.running) {
            // Whatever becomes of the newest version, until then this one is it.
            self.with(name, |u| u.running(&old.id));
        }
        let mut current = current.into_iter();
        let (current, spare) = (current.next(), current);
        for twin in spare {
            self.end(engine, twin, target).await?;
        }
        // A kill came between its making and its start: it never was on trial.
        let (mut current, mut look) = (current, None);
        if let Some(one) = current.filter(|c| !c.running) {
            look = engine.look(&one.id).await?;
            if look.as_ref().is_none_or(|l| l.new) {
                self.discard(engine, &one.id).await?;
                current = None;
            }
        }
        let id = match current {
            Some(current) if current.running => current.id.clone(),
            Some(current) => {
                let code = look.and_then(|l| l.exit_code);
                let why = format!(
                    "it ended with exit status {}",
                    code.map_or_else(|| "?".into(), |c| c.to_string())
                );
                let words = last_words(engine, &current.id).await;
                let event =
                    json!({ "code": code, "digest": current.started.digest, "module": name });
                self.parts.audit.record("module-exited", &event).await?;
                self.discard(engine, &current.id).await?;
                self.with(name, |u| u.restarts += 1);
                return self
                    .gave_up(name, engine, target, proven, &others, format!("{why}{words}"))
                    .await;
            }
            None => self.make(name, engine, target, &others).await?,
        };
        self.trial(name, engine, target, proven, &id, &others).await
    }

    /// Nothing of it should run.
    async fn end_all(
        &self,
        name: &str,
        engine: &Arc<Engine>,
        mine: &[Mine],
        target: &Kept,
    ) -> Result<(), Trouble> {
        for container in mine {
            self.end(engine, container, target).await?;
        }
        self.with(name, |u| {
            u.state = State::Stopped;
            u.trouble = None;
            u.loaded.clear();
        });
        if target.desired == DesiredState::Remove {
            self.desired.forget(name)?;
            self.parts.sockets.close(name);
            self.with(name, |u| {
                (u.record.good, u.record.before, u.record.failed) = (None, None, None)
            });
        }
        engine.remove_network(&engine::own_network(name)).await;
        for peer in &target.settings.peers {
            engine.remove_network(&engine::link_network(name, peer)).await;
        }
        self.pin(name);
        Ok(())
    }

    /// Gets the image and makes a container of it, which is started at the end.
    async fn make(
        &self,
        name: &str,
        engine: &Arc<Engine>,
        target: &Kept,
        others: &[&Mine],
    ) -> Result<String, Trouble> {
        let asked = target.source.digest.as_str();
        let refuse =
            |code, reason: String| Trouble::Refused { code, reason, digest: asked.to_owned() };
        let deny = |decision: Decision| match decision {
            Decision::Allow(evidence) => Ok(evidence),
            Decision::Deny(reason) => Err(refuse(reason.code(), reason.to_string())),
        };
        deny(self.decide(asked, asked))?;
        if let Some(need) = self.missing(&target.settings.needs) {
            return Err(Trouble::Waiting(format!("{need} must run first")));
        }
        let old = others.iter().any(|o| o.running);
        let watched = self.with(name, |u| {
            if !old {
                u.state = State::Fetching;
            }
            u.progress.clone()
        });
        let settings = target.fingerprint();
        let started = self.started.clone();
        let known = Arc::new(move |digest: &str| {
            started.expect_image(digest).map_err(std::io::Error::other)
        });
        let loading =
            Loading::new(engine, self.parts.fetcher.store.clone(), known, self.loading.clone());
        // Nothing of a manifest that is forbidden by itself, or was revoked meanwhile.
        let ready = |image: &Arc<Image>, layers| {
            if matches!(self.decide(asked, &image.digest), Decision::Allow(_)) {
                loading.ready(image, layers);
            }
        };
        let watched = watched.unwrap_or_default();
        let fetched = self
            .parts
            .fetcher
            .get(&pin_name(name, &settings), &target.source, &watched, &ready)
            .await;
        let image = fetched.map_err(|error: FetchError| match error.passing() {
            true => Trouble::Failed(error.to_string()),
            false => refuse("image", error.to_string()),
        })?;
        fail_point("fetched");
        let digest = image.digest.clone();
        let evidence = deny(self.decide(asked, &digest))?;
        let mut event =
            json!({ "digest": digest, "module": name, "seq": evidence.seq, "settings": settings });
        if digest != asked {
            event["index"] = asked.into();
        }
        let key = format!("approved {settings} {}", evidence.seq);
        if self.with(name, |u| u.said.contains(&key)) != Some(true) {
            self.parts.audit.record("module-approved", &event).await?;
            self.with(name, |u| u.said.insert(key));
        }
        fail_point("approved");
        self.with(name, |u| u.loaded.insert(settings.clone(), digest.clone()));
        self.started.expect_image(&digest)?;
        let loaded = loading.finish(image).await;
        if let Err(EngineError::Image(OciError::Mismatch { digest, .. })) = &loaded {
            // Spoilt on the data partition since it was verified: it is got anew at the next
            // attempt.
            self.parts.fetcher.store.remove(digest)?;
        }
        loaded?;
        // The start does not wait for it: until then, a power cut costs another fetch.
        let store = self.parts.fetcher.store.clone();
        tokio::task::spawn_blocking(move || {
            store.sync().unwrap_or_else(|error| println!("store: {error}"))
        });
        fail_point("loaded");
        let plan = self.plan(name, target, &digest).await?;
        for (n, network) in plan.networks().iter().enumerate() {
            engine.network(network, n > 0).await?;
        }
        // Verifying and loading take time, in which the approval can have been revoked.
        deny(self.decide(asked, &digest))?;
        let started = Started {
            module: name.to_owned(),
            asked: asked.to_owned(),
            digest,
            settings,
            shape: Default::default(),
            check: target.settings.health.command.clone(),
            introduced: false,
            access: target.settings.access.clone(),
        };
        let alone = !target.settings.shares_nothing();
        let halted: Vec<&str> =
            others.iter().filter(|o| alone && o.running).map(|o| o.id.as_str()).collect();
        for id in &halted {
            engine.halt(id, target.settings.stop_within_s).await?;
        }
        fail_point("halted");
        // Ending the old one takes its time too.
        let made = match deny(self.decide(asked, &started.digest)) {
            Ok(_) => self.start(engine, &plan, started).await,
            Err(denied) => Err(denied),
        };
        if made.is_err() {
            for other in others.iter().filter(|o| halted.contains(&o.id.as_str())) {
                if self.allowed(&other.started) {
                    engine.start(&other.id).await?;
                }
            }
        }
        made
    }

    /// Creates a container, says and remembers that it is ours, and starts it.
    async fn start(
        &self,
        engine: &Arc<Engine>,
        plan: &Plan,
        mut started: Started,
    ) -> Result<String, Trouble> {
        let _creating = Noted::new(&self.creating, &plan.name);
        let (id, shape) = engine.create(plan).await?;
        started.shape = shape;
        fail_point("created");
        // Said first: nothing runs that is not in the log.
        let event = json!({ "digest": started.digest, "module": started.module, "settings": started.settings });
        let said = match self.parts.audit.record("module-started", &event).await {
            Ok(()) => self.started.remember(&id, &started).map_err(Trouble::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = said {
            engine.remove(&id).await?;
            return Err(error);
        }
        fail_point("remembered");
        // The engine completes its settings when it starts a container (on control groups v2 it
        // does): it is compared once more.
        let touching = Noted::new(&self.touched, &id);
        let running = match engine.start(&id).await {
            Ok(()) => engine.judge(&id, plan).await,
            Err(error) => Err(error),
        };
        match running {
            Ok(shape) => self.started.remember(&id, &Started { shape, ..started })?,
            Err(error) => {
                self.discard(engine, &id).await?;
                return Err(error.into());
            }
        }
        drop(touching);
        fail_point("started");
        Ok(id)
    }

    async fn plan(&self, name: &str, target: &Kept, digest: &str) -> Result<Plan, Trouble> {
        let sockets = self.parts.sockets.open(name)?;
        let mut volumes = BTreeMap::new();
        for volume in &target.settings.volumes {
            let dir = self.parts.settings.data.join("volumes");
            std::fs::create_dir_all(&dir)?;
            volumes.insert(volume.name.clone(), engine::volume(&dir, name, &volume.name)?);
        }
        // Another one for each version, so that two can be beside each other.
        let version =
            target.fingerprint().chars().skip("sha256:".len()).take(8).collect::<String>();
        Ok(Plan {
            module: name.to_owned(),
            name: format!("{name}.{version}"),
            digest: digest.to_owned(),
            settings: target.settings.clone(),
            sockets,
            volumes,
        })
    }

    /// Waits for the new one to become healthy, and switches to it.
    async fn trial(
        &self,
        name: &str,
        engine: &Arc<Engine>,
        target: &Kept,
        proven: bool,
        id: &str,
        others: &[&Mine],
    ) -> Result<(), Trouble> {
        let old = others.iter().any(|o| o.running);
        if !old {
            self.with(name, |u| u.state = State::Starting { container: id.to_owned() });
        }
        let (begun, health) = (Instant::now(), &target.settings.health);
        let deadline = Duration::from_secs(health.within_s.into());
        loop {
            let Some(look) = engine.look(id).await? else {
                return Err(Trouble::Failed("its container is gone".into()));
            };
            if health::healthy(health, &look, begun.elapsed()).await {
                break;
            }
            let why = if !look.running {
                format!(
                    "it ended with exit status {} before it was healthy",
                    look.exit_code.unwrap_or_default()
                )
            } else if begun.elapsed() >= deadline {
                format!("it was not healthy within {} s", health.within_s)
            } else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            let why = format!("{why}{}", last_words(engine, id).await);
            let digest = self.started.of(id).map(|s| s.digest);
            self.parts
                .audit
                .record("module-failed", &json!({ "digest": digest, "module": name }))
                .await?;
            self.discard(engine, id).await?;
            return self.gave_up(name, engine, target, proven, others, why).await;
        }
        fail_point("healthy");
        let Some(started) = self.started.of(id) else {
            return Err(Trouble::Failed("its container is gone".into()));
        };
        if let Decision::Deny(reason) = self.decide(&started.asked, &started.digest) {
            // Nobody switches to what was revoked during its trial.
            return Err(Trouble::Refused {
                code: reason.code(),
                reason: reason.to_string(),
                digest: started.digest,
            });
        }
        let plan = self.plan(name, target, &started.digest).await?;
        if !started.introduced {
            let _touching = Noted::new(&self.touched, id);
            engine.introduce(id, &plan).await?;
            self.started.remember(id, &Started { introduced: true, ..started })?;
        }
        if !proven {
            if let Some(other) = others.first() {
                let event =
                    json!({ "from": other.started.digest, "module": name, "to": plan.digest });
                self.parts.audit.record("module-upgraded", &event).await?;
            }
            self.desired.mark_good(name, target)?;
            self.with(name, |u| {
                u.record.before = u.record.good.take();
                u.record.good = Some(target.clone());
            });
            fail_point("good");
        }
        // From here on this one is it; ending the old one takes its time.
        self.with(name, |u| u.running(id));
        for other in others {
            self.end(engine, other, target).await?;
        }
        self.pin(name);
        self.with(name, |u| {
            u.loaded.retain(|settings, _| *settings == target.fingerprint());
            if u.record.rolled_back().is_none() {
                u.trouble = None;
            }
        });
        println!("module {name} runs");
        Ok(())
    }

    /// The new one did not work: back to what did, if there is such a thing.
    async fn gave_up(
        &self,
        name: &str,
        engine: &Arc<Engine>,
        target: &Kept,
        proven: bool,
        others: &[&Mine],
        why: String,
    ) -> Result<(), Trouble> {
        let good = self.with(name, |u| u.record.good.clone()).flatten();
        let Some(good) = good.filter(|_| !proven) else { return Err(Trouble::Failed(why)) };
        let reason = format!("rolled back to {}: {why}", good.source.digest);
        let event =
            json!({ "from": target.source.digest, "module": name, "to": good.source.digest });
        self.parts.audit.record("module-rolled-back", &event).await?;
        if self.generation(name) == Some(target.generation) {
            let failed = (target.generation, reason.clone());
            self.desired.mark_failed(name, Some(&failed))?;
            self.with(name, |u| {
                u.record.failed = Some(failed);
                u.trouble = Some(reason.clone());
            });
        }
        println!("module {name}: {reason}");
        fail_point("rolled-back");
        for other in others.iter().filter(|o| o.started.settings == good.fingerprint()) {
            // Stopped for the new one's sake, or never.
            if self.allowed(&other.started) && engine.start(&other.id).await.is_ok() {
                self.with(name, |u| u.running(&other.id));
            }
        }
        Ok(())
    }

    fn allowed(&self, started: &Started) -> bool {
        matches!(self.decide(&started.asked, &started.digest), Decision::Allow(_))
    }

    /// The first of those that do not run, or are not healthy yet.
    fn missing(&self, needs: &[String]) -> Option<String> {
        needs.iter().find(|need| !matches!(self.state(need), Some(State::Running { .. }))).cloned()
    }

    /// Ends a container that was fine. Said first, so that a kill in between loses nothing; done in
    /// any case.
    async fn end(
        &self,
        engine: &Arc<Engine>,
        container: &Mine,
        target: &Kept,
    ) -> Result<(), Trouble> {
        let event =
            json!({ "digest": container.started.digest, "module": container.started.module });
        let said = self.parts.audit.record("module-stopped", &event).await;
        engine.stop(&container.id, target.settings.stop_within_s).await?;
        self.started.forget(&container.id)?;
        fail_point("ended");
        Ok(said?)
    }

    async fn discard(&self, engine: &Arc<Engine>, id: &str) -> Result<(), Trouble> {
        engine.remove(id).await?;
        Ok(self.started.forget(id)?)
    }
}

/// A name that stands in a set for as long as this lives.
struct Noted<'a> {
    set: &'a Mutex<BTreeSet<String>>,
    name: String,
}

impl<'a> Noted<'a> {
    fn new(set: &'a Mutex<BTreeSet<String>>, name: &str) -> Self {
        lock(set).insert(name.to_owned());
        Self { set, name: name.to_owned() }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        lock(self.set).remove(&self.name);
    }
}

async fn last_words(engine: &Arc<Engine>, id: &str) -> String {
    let log = engine.logs(id, 5).await.unwrap_or_default();
    let text: String = log.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    let start = text.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
    if text.is_empty() { String::new() } else { format!("; its last words: {}", &text[start..]) }
}
