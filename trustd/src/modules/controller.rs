//! All modules with their states, and what the reconcile loop and the rollouts share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use deployment::{DesiredState, SignedSpec};
use ledger::Decision;
use tokio::sync::Notify;

use super::denials::Denials;
use super::desired::{DesiredStates, Identities, LoadedStates, check_module};
use super::ending::{Ending, Wakeup};
use super::error::{ModuleError, SpecRejection};
use super::event_watch::EventWatch;
use super::status::{ModuleState, ModuleStatus, ModuleView};
use super::version::{History, Version};
use crate::admission::Admission;
use crate::audit::Audit;
use crate::engine::inventory::Inventory;
use crate::engine::{Engine, LoadLock, Tickets};
use crate::images::fetch::Fetcher;
use crate::module_api::Sockets;
use crate::settings::Settings;
use crate::util::lock::lock;

/// Parts of trustd that the module manager uses.
pub struct Dependencies {
    /// Admission control.
    pub admission: Arc<Admission>,
    /// Audit log.
    pub audit: Arc<Audit>,
    /// Fetcher of images.
    pub fetcher: Fetcher,
    /// Sockets of the modules.
    pub sockets: Arc<Sockets>,
    /// Tickets for requests to the engine.
    pub tickets: Arc<Tickets>,
    /// Paths.
    pub settings: Settings,
    /// SHA-256 of the certificate that the node presents, hex: the identity that specs name.
    pub certificate: String,
    /// SHA-256 of the owners' certificates, hex.
    pub owners: Vec<String>,
    /// Ports that the node itself uses.
    pub reserved_ports: Vec<u16>,
}

/// Module manager.
pub struct Modules {
    pub(super) states: Mutex<BTreeMap<String, ModuleState>>,
    pub(super) engine: Mutex<Option<Arc<Engine>>>,
    pub(super) deps: Dependencies,
    pub(super) desired: DesiredStates,
    /// Reason why the persisted spec of a module is rejected.
    rejected: Mutex<BTreeMap<String, String>>,
    pub(super) inventory: Arc<Inventory>,
    /// Names of containers that are being created.
    pub(super) creating: Mutex<BTreeSet<String>>,
    /// Containers that a rollout is changing.
    pub(super) changing: Mutex<BTreeSet<String>>,
    /// Containers that are being removed because they are unknown or altered.
    pub(super) removing: Mutex<BTreeSet<String>>,
    /// Containers whose denial has taken effect.
    pub(super) ending: Mutex<BTreeMap<String, Ending>>,
    /// Times at which the denials of running containers were first known.
    pub(super) denials: Denials,
    /// Containers of the inventory that were missing in the engine's last list.
    pub(super) missing: Mutex<BTreeSet<String>>,
    /// Held while an image is loaded, or while unneeded images are removed.
    pub(super) load_lock: LoadLock,
    pub(super) events: Arc<EventWatch>,
    pub(super) changed: Notify,
    /// Wakes the thread that enforces the ledger's decisions.
    pub(super) wakeup: Wakeup,
}

impl Modules {
    /// Loads the modules of the image and the owner's specs.
    ///
    /// # Errors
    ///
    /// Returns [`ModuleError::Io`] if a folder or a file cannot be read. An invalid spec or module
    /// file is logged and left out.
    pub fn open(deps: Dependencies) -> Result<Self, ModuleError> {
        let (data, etc) = (&deps.settings.data, &deps.settings.etc);
        let identities = Identities { node: deps.certificate.clone(), owners: deps.owners.clone() };
        let desired = DesiredStates::open(&data.join("modules"), &etc.join("modules"), identities)?;
        let LoadedStates { histories, rejected } = desired.load()?;
        let inventory = deps.sockets.inventory().clone();
        let denials = Denials::open(&deps.settings.run)?;
        let names: Vec<String> = histories.keys().cloned().collect();
        let states = histories.into_iter().map(|(name, history)| (name, ModuleState::new(history)));
        let modules = Self {
            states: Mutex::new(states.collect()),
            engine: Mutex::default(),
            deps,
            desired,
            rejected: Mutex::new(rejected),
            inventory,
            creating: Mutex::default(),
            changing: Mutex::default(),
            removing: Mutex::default(),
            ending: Mutex::default(),
            denials,
            missing: Mutex::default(),
            load_lock: LoadLock::default(),
            events: Arc::default(),
            changed: Notify::new(),
            wakeup: Wakeup::default(),
        };
        for name in names {
            modules.pin_images(&name);
        }
        Ok(modules)
    }

    /// Verifies, persists and applies an owner's spec for the module `name`.
    ///
    /// # Errors
    ///
    /// Returns [`ModuleError::Signature`] if no owner signed the spec, [`ModuleError::WrongNode`] if
    /// it is for another node, [`ModuleError::Config`] if it is invalid or conflicts with another
    /// module, [`ModuleError::StaleGeneration`] if it is not newer than the current spec, and
    /// [`ModuleError::Io`] if it cannot be persisted.
    pub fn apply(&self, name: &str, signed: &SignedSpec) -> Result<(), ModuleError> {
        let (spec, version) = self.desired.verify(signed)?;
        check_module(&spec, name)?;
        let mut states = lock(&self.states);
        let history = states.get(name).map(|state| &state.history);
        let current = history.map_or(0, |history| history.generation);
        if spec.generation <= current {
            let (module, found) = (name.to_owned(), spec.generation);
            return Err(ModuleError::StaleGeneration { module, current, found });
        }
        let runs = version.desired == DesiredState::Run;
        if runs {
            self.check_conflicts(name, &version, &states)?;
        }
        let last_good = history.and_then(|history| history.last_good.as_ref());
        let persisted = self
            .desired
            .persist(name, signed, last_good)
            .and_then(|()| self.desired.clear_failed(name));
        // A full disk must not prevent an owner from stopping a module.
        if persisted.is_ok() || !runs {
            states
                .entry(name.to_owned())
                .or_insert_with(|| ModuleState::new(History::default()))
                .set_desired(version);
            drop(states);
            lock(&self.rejected).remove(name);
            self.pin_images(name);
            self.wake();
        }
        Ok(persisted?)
    }

