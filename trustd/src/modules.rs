//! Which modules should run, and making it so.
//!
//! Invariants: a module runs only while the ledger allows its digest; a container that this process (or the one before it
//! in this boot) did not start is removed; every change of mind is in the audit log, and an audit that fails stops the change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::{Archive, Image, Module};
use ledger::Decision;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use crate::approvals::Approvals;
use crate::audit::Audit;
use crate::engine::{Container, Engine, EngineError};
use crate::settings::Settings;
use crate::{api, files};

const PERIOD: Duration = Duration::from_secs(2);
/// After a start that failed, a module waits this long, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A module that ran this long has its earlier failures forgotten.
const STABLE: Duration = Duration::from_secs(60);
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// Loading a large image takes its time on a small machine.
const SETTLE_WITHIN: Duration = Duration::from_secs(900);

/// What became of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Not looked at yet.
    Waiting,
    Running {
        container: String,
    },
    /// The ledger or the archive forbids it.
    Refused {
        reason: String,
    },
    /// It may run and does not.
    Failed {
        reason: String,
    },
}

#[derive(Clone)]
pub struct Unit {
    pub settings: Module,
    pub digest: String,
    archive: PathBuf,
    pub state: State,
    since: Instant,
    pause: Duration,
    not_before: Option<Instant>,
}

/// What a container of this boot was started with.
struct Started {
    digest: String,
    settings: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    End,
    Start,
}

pub struct Modules {
    pub units: Mutex<BTreeMap<String, Unit>>,
    engine: Mutex<Option<Arc<Engine>>>,
    approvals: Arc<Approvals>,
    audit: Arc<Audit>,
    settings: Settings,
    changed: Notify,
}

#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error("{0}")]
    Config(String),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ModuleError {
    let path = path.to_owned();
    move |source| ModuleError::Io { path, source }
}

impl Modules {
    /// Reads the modules of the image and those that the owner added.
    pub fn open(settings: &Settings, approvals: Arc<Approvals>, audit: Arc<Audit>) -> Result<Self, ModuleError> {
        let mut units = BTreeMap::new();
        for dir in [settings.etc.join("modules"), settings.data.join("modules")] {
            std::fs::create_dir_all(&dir).or_else(|e| if dir.exists() { Ok(()) } else { Err(e) }).map_err(io(&dir))?;
            for entry in std::fs::read_dir(&dir).map_err(io(&dir))? {
                let path = entry.map_err(io(&dir))?.path();
                if path.extension().is_some_and(|e| e == "toml") {
                    let text = std::fs::read_to_string(&path).map_err(io(&path))?;
                    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    match parse(&name, &text) {
                        Ok(unit) => drop(units.insert(name, unit)),
                        // One bad file must not keep the others from running.
                        Err(problem) => println!("module {name} is left out: {problem}"),
                    }
                }
            }
        }
        Ok(Self {
            units: Mutex::new(units),
            engine: Mutex::new(None),
            approvals,
            audit,
            settings: settings.clone(),
            changed: Notify::new(),
        })
    }

    /// Adds or replaces a module; its archive was stored before. It takes effect at once.
    pub async fn apply(&self, name: &str, text: &str) -> Result<(), ModuleError> {
        let mut unit = parse(name, text).map_err(ModuleError::Config)?;
        unit.archive = self.archive_path(name);
        unit.settings.image = Image::Archive(Archive { digest: unit.digest.clone(), archive: unit.archive.to_string_lossy().into_owned() });
        let text = toml::to_string(&unit.settings).map_err(|e| ModuleError::Config(e.to_string()))?;
        let path = self.settings.data.join("modules").join(format!("{name}.toml"));
        files::write(&path, text.as_bytes()).map_err(io(&path))?;
        self.units.lock().await.insert(name.to_owned(), unit);
        self.changed.notify_one();
        Ok(())
    }

    /// Where the archive that the owner uploads for a module is kept.
    pub fn archive_path(&self, name: &str) -> PathBuf {
        self.settings.data.join("modules").join(format!("{name}.tar"))
    }

