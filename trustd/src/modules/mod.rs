//! Which modules should run, and making it so.
//!
//! Invariants: a module runs only while the ledger allows its digest; a container that this process
//! (or the one before it in this boot) did not start, or that somebody changed, is removed; every
//! change of mind is in the audit log before it takes effect, and an audit that fails stops the
//! change. Work on one module never touches another's containers.
//!
//! [`Modules::keep`] looks at the whole again and again, and never waits: what takes time
//! (fetching, loading, a trial) is a job of its own, one a module at a time. A job leaves nothing
//! in memory that a restart would need: the next look finds the containers and the specs, and goes
//! on from there.

mod desired;
mod health;
mod reconcile;
mod rollout;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deployment::{DesiredState, SignedSpec};
use ledger::Decision;
use tokio::sync::Notify;

use crate::admission::Approvals;
use crate::audit::Audit;
use crate::engine::inventory;
use crate::engine::{Engine, Tickets, Turn};
use crate::images::fetch::Fetcher;
use crate::module_api;
use crate::settings::Settings;
use crate::util::atomic_file::PathError;

pub use desired::Kept;
pub use status::{State, Unit, View};

#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error("{0}")]
    Config(String),
    #[error("the spec is not signed as it must be: {0}")]
    Signature(String),
    #[error(
        "the spec has generation {found}, and the node has {seen} for {module}: it is older than what is in force"
    )]
    Old { module: String, seen: u64, found: u64 },
    #[error(transparent)]
    Io(#[from] PathError),
}

/// What the modules are made with.
pub struct Parts {
    pub approvals: Arc<Approvals>,
    pub audit: Arc<Audit>,
    pub fetcher: Fetcher,
    pub sockets: Arc<module_api::Sockets>,
    pub tickets: Arc<Tickets>,
    pub settings: Settings,
    /// SHA-256 of the owners' certificates.
    pub owners: Vec<String>,
    /// Ports of the node that no module may take.
    pub taken: Vec<u16>,
}

