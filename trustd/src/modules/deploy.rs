//! Deployment of one version of a module: it fetches and loads the image, creates a container from
//! it, and starts the container.
//!
//! The old version keeps running until the new one is healthy, unless the module's settings allow
//! only one container at a time.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use deployment::DesiredState;
use ledger::{Decision, ImageApproval};
use oci::{Image, OciError};
use serde_json::json;

use super::controller::{Modules, SetGuard, pin_holder};
use super::error::RolloutError;
use super::status::ModuleStatus;
use super::version::Version;
use crate::audit::EventKind;
use crate::engine::inventory::ContainerRecord;
use crate::engine::{
    ConfigDigest, ContainerPlan, Engine, EngineError, ImageLoad, ImageRecorder, ensure_volume_dir,
    module_network, peer_network,
};
use crate::util::error_chain::error_chain;
use crate::util::failpoint::fail_point;

/// Characters of a fingerprint that distinguish the names of a module's containers.
const CONTAINER_SUFFIX_CHARS: usize = 8;

/// Container of a module.
#[derive(Debug, Clone)]
pub(super) struct ModuleContainer {
    /// Full ID.
    pub(super) id: String,
    /// Record in the inventory.
    pub(super) record: ContainerRecord,
    /// Whether its main process runs.
    pub(super) running: bool,
}

/// Deployment of one version.
#[derive(Clone, Copy)]
pub(super) struct Deployment<'a> {
    pub(super) modules: &'a Modules,
    /// Name of the module.
    pub(super) name: &'a str,
    pub(super) engine: &'a Arc<Engine>,
    /// Version to deploy.
    pub(super) target: &'a Version,
    /// Whether this version was healthy before.
    pub(super) target_is_good: bool,
}

impl Modules {
    /// Lists the containers of a module without those that are being removed.
    pub(super) async fn containers_of(
        &self,
        name: &str,
        engine: &Engine,
    ) -> Result<Vec<ModuleContainer>, RolloutError> {
        let containers = engine.containers().await?;
        let records = self.inventory.all()?;
        let own = containers.into_iter().filter_map(|container| {
            let record = records.get(&container.id)?.clone();
            Some(ModuleContainer { record, id: container.id, running: container.running })
        });
        Ok(own.filter(|c| c.record.module == name && !self.is_being_removed(&c.id)).collect())
    }

    /// Returns the container of a module that was last known to run.
    pub(super) fn running_container(&self, name: &str) -> Option<String> {
        let ModuleStatus::Running { container } = self.status(name)? else { return None };
        self.inventory.get(&container).map(|_| container)
    }
}

