//! Store of the owner's specs: verified against the pinned certificates and the node's identity,
//! persisted, and loaded after a restart.
//!
//! Invariants:
//! - A spec on the disk has no more authority than a spec on the network: its signature and its
//!   node are verified when it is loaded.
//! - A newer spec replaces an older one in one step. An older spec never replaces a newer one.
//! - The owner's spec decides about a module that ships, whatever the node's image ships now. If
//!   the persisted spec is rejected, the module does not run until the owner sends another one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::Module;
use deployment::{DesiredState, SignedSpec, Spec};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;
use webpki::ring::{ECDSA_P256_SHA256, ED25519};

use super::error::{ModuleError, SignatureError, SpecRejection};
use super::shipped::{ShippedModules, list};
use super::version::{FailedRollout, History, Version};
use crate::util::atomic_file::{self, PathError, at};
use crate::util::error_chain::error_chain;

const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 2] = [ECDSA_P256_SHA256, ED25519];

/// Endings of a module's files, each after the module's name.
const DESIRED: &str = ".desired.json";
const LAST_GOOD: &str = ".last-good.json";
const PREVIOUS_GOOD: &str = ".previous-good.json";
const FAILED: &str = ".failed.json";

/// Persisted specs that are rejected and reported. Further ones are only logged.
const MAX_REJECTED: usize = 64;

/// Identities that a spec is verified with.
#[derive(Debug, Clone)]
pub(super) struct Identities {
    /// SHA-256 of the node's certificate, hex.
    pub(super) node: String,
    /// SHA-256 of the owners' certificates, hex.
    pub(super) owners: Vec<String>,
}

/// Desired states on the data partition.
pub(super) struct DesiredStates {
    dir: PathBuf,
    identities: Identities,
    shipped: ShippedModules,
}

/// Desired states after a restart.
pub(super) struct LoadedStates {
    /// History of each module.
    pub(super) histories: BTreeMap<String, History>,
    /// Reason why the persisted spec of a module is rejected.
    pub(super) rejected: BTreeMap<String, String>,
}

/// Version in a file of the store.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredVersion {
    /// A spec.
    Signed(SignedSpec),
    /// The module file of the node's image, which needs no signature.
    Shipped(ShippedMarker),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShippedMarker {
    Shipped,
}