    pub async fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.lock().await.clone()
    }

    /// Something changed: look again now.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Looks again and again, without end.
    pub async fn keep(self: Arc<Self>, sockets: Arc<api::module::Sockets>) {
        let mut said = String::new();
        loop {
            if let Err(error) = self.reconcile(&sockets).await {
                let text = error.to_string();
                if text != said {
                    println!("modules: {text}");
                    said = text;
                }
                *self.engine.lock().await = None;
            }
            let _ = tokio::time::timeout(PERIOD, self.changed.notified()).await;
        }
    }

    async fn reconcile(&self, sockets: &api::module::Sockets) -> anyhow::Result<()> {
        let engine = match self.engine().await {
            Some(engine) => engine,
            None => {
                let engine = Arc::new(Engine::connect(&self.settings.engine).await?);
                println!("the engine answers");
                *self.engine.lock().await = Some(engine.clone());
                engine
            }
        };
        let containers = tokio::time::timeout(LIST_WITHIN, engine.containers()).await??;
        let names: Vec<String> = self.units.lock().await.keys().cloned().collect();
        let ours = self.started()?;
        let mut problem = None;
        for container in &containers {
            let known = container.module.as_ref().is_some_and(|m| names.contains(m))
                && ours.get(&container.id).is_some_and(|started| started.digest == container.image);
            if !known {
                let said = self.audit.record("unknown-removed", &json!({ "container": container.id, "image": container.image })).await;
                let removed = engine.remove(&container.id).await;
                problem = problem.or(said.err().map(anyhow::Error::from)).or(removed.err().map(anyhow::Error::from));
            }
        }
        // First everything that must end, then what may start: one that is slow to start keeps no other from being stopped.
        for phase in [Phase::End, Phase::Start] {
            for name in &names {
                let settled = tokio::time::timeout(SETTLE_WITHIN, self.settle(phase, name, &engine, &containers, &ours, sockets)).await;
                if let Err(error) = settled.map_err(anyhow::Error::from).and_then(|r| r) {
                    println!("module {name}: {error:#}");
                    self.fail(name, format!("{error:#}")).await;
                }
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Brings one module to where it should be, as far as the phase goes.
    async fn settle(
        &self,
        phase: Phase,
        name: &str,
        engine: &Engine,
        containers: &[Container],
        ours: &BTreeMap<String, Started>,
        sockets: &api::module::Sockets,
    ) -> anyhow::Result<()> {
        let wish = {
            let units = self.units.lock().await;
            let Some(unit) = units.get(name) else { return Ok(()) };
            unit.clone()
        };
        let digest = wish.digest.as_str();
        let settings = fingerprint(&wish.settings);
        let container = containers.iter().find(|c| c.module.as_deref() == Some(name) && ours.contains_key(&c.id));
        let decision = self.approvals.decide(digest);
        if phase == Phase::End {
            let Some(container) = container else { return Ok(()) };
            let started = &ours[&container.id];
            let allowed = matches!(decision, Decision::Allow(_));
            if allowed && container.running && started.digest == digest && started.settings == settings {
                // The folder is mounted in the container; a socket that trustd lost when it was started again is opened anew.
                sockets.open(name, &wish.settings).await?;
                self.running(name, &container.id).await;
                return Ok(());
            }
            // Said first, so that a kill in between loses nothing; done in any case.
            let said = self.audit.record("module-stopped", &json!({ "digest": started.digest, "module": name })).await;
            engine.stop(&container.id).await?;
            self.forget(&container.id)?;
            if allowed && !container.running {
                self.fail(name, "it ended; it is started again after a pause".into()).await;
            }
            return Ok(said?);
        }
        let evidence = match decision {
            Decision::Allow(evidence) => evidence,
            Decision::Deny(reason) => return self.refuse(name, &wish, reason.code(), reason.to_string()).await,
        };
        if container.is_some_and(|c| c.running && ours[&c.id].digest == digest && ours[&c.id].settings == settings)
            || wish.not_before.is_some_and(|t| Instant::now() < t)
        {
            return Ok(());
        }
        let image = match verify(&wish.archive, digest).await {
            Ok(image) => image,
            Err(error) => {
                self.refuse(name, &wish, "archive", error.to_string()).await?;
                self.pause(name).await;
                return Ok(());
            }
        };
        let event = json!({ "digest": digest, "module": name, "seq": evidence.seq, "settings": settings });
        self.audit.record("module-approved", &event).await?;
        engine.load(&wish.archive, image, &format!("basalt.local/{name}:{}", &digest["sha256:".len()..])).await?;
        let dir = sockets.open(name, &wish.settings).await?;
        // Verifying and loading take time, in which the approval can have been revoked.
        if let Decision::Deny(reason) = self.approvals.decide(digest) {
            return self.refuse(name, &wish, reason.code(), reason.to_string()).await;
        }
        let container = engine.start(name, digest, &wish.settings, &dir).await?;
        // A kill before this is written leaves a container that the next round removes as unknown.
        let said = self.audit.record("module-started", &json!({ "digest": digest, "module": name, "settings": settings })).await;
        if let Err(error) = said {
            engine.remove(&container).await?;
            return Err(error.into());
        }
        self.remember(&container, digest, &settings)?;
        self.running(name, &container).await;
        Ok(())
    }

    /// Says no; a no that was said already is not repeated in the log.
    async fn refuse(&self, name: &str, wish: &Unit, code: &str, reason: String) -> anyhow::Result<()> {
        let same = matches!(&wish.state, State::Refused { reason } if reason.split(':').next() == Some(code));
        if !same {
            self.audit.record("module-refused", &json!({ "digest": wish.digest, "module": name, "reason": code })).await?;
            println!("module {name} is refused: {reason}");
        }
        self.with(name, |unit| unit.state = State::Refused { reason: format!("{code}: {reason}") }).await;
        Ok(())
    }

    async fn with(&self, name: &str, change: impl FnOnce(&mut Unit)) {
        if let Some(unit) = self.units.lock().await.get_mut(name) {
            change(unit);
        }
    }

    /// It runs; once it has for a while, earlier failures are forgotten.
    async fn running(&self, name: &str, container: &str) {
        self.with(name, |unit| {
            if !matches!(&unit.state, State::Running { container: c } if c == container) {
                unit.state = State::Running { container: container.to_owned() };
                unit.since = Instant::now();
            } else if unit.since.elapsed() >= STABLE {
                unit.pause = FIRST_PAUSE;
            }
            unit.not_before = None;
        })
        .await;
    }

    async fn fail(&self, name: &str, reason: String) {
        self.with(name, |unit| unit.state = State::Failed { reason }).await;
        self.pause(name).await;
    }

    /// Nothing is tried with this module for a while, longer each time.
    async fn pause(&self, name: &str) {
        self.with(name, |unit| {
            unit.not_before = Some(Instant::now() + unit.pause);
            unit.pause = (unit.pause * 2).min(LONGEST_PAUSE);
        })
        .await;
    }

    /// Containers that were started in this boot. The folder is gone after a reboot.
    fn started(&self) -> Result<BTreeMap<String, Started>, ModuleError> {
        let dir = self.settings.run.join("containers");
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            other => other.map_err(io(&dir))?,
        };
        let mut started = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(io(&dir))?;
            let text = std::fs::read_to_string(entry.path()).map_err(io(&entry.path()))?;
            // A file that is being written has another form and counts for nothing.
            if let (Ok(id), Some((digest, settings))) = (entry.file_name().into_string(), text.split_once(' ')) {
                started.insert(id, Started { digest: digest.to_owned(), settings: settings.to_owned() });
            }
        }
        Ok(started)
    }

    fn remember(&self, container: &str, digest: &str, settings: &str) -> Result<(), ModuleError> {
        let dir = self.settings.run.join("containers");
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let path = dir.join(container);
        files::write(&path, format!("{digest} {settings}").as_bytes()).map_err(io(&path))
    }

    fn forget(&self, container: &str) -> Result<(), ModuleError> {
        let path = self.settings.run.join("containers").join(container);
        files::remove(&path).map_err(io(&path))
    }
}