    /// Checks that no other module uses the same ports and that the module does not wait for
    /// itself.
    fn check_conflicts(
        &self,
        name: &str,
        version: &Version,
        states: &BTreeMap<String, ModuleState>,
    ) -> Result<(), SpecRejection> {
        for port in &version.settings.ports {
            if self.deps.reserved_ports.contains(&port.node) {
                return Err(SpecRejection::NodePort { port: port.node });
            }
        }
        let others = || {
            states
                .iter()
                .filter(|(other, _)| *other != name)
                .filter_map(|(other, state)| Some((other, state.target()?)))
                .filter(|(_, target)| target.desired == DesiredState::Run)
        };
        for (other, target) in others() {
            for port in &target.settings.ports {
                let same =
                    |own: &config::Port| (own.node, own.protocol) == (port.node, port.protocol);
                if version.settings.ports.iter().any(same) {
                    let (port, protocol, module) = (port.node, port.protocol, other.clone());
                    return Err(SpecRejection::PortConflict { port, protocol, module });
                }
            }
        }
        let (mut visited, mut pending) = (BTreeSet::new(), version.settings.needs.clone());
        while let Some(need) = pending.pop() {
            if need == name {
                return Err(SpecRejection::DependencyCycle { module: name.to_owned() });
            }
            if visited.insert(need.clone()) {
                pending.extend(
                    others()
                        .filter(|(other, _)| **other == need)
                        .flat_map(|(_, target)| target.settings.needs.clone()),
                );
            }
        }
        Ok(())
    }

    /// Returns the connection to the engine, or `None` while the engine does not answer.
    pub fn engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }

    /// Returns the fetcher of images.
    pub fn fetcher(&self) -> &Fetcher {
        &self.deps.fetcher
    }

    /// Returns the status of a module, or `None` if there is no such module.
    pub fn status(&self, name: &str) -> Option<ModuleStatus> {
        lock(&self.states).get(name).map(|state| state.status.clone())
    }

    /// Returns the reason why the persisted spec of a module is rejected, by module.
    pub fn rejected(&self) -> BTreeMap<String, String> {
        lock(&self.rejected).clone()
    }

    /// Returns all modules that can be started, each with the ledger's decision about the digest
    /// that its newest spec names.
    pub fn views(&self) -> Vec<(ModuleView, Decision)> {
        let views: Vec<ModuleView> =
            lock(&self.states).iter().filter_map(|(name, state)| state.view(name)).collect();
        let decide = |view: ModuleView| {
            let decision = self.deps.admission.decide(&view.digest);
            (view, decision)
        };
        views.into_iter().map(decide).collect()
    }

    /// Starts the next pass of the reconcile loop now, and enforces the ledger's decisions.
    pub fn wake(&self) {
        self.wakeup.wake();
        self.changed.notify_one();
    }

    /// Calls `access` with the state of a module, if there is one.
    pub(super) fn with<T>(
        &self,
        name: &str,
        access: impl FnOnce(&mut ModuleState) -> T,
    ) -> Option<T> {
        lock(&self.states).get_mut(name).map(access)
    }

    /// Decides about a manifest. The requested digest, of the manifest or of an index that lists
    /// it, must be allowed. The manifest itself must not be denied.
    pub(super) fn decide(&self, requested: &str, digest: &str) -> Decision {
        let admission = &self.deps.admission;
        let decision = admission.decide(requested);
        match (requested != digest).then(|| admission.find_member_denial(digest)).flatten() {
            Some(reason) => admission.choose_stricter(decision, reason),
            None => decision,
        }
    }

    /// Pins the blobs of all versions of a module that may run again.
    pub(super) fn pin_images(&self, name: &str) {
        let pins = |state: &mut ModuleState| {
            let versions = state.history.versions();
            versions
                .map(|v| (pin_holder(name, &v.fingerprint()), v.source.digest.clone()))
                .collect()
        };
        let versions: Vec<(String, String)> = self.with(name, pins).unwrap_or_default();
        self.deps.fetcher.pin_versions(&format!("{name}#"), &versions);
    }
}

/// Returns the holder of the pins of one version.
pub(super) fn pin_holder(name: &str, fingerprint: &str) -> String {
    format!("{name}#{fingerprint}")
}

/// Entry in a set that exists as long as the guard.
pub(super) struct SetGuard<'a> {
    set: &'a Mutex<BTreeSet<String>>,
    name: String,
}

impl<'a> SetGuard<'a> {
    pub(super) fn new(set: &'a Mutex<BTreeSet<String>>, name: &str) -> Self {
        lock(set).insert(name.to_owned());
        Self { set, name: name.to_owned() }
    }
}

impl Drop for SetGuard<'_> {
    fn drop(&mut self) {
        lock(self.set).remove(&self.name);
    }
}