impl DesiredStates {
    /// Opens the store, creates its folder, and loads the module files of the image from the folder
    /// `shipped`.
    pub(super) fn open(
        dir: &Path,
        shipped: &Path,
        identities: Identities,
    ) -> Result<Self, ModuleError> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        Ok(Self { dir: dir.to_owned(), identities, shipped: ShippedModules::load(shipped)? })
    }

    /// Verifies that an owner signed a spec for this node, and parses it.
    pub(super) fn verify(&self, signed: &SignedSpec) -> Result<(Spec, Version), ModuleError> {
        let spec = self.verify_spec(signed)?;
        let version = self.resolve(&spec, signed)?;
        Ok((spec, version))
    }

    fn verify_spec(&self, signed: &SignedSpec) -> Result<Spec, ModuleError> {
        self.verify_signature(signed)?;
        let spec = Spec::read(&signed.spec).map_err(SpecRejection::from)?;
        if spec.node != self.identities.node {
            let (expected, found) = (self.identities.node.clone(), spec.node);
            return Err(ModuleError::WrongNode { expected, found });
        }
        Ok(spec)
    }

    /// Returns the version that a verified spec is about.
    fn resolve(&self, spec: &Spec, signed: &SignedSpec) -> Result<Version, SpecRejection> {
        let version = match (&spec.toml, spec.settings()?) {
            (Some(toml), Some(settings)) => self.signed_version(toml, settings)?,
            _ => {
                let shipped = self.shipped.get(&spec.module);
                let not_shipped = || SpecRejection::NotShipped { module: spec.module.clone() };
                shipped.cloned().ok_or_else(not_shipped)?
            }
        };
        let (generation, desired) = (spec.generation, spec.desired);
        Ok(Version { generation, desired, signed: Some(signed.clone()), ..version })
    }

    /// Returns the version of a module file that an owner signed. An archive of the node's image is
    /// the source if it has the image.
    fn signed_version(&self, toml: &str, settings: Module) -> Result<Version, SpecRejection> {
        let mut version = Version::new(toml, settings)?;
        if version.source.archive.is_some() {
            return Err(SpecRejection::Archive);
        }
        version.source.archive = self.shipped.archive(&version.source.digest).map(str::to_owned);
        Ok(version)
    }

    fn verify_signature(&self, signed: &SignedSpec) -> Result<(), SignatureError> {
        let decode = |what, text| measure::unhex(text).ok_or(SignatureError::NotHex { what });
        let certificate = decode("certificate", &signed.certificate)?;
        let fingerprint = measure::hex(&Sha256::digest(&certificate));
        if !self.identities.owners.contains(&fingerprint) {
            return Err(SignatureError::NotPinned { fingerprint });
        }
        let signature = decode("signature", &signed.signature)?;
        let der = CertificateDer::from(certificate);
        let key = EndEntityCert::try_from(&der).map_err(SignatureError::Certificate)?;
        let verifies = |message: Vec<u8>| {
            let mut algorithms = ALGORITHMS.iter();
            algorithms.any(|a| key.verify_signature(*a, &message, &signature).is_ok())
        };
        if verifies(deployment::signed_bytes(&signed.spec)) {
            return Ok(());
        }
        if verifies(deployment::retired_signed_bytes(&signed.spec)) {
            return Err(SignatureError::Retired);
        }
        Err(SignatureError::Invalid)
    }

    fn path(&self, module: &str, ending: &str) -> PathBuf {
        self.dir.join(format!("{module}{ending}"))
    }

    /// Persists the newest spec. `last_good` is the last healthy version before it.
    pub(super) fn persist(
        &self,
        module: &str,
        signed: &SignedSpec,
        last_good: Option<&Version>,
    ) -> Result<(), PathError> {
        // A module file of the image counts as healthy, but was not persisted as such. This is
        // first, because without a spec the file has no effect.
        let path = self.path(module, LAST_GOOD);
        if let Some(version) = last_good.filter(|good| good.signed.is_none() && !path.exists()) {
            write_version(&path, version)?;
        }
        write_json(&self.path(module, DESIRED), signed)
    }

    /// Persists that a version was healthy.
    pub(super) fn persist_good(&self, module: &str, version: &Version) -> Result<(), PathError> {
        let last_good = self.path(module, LAST_GOOD);
        if let Ok(text) = std::fs::read_to_string(&last_good) {
            let path = self.path(module, PREVIOUS_GOOD);
            atomic_file::write(&path, text.as_bytes()).map_err(at(&path))?;
        }
        write_version(&last_good, version)
    }

    /// Persists that a version was rolled back.
    pub(super) fn persist_failed(
        &self,
        module: &str,
        failed: &FailedRollout,
    ) -> Result<(), PathError> {
        write_json(&self.path(module, FAILED), failed)
    }

    /// Removes the record of a rollback.
    pub(super) fn clear_failed(&self, module: &str) -> Result<(), PathError> {
        remove(&self.path(module, FAILED))
    }

    /// Removes all files of a module except its newest spec, which has the generation.
    pub(super) fn forget(&self, module: &str) -> Result<(), PathError> {
        [LAST_GOOD, PREVIOUS_GOOD, FAILED]
            .into_iter()
            .try_for_each(|ending| remove(&self.path(module, ending)))
    }

    /// Loads the owner's specs. They take precedence over the module files of the image.
    pub(super) fn load(&self) -> Result<LoadedStates, ModuleError> {
        let mut loaded =
            LoadedStates { histories: self.shipped.histories(), rejected: BTreeMap::new() };
        for (path, name) in list(&self.dir, DESIRED)? {
            if Module::check_name(&name).is_err() {
                logging::error!("ignored {}: no module has this name", path.display());
                continue;
            }
            let mut history =
                History { shipped: self.shipped.get(&name).cloned(), ..History::default() };
            if let Err(error) = self.load_history(&path, &name, &mut history) {
                let reason = error_chain(&error);
                logging::error!("module {name}: ignored {}: {reason}", path.display());
                // What the owner wants is not known, so the module does not run.
                let stopped = |shipped| Version { desired: DesiredState::Stop, ..shipped };
                history.desired = history.shipped.clone().map(stopped);
                if loaded.rejected.len() < MAX_REJECTED {
                    loaded.rejected.insert(name.clone(), reason);
                }
            }
            if history.desired.is_some() || history.generation > 0 {
                loaded.histories.insert(name, history);
            }
        }
        Ok(loaded)
    }

    /// Loads the newest spec of a module, and the versions before it.
    fn load_history(
        &self,
        path: &Path,
        name: &str,
        history: &mut History,
    ) -> Result<(), ModuleError> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let signed: SignedSpec = serde_json::from_str(&text).map_err(SpecRejection::SignedSpec)?;
        let spec = self.verify_spec(&signed)?;
        check_module(&spec, name)?;
        // Also a spec that has no effect any more is not followed by an older one.
        history.generation = spec.generation;
        match self.resolve(&spec, &signed) {
            Ok(version) => history.desired = Some(version),
            // The image shipped the module once, and it was removed.
            Err(SpecRejection::NotShipped { .. }) if spec.desired == DesiredState::Remove => {}
            Err(error) => return Err(error.into()),
        }
        history.last_good = self.load_good(name, LAST_GOOD);
        history.previous_good = self.load_good(name, PREVIOUS_GOOD);
        let failed = std::fs::read_to_string(self.path(name, FAILED)).ok();
        history.failed = failed.and_then(|text| serde_json::from_str(&text).ok());
        Ok(())
    }

    /// Loads a version that was healthy. A damaged or invalid one is left out.
    fn load_good(&self, name: &str, ending: &str) -> Option<Version> {
        let text = std::fs::read_to_string(self.path(name, ending)).ok()?;
        match serde_json::from_str(&text).ok()? {
            StoredVersion::Shipped(_) => self.shipped.get(name).cloned(),
            StoredVersion::Signed(signed) => {
                let (spec, version) = self.verify(&signed).ok()?;
                check_module(&spec, name).ok().map(|()| version)
            }
        }
    }
}

/// Checks that a spec is for this module.
pub(super) fn check_module(spec: &Spec, name: &str) -> Result<(), SpecRejection> {
    if spec.module == name {
        return Ok(());
    }
    let (expected, found) = (name.to_owned(), spec.module.clone());
    Err(SpecRejection::WrongModule { expected, found })
}

fn write_version(path: &Path, version: &Version) -> Result<(), PathError> {
    let stored = match &version.signed {
        Some(signed) => StoredVersion::Signed(signed.clone()),
        None => StoredVersion::Shipped(ShippedMarker::Shipped),
    };
    write_json(path, &stored)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PathError> {
    let text = serde_json::to_string(value).unwrap_or_default();
    atomic_file::write(path, text.as_bytes()).map_err(at(path))
}

fn remove(path: &Path) -> Result<(), PathError> {
    atomic_file::remove(path).map_err(at(path))
}

#[cfg(test)]
mod tests;