/// What a module's settings come to: another command or another right is another fingerprint, in the log and in the quote.
fn fingerprint(settings: &Module) -> String {
    let mut settings = settings.clone();
    if let Image::Archive(archive) = &mut settings.image {
        // Where the archive lies does not matter; what is in it is the digest's affair.
        archive.archive.clear();
    }
    let text = serde_json::to_string(&settings).unwrap_or_default();
    format!("sha256:{}", measure::hex(&Sha256::digest(text.as_bytes())))
}

/// Reads a whole archive and checks every byte, away from the threads that answer.
async fn verify(archive: &Path, digest: &str) -> Result<oci::Verified, EngineError> {
    let (path, digest) = (archive.to_owned(), digest.to_owned());
    let task = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(&path).map_err(|source| EngineError::Io { path, source })?;
        Ok(oci::verify(&mut file, &digest, &oci::Limits::default())?)
    });
    task.await.map_err(|e| EngineError::Io { path: archive.to_owned(), source: std::io::Error::other(e) })?
}

fn parse(name: &str, text: &str) -> Result<Unit, String> {
    Module::valid_name(name)?;
    let settings: Module = config::parse(&format!("{name}.toml"), text).map_err(|e| e.to_string())?;
    let Image::Archive(Archive { digest, archive }) = settings.image.clone() else {
        return Err("on a node, a module names its image by digest and archive".into());
    };
    Ok(Unit {
        settings,
        digest,
        archive: archive.into(),
        state: State::Waiting,
        since: Instant::now(),
        pause: FIRST_PAUSE,
        not_before: None,
    })
}