impl Deployment<'_> {
    /// Makes the module's containers match the version.
    pub(super) async fn run(&self, containers: &[ModuleContainer]) -> Result<(), RolloutError> {
        if self.target.desired != DesiredState::Run {
            return self.stop_all(containers).await;
        }
        if containers.iter().any(|container| container.running) {
            // The socket's folder is mounted in the container, whatever its version. A socket that
            // ended with an earlier process is opened again.
            self.modules.deps.sockets.open(self.name)?;
        }
        // A newer spec interrupts a stop. A container that is being stopped does not come back.
        let (stopping, containers): (Vec<&ModuleContainer>, Vec<&ModuleContainer>) =
            containers.iter().partition(|container| container.record.stopping);
        for container in stopping {
            self.stop_container(container).await?;
        }
        let fingerprint = self.target.fingerprint();
        let (current, others): (Vec<&ModuleContainer>, Vec<&ModuleContainer>) =
            containers.into_iter().partition(|c| c.record.fingerprint == fingerprint);
        if let Some(old) = others.iter().find(|other| other.running) {
            self.modules.with(self.name, |state| state.set_running(&old.id));
        }
        let mut current = current.into_iter();
        let (container, duplicates) = (current.next(), current);
        for duplicate in duplicates {
            self.stop_container(duplicate).await?;
        }
        let id = match container {
            Some(container) if container.running => container.id.clone(),
            Some(container) => {
                let inspection = self.engine.inspect(&container.id).await?;
                match inspection.filter(|inspection| !inspection.never_started) {
                    Some(inspection) => {
                        return self.handle_exit(container, inspection.exit_code, &others).await;
                    }
                    // The process was killed between creation and start of the container.
                    None => {
                        self.discard(&container.id).await?;
                        self.create_container(&others).await?
                    }
                }
            }
            None => self.create_container(&others).await?,
        };
        self.await_healthy(&id, &others).await
    }

    /// Records that the container exited, removes it, and rolls back if this version was never
    /// healthy.
    async fn handle_exit(
        &self,
        container: &ModuleContainer,
        exit_code: Option<i64>,
        others: &[&ModuleContainer],
    ) -> Result<(), RolloutError> {
        let status = exit_code.map_or_else(|| "unknown".into(), |code| code.to_string());
        let log = self.last_log_lines(&container.id).await;
        let event =
            json!({ "code": exit_code, "digest": container.record.digest, "module": self.name });
        self.modules.deps.audit.record(EventKind::ModuleExited, &event).await?;
        self.discard(&container.id).await?;
        self.modules.with(self.name, |state| state.restarts += 1);
        self.roll_back(others, format!("the container exited with status {status}{log}")).await
    }

    /// Stops all containers of the module, and forgets a removed module.
    async fn stop_all(&self, containers: &[ModuleContainer]) -> Result<(), RolloutError> {
        for container in containers {
            self.stop_container(container).await?;
        }
        self.modules.with(self.name, |state| {
            state.status = ModuleStatus::Stopped;
            state.last_error = None;
            state.loaded.clear();
        });
        if self.target.desired == DesiredState::Remove {
            self.modules.desired.forget(self.name)?;
            self.modules.deps.sockets.close(self.name);
            self.modules.with(self.name, |state| {
                let history = &mut state.history;
                (history.last_good, history.previous_good, history.failed) = (None, None, None);
            });
        }
        self.engine.remove_network(&module_network(self.name)).await;
        for peer in &self.target.settings.peers {
            self.engine.remove_network(&peer_network(self.name, peer)).await;
        }
        self.modules.pin_images(self.name);
        Ok(())
    }

    /// Fetches and loads the image, creates a container from it, and starts the container. Returns
    /// the container's ID.
    async fn create_container(&self, others: &[&ModuleContainer]) -> Result<String, RolloutError> {
        self.require_allowed(&self.target.source.digest)?;
        if let Some(need) = self.missing_need() {
            return Err(RolloutError::Waiting(format!("{need} must run first")));
        }
        let digest = self.load_image(others.iter().any(|other| other.running)).await?;
        fail_point("loaded");
        let plan = self.plan(&digest)?;
        for (n, network) in plan.networks().iter().enumerate() {
            self.engine.ensure_network(network, n > 0).await?;
        }
        // The approval may have been revoked during the verification and the load.
        self.require_allowed(&digest)?;
        let record = ContainerRecord {
            module: self.name.to_owned(),
            requested_digest: self.target.source.digest.clone(),
            digest,
            fingerprint: self.target.fingerprint(),
            config_digest: ConfigDigest::default(),
            health_command: self.target.settings.health.command.clone(),
            joined_peers: false,
            stopping: false,
            access: self.target.settings.access.clone(),
        };
        let exclusive = !self.target.settings.can_run_concurrently();
        let stopped: Vec<&&ModuleContainer> =
            others.iter().filter(|other| exclusive && other.running).collect();
        for other in &stopped {
            self.engine.stop(&other.id, self.target.settings.stop_within_s).await?;
        }
        fail_point("old-stopped");
        // The stop of the old version takes time too.
        let created = match self.require_allowed(&record.digest) {
            Ok(_) => self.start_container(&plan, record).await,
            Err(error) => Err(error),
        };
        if created.is_err() {
            for other in stopped {
                if self.is_allowed(&other.record) {
                    self.engine.start(&other.id).await?;
                }
            }
        }
        created
    }

    /// Fetches and verifies the image and loads it into the engine. Returns the digest of its
    /// manifest.
    async fn load_image(&self, old_runs: bool) -> Result<String, RolloutError> {
        let modules = self.modules;
        let store = &modules.deps.fetcher.store;
        let (requested, fingerprint) = (&self.target.source.digest, self.target.fingerprint());
        let progress = modules.with(self.name, |state| {
            if !old_runs {
                state.status = ModuleStatus::Fetching;
            }
            state.progress.clone()
        });
        let progress = progress.unwrap_or_default();
        let inventory = modules.inventory.clone();
        let recorder: ImageRecorder =
            Arc::new(move |digest| inventory.insert_image(digest).map_err(io::Error::other));
        let load = ImageLoad::new(self.engine, store.clone(), recorder, modules.load_lock.clone());
        // The engine gets no layer of a manifest that is denied.
        let layers_verified = |image: &Arc<Image>, layers| {
            if matches!(modules.decide(requested, &image.digest), Decision::Allow(_)) {
                load.layers_verified(image, layers);
            }
        };
        let holder = pin_holder(self.name, &fingerprint);
        let fetched = modules
            .deps
            .fetcher
            .fetch(&holder, &self.target.source, &progress, &layers_verified)
            .await;
        let image = fetched.map_err(|error| {
            let reason = error_chain(&error);
            if error.is_transient() {
                RolloutError::Failed(reason)
            } else {
                RolloutError::Denied { code: "image", reason, digest: requested.clone() }
            }
        })?;
        fail_point("fetched");
        let digest = image.digest.clone();
        let approval = self.require_allowed(&digest)?;
        self.record_approval(&digest, approval.seq, &fingerprint).await?;
        fail_point("approved");
        modules.with(self.name, |state| state.loaded.insert(fingerprint, digest.clone()));
        modules.inventory.insert_image(&digest)?;
        let loaded = load.finish(image).await;
        if let Err(EngineError::Image(OciError::Mismatch { digest, .. })) = &loaded {
            // The blob was damaged after its verification. The next attempt fetches it again.
            store.remove(digest)?;
        }
        loaded?;
        // The start does not wait for this: a power cut before it costs only another fetch.
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.sync() {
                logging::warn!("cannot sync the blob store: {}", error_chain(&error));
            }
        });
        Ok(digest)
    }

    /// Records the approval of a manifest, once for each spec.
    async fn record_approval(
        &self,
        digest: &str,
        seq: u64,
        fingerprint: &str,
    ) -> Result<(), RolloutError> {
        let key = format!("approved {fingerprint} {seq}");
        if self.modules.with(self.name, |state| state.recorded.contains(&key)) == Some(true) {
            return Ok(());
        }
        let mut event = json!({
            "digest": digest, "module": self.name, "seq": seq, "settings": fingerprint,
        });
        let requested = &self.target.source.digest;
        if digest != requested {
            event["index"] = requested.as_str().into();
        }
        self.modules.deps.audit.record(EventKind::ModuleApproved, &event).await?;
        self.modules.with(self.name, |state| state.recorded.insert(key));
        Ok(())
    }

    /// Creates a container, records it, and starts it. Returns its ID.
    async fn start_container(
        &self,
        plan: &ContainerPlan,
        mut record: ContainerRecord,
    ) -> Result<String, RolloutError> {
        let modules = self.modules;
        let _creating = SetGuard::new(&modules.creating, &plan.name);
        let (id, config_digest) = self.engine.create(plan).await?;
        record.config_digest = config_digest;
        fail_point("created");
        let event = json!({
            "digest": record.digest, "module": record.module, "settings": record.fingerprint,
        });
        let recorded = match modules.deps.audit.record(EventKind::ModuleStarted, &event).await {
            Ok(()) => modules.inventory.insert(&id, &record).map_err(RolloutError::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = recorded {
            self.engine.remove(&id).await?;
            return Err(error);
        }
        fail_point("recorded");
        // The approval may have been revoked meanwhile.
        if let Err(error) = self.require_allowed(&record.digest) {
            self.discard(&id).await?;
            return Err(error);
        }
        // With cgroup v2 the engine completes the configuration when the container starts, so the
        // container is verified again.
        let changing = SetGuard::new(&modules.changing, &id);
        let verified = match self.engine.start(&id).await {
            Ok(()) => self.engine.verify(&id, plan).await,
            Err(error) => Err(error),
        };
        match verified {
            Ok(config_digest) => {
                modules.inventory.insert(&id, &ContainerRecord { config_digest, ..record })?;
            }
            Err(error) => {
                self.discard(&id).await?;
                return Err(error.into());
            }
        }
        drop(changing);
        fail_point("started");
        Ok(id)
    }

    /// Returns the plan of a container, and creates what it mounts.
    pub(super) fn plan(&self, digest: &str) -> Result<ContainerPlan, RolloutError> {
        let deps = &self.modules.deps;
        let socket_dir = deps.sockets.open(self.name)?;
        let mut volume_dirs = BTreeMap::new();
        for volume in &self.target.settings.volumes {
            let dir = deps.settings.data.join("volumes");
            std::fs::create_dir_all(&dir)?;
            let volume_dir = ensure_volume_dir(&dir, self.name, &volume.name)?;
            volume_dirs.insert(volume.name.clone(), volume_dir);
        }
        // Each version has its own container name, so that two versions can run concurrently.
        let fingerprint = self.target.fingerprint();
        let hex = fingerprint.trim_start_matches("sha256:");
        let suffix: String = hex.chars().take(CONTAINER_SUFFIX_CHARS).collect();
        Ok(ContainerPlan {
            module: self.name.to_owned(),
            name: format!("{}.{suffix}", self.name),
            digest: digest.to_owned(),
            settings: self.target.settings.clone(),
            socket_dir,
            volume_dirs,
        })
    }

    /// Returns the approval of a manifest.
    pub(super) fn require_allowed(&self, digest: &str) -> Result<ImageApproval, RolloutError> {
        let requested = &self.target.source.digest;
        match self.modules.decide(requested, digest) {
            Decision::Allow(approval) => Ok(approval),
            Decision::Deny(reason) => Err(RolloutError::Denied {
                code: reason.code(),
                reason: reason.to_string(),
                digest: requested.clone(),
            }),
        }
    }

    /// Reports whether the ledger allows the image of a container.
    pub(super) fn is_allowed(&self, record: &ContainerRecord) -> bool {
        let decision = self.modules.decide(&record.requested_digest, &record.digest);
        matches!(decision, Decision::Allow(_))
    }

    /// Returns the first module in `needs` that does not run or is not healthy.
    fn missing_need(&self) -> Option<&str> {
        let runs =
            |need: &str| matches!(self.modules.status(need), Some(ModuleStatus::Running { .. }));
        self.target.settings.needs.iter().map(String::as_str).find(|need| !runs(need))
    }

    /// Stops and removes a container. The event is recorded first, so that a kill in between loses
    /// no event. The container is removed even if the event cannot be recorded.
    pub(super) async fn stop_container(
        &self,
        container: &ModuleContainer,
    ) -> Result<(), RolloutError> {
        let recorded = if container.record.stopping {
            Ok(())
        } else {
            self.record_stop(&container.id, &container.record).await
        };
        let timeout = self.target.settings.stop_within_s;
        self.engine.stop_and_remove(&container.id, timeout).await?;
        self.modules.inventory.remove(&container.id)?;
        fail_point("removed");
        recorded
    }

    /// Records that trustd is about to stop a container.
    async fn record_stop(&self, id: &str, record: &ContainerRecord) -> Result<(), RolloutError> {
        let event = json!({ "digest": record.digest, "module": record.module });
        let recorded = self.modules.deps.audit.record(EventKind::ModuleStopped, &event).await;
        let record = ContainerRecord { stopping: true, ..record.clone() };
        self.modules.inventory.insert(id, &record)?;
        Ok(recorded?)
    }

    /// Removes a container that is not healthy.
    pub(super) async fn discard(&self, id: &str) -> Result<(), RolloutError> {
        self.engine.remove(id).await?;
        Ok(self.modules.inventory.remove(id)?)
    }
}
