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
use tokio::sync::{Mutex, Notify};

use crate::approvals::Approvals;
use crate::audit::Audit;
use crate::engine::{Container, Engine, EngineError};
use crate::settings::Settings;
use crate::{api, files};

const PERIOD: Duration = Duration::from_secs(2);
/// After a start that failed, a module waits this long, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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

pub struct Unit {
    pub settings: Module,
    pub digest: String,
    archive: PathBuf,
    pub state: State,
    pause: Duration,
    not_before: Option<tokio::time::Instant>,
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
        let containers = engine.containers().await?;
        let names: Vec<String> = self.units.lock().await.keys().cloned().collect();
        let ours = self.started();
        for container in &containers {
            let known = container.module.as_ref().is_some_and(|m| names.contains(m))
                && ours.get(&container.id).is_some_and(|digest| *digest == container.image);
            if !known {
                engine.remove(&container.id).await?;
                self.audit.record("unknown-removed", &json!({ "container": container.id, "image": container.image })).await?;
            }
        }
        for name in names {
            self.settle(&name, &engine, &containers, &ours, sockets).await?;
        }
        Ok(())
    }

    /// Brings one module to where it should be.
    async fn settle(
        &self,
        name: &str,
        engine: &Engine,
        containers: &[Container],
        ours: &BTreeMap<String, String>,
        sockets: &api::module::Sockets,
    ) -> anyhow::Result<()> {
        let (digest, archive, settings, before, not_before) = {
            let units = self.units.lock().await;
            let Some(unit) = units.get(name) else { return Ok(()) };
            (unit.digest.clone(), unit.archive.clone(), unit.settings.clone(), unit.state.clone(), unit.not_before)
        };
        let container = containers.iter().find(|c| c.module.as_deref() == Some(name) && ours.contains_key(&c.id));
        let decision = self.approvals.decide(&digest);
        let evidence = match decision {
            Decision::Allow(evidence) => evidence,
            Decision::Deny(reason) => {
                if let Some(container) = container {
                    engine.stop(&container.id).await?;
                    self.forget(&container.id)?;
                    self.audit.record("module-stopped", &json!({ "digest": digest, "module": name })).await?;
                }
                return self.refuse(name, &digest, &before, reason.code(), reason.to_string()).await;
            }
        };
        match container {
            Some(c) if c.running && c.image == digest => {
                self.set(name, State::Running { container: c.id.clone() }, true).await;
                return Ok(());
            }
            Some(old) => {
                engine.stop(&old.id).await?;
                self.forget(&old.id)?;
                self.audit.record("module-stopped", &json!({ "digest": old.image, "module": name })).await?;
                self.set(name, State::Failed { reason: "it ended; its log says why".into() }, false).await;
                if old.image == digest {
                    // Not at once: a module that keeps ending must not keep the node busy.
                    return Ok(());
                }
            }
            None => {}
        }
        if not_before.is_some_and(|t| tokio::time::Instant::now() < t) {
            return Ok(());
        }
        let image = match verify(&archive, &digest).await {
            Ok(image) => image,
            Err(error) => return self.refuse(name, &digest, &before, "archive", error.to_string()).await,
        };
        self.audit.record("module-approved", &json!({ "digest": digest, "module": name, "seq": evidence.seq })).await?;
        let started = async {
            engine.load(&archive, image, &format!("basalt.local/{name}:{}", &digest["sha256:".len()..])).await?;
            let dir = sockets.open(name, &settings).await?;
            engine.start(name, &digest, &settings, &dir).await.map_err(anyhow::Error::from)
        };
        match started.await {
            Ok(container) => {
                self.remember(&container, &digest)?;
                self.audit.record("module-started", &json!({ "digest": digest, "module": name })).await?;
                self.set(name, State::Running { container }, true).await;
            }
            Err(error) => {
                println!("module {name}: {error:#}");
                self.set(name, State::Failed { reason: format!("{error:#}") }, false).await;
            }
        }
        Ok(())
    }

    /// Says no; a no that was said already is not repeated in the log.
    async fn refuse(&self, name: &str, digest: &str, before: &State, code: &str, reason: String) -> anyhow::Result<()> {
        let tagged = format!("{code}: {reason}");
        let same = matches!(before, State::Refused { reason } if reason.split(':').next() == Some(code));
        if !same {
            self.audit.record("module-refused", &json!({ "digest": digest, "module": name, "reason": code })).await?;
            println!("module {name} is refused: {reason}");
        }
        self.set(name, State::Refused { reason: tagged }, true).await;
        Ok(())
    }

    async fn set(&self, name: &str, state: State, good: bool) {
        if let Some(unit) = self.units.lock().await.get_mut(name) {
            unit.state = state;
            if good {
                unit.pause = FIRST_PAUSE;
                unit.not_before = None;
            } else {
                unit.not_before = Some(tokio::time::Instant::now() + unit.pause);
                unit.pause = (unit.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Containers that were started in this boot, with their images. The folder is gone after a reboot.
    fn started(&self) -> BTreeMap<String, String> {
        let read = std::fs::read_dir(self.settings.run.join("containers"));
        read.into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.file_name().into_string().ok()?, std::fs::read_to_string(e.path()).ok()?)))
            .collect()
    }

    fn remember(&self, container: &str, digest: &str) -> Result<(), ModuleError> {
        let dir = self.settings.run.join("containers");
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let path = dir.join(container);
        files::write(&path, digest.as_bytes()).map_err(io(&path))
    }

    fn forget(&self, container: &str) -> Result<(), ModuleError> {
        let path = self.settings.run.join("containers").join(container);
        files::remove(&path).map_err(io(&path))
    }
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
    Ok(Unit { settings, digest, archive: archive.into(), state: State::Waiting, pause: FIRST_PAUSE, not_before: None })
}