pub struct Modules {
    units: Mutex<BTreeMap<String, Unit>>,
    engine: Mutex<Option<Arc<Engine>>>,
    parts: Parts,
    desired: desired::DesiredStates,
    started: Arc<inventory::Ledger>,
    /// Names of containers that are being made.
    creating: Mutex<BTreeSet<String>>,
    /// Containers that a job is changing.
    touched: Mutex<BTreeSet<String>>,
    /// Containers that are being ended because they are forbidden.
    ending: Mutex<BTreeSet<String>>,
    /// Held by whoever brings an image into the engine, or takes away what nobody needs.
    loading: Turn,
    watched: reconcile::Watched,
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modules {
    /// Reads the modules of the image and what the owner desired.
    pub fn open(parts: Parts) -> Result<Self, ModuleError> {
        let desired =
            desired::DesiredStates::open(&parts.settings.data.join("modules"), &parts.owners)?;
        let records = desired.read(&parts.settings.etc.join("modules"))?;
        let started = parts.sockets.started().clone();
        let units: BTreeMap<String, Unit> =
            records.into_iter().map(|(name, record)| (name, Unit::new(record))).collect();
        let modules = Self {
            units: Mutex::new(units),
            engine: Mutex::default(),
            parts,
            desired,
            started,
            creating: Mutex::default(),
            touched: Mutex::default(),
            ending: Mutex::default(),
            loading: Turn::default(),
            watched: reconcile::Watched::default(),
            changed: Notify::new(),
        };
        let names: Vec<String> = lock(&modules.units).keys().cloned().collect();
        for name in names {
            modules.pin(&name);
        }
        Ok(modules)
    }

    /// Takes a spec; it takes effect at once.
    pub fn apply(&self, name: &str, signed: &SignedSpec) -> Result<(), ModuleError> {
        let (spec, kept) = self.desired.check(signed)?;
        if spec.module != name {
            return Err(ModuleError::Config(format!(
                "the spec is for the module {}, not for {name}",
                spec.module
            )));
        }
        let mut units = lock(&self.units);
        let seen =
            units.get(name).and_then(|u| u.record.now.as_ref()).map_or(0, |now| now.generation);
        if spec.generation <= seen {
            return Err(ModuleError::Old { module: name.to_owned(), seen, found: spec.generation });
        }
        let runs = kept.desired == DesiredState::Run;
        if runs {
            self.fits(name, &kept, &units).map_err(ModuleError::Config)?;
        }
        let written =
            self.desired.keep(name, signed).and_then(|()| self.desired.mark_failed(name, None));
        // A full disk must not keep a module from being stopped.
        if written.is_ok() || !runs {
            units
                .entry(name.to_owned())
                .or_insert_with(|| Unit::new(Default::default()))
                .desired(kept);
            drop(units);
            self.pin(name);
            self.wake();
        }
        Ok(written?)
    }

    /// What a module cannot know by itself: that others have a port, or wait for it.
    fn fits(&self, name: &str, kept: &Kept, units: &BTreeMap<String, Unit>) -> Result<(), String> {
        for port in &kept.settings.ports {
            if self.parts.taken.contains(&port.node) {
                return Err(format!("ports: {} is the node's own", port.node));
            }
        }
        let running = || {
            units
                .iter()
                .filter(|(other, _)| *other != name)
                .filter_map(|(n, u)| Some((n, u.target()?)))
                .filter(|(_, k)| k.desired == DesiredState::Run)
        };
        for (other, theirs) in running() {
            for port in &theirs.settings.ports {
                if kept
                    .settings
                    .ports
                    .iter()
                    .any(|p| (p.node, p.protocol) == (port.node, port.protocol))
                {
                    return Err(format!(
                        "ports: {}/{} is taken by the module {other}",
                        port.node, port.protocol
                    ));
                }
            }
        }
        // Nobody may wait for himself, not even by way of others.
        let (mut seen, mut next) = (BTreeSet::new(), kept.settings.needs.clone());
        while let Some(need) = next.pop() {
            if need == name {
                return Err(format!("needs: {name} would wait for itself"));
            }
            if seen.insert(need.clone()) {
                next.extend(
                    running()
                        .filter(|(n, _)| **n == need)
                        .flat_map(|(_, k)| k.settings.needs.clone()),
                );
            }
        }
        Ok(())
    }

    pub fn engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }

    pub fn fetcher(&self) -> &Fetcher {
        &self.parts.fetcher
    }

    /// What became of a module.
    pub fn state(&self, name: &str) -> Option<State> {
        lock(&self.units).get(name).map(|u| u.state.clone())
    }

    /// All modules, as their owner sees them, with what the ledger says of each.
    pub fn views(&self) -> Vec<(View, Decision)> {
        let views: Vec<View> = lock(&self.units)
            .iter()
            .filter_map(|(name, unit)| unit.view(name))
            .filter(|v| v.desired != DesiredState::Remove)
            .collect();
        views
            .into_iter()
            .map(|v| (self.parts.approvals.decide(&v.digest), v))
            .map(|(d, v)| (v, d))
            .collect()
    }

    /// Something changed: look again now.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    fn with<T>(&self, name: &str, change: impl FnOnce(&mut Unit) -> T) -> Option<T> {
        lock(&self.units).get_mut(name).map(change)
    }

    /// Both what was asked for and what it led to must not be forbidden; the first must be allowed.
    fn decide(&self, asked: &str, digest: &str) -> Decision {
        let approvals = &self.parts.approvals;
        let decision = approvals.decide(asked);
        match (asked != digest).then(|| approvals.forbids(digest)).flatten() {
            Some(reason) => approvals.sterner(decision, reason),
            None => decision,
        }
    }

    /// The blobs of everything that could be run again stay.
    fn pin(&self, name: &str) {
        let versions: Vec<(String, String)> = self
            .with(name, |unit| {
                unit.record
                    .versions()
                    .map(|kept| (pin_name(name, &kept.fingerprint()), kept.source.digest.clone()))
                    .collect()
            })
            .unwrap_or_default();
        self.parts.fetcher.keep(&format!("{name}#"), &versions);
    }
}

fn pin_name(name: &str, fingerprint: &str) -> String {
    format!("{name}#{fingerprint}")
}
