//! Store of the owner's specs: verified against the pinned certificates, persisted, and loaded
//! after a restart.
//!
//! Invariants:
//! - A spec on the disk has no more authority than a spec on the network: its signature is verified
//!   when it is loaded.
//! - A newer spec replaces an older one in one step. An older spec never replaces a newer one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Image, ImageSource, Module};
use deployment::{DesiredState, SignedSpec, Spec};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;
use webpki::ring::{ECDSA_P256_SHA256, ED25519};

use super::error::{ModuleError, SignatureError, SpecRejection};
use crate::util::atomic_file::{self, PathError, at};
use crate::util::error_chain::error_chain;

const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 2] = [ECDSA_P256_SHA256, ED25519];

/// Endings of a module's files, each after the module's name.
const DESIRED: &str = ".desired.json";
const LAST_GOOD: &str = ".last-good.json";
const PREVIOUS_GOOD: &str = ".previous-good.json";
const FAILED: &str = ".failed.json";

/// Version of a module: a spec whose signature was verified, or a module file of the image.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// Generation of the spec; 0 for a module file of the image.
    pub(super) generation: u64,
    /// Desired state.
    pub(super) desired: DesiredState,
    /// Text of the module file.
    pub(super) toml: String,
    /// Parsed module file.
    pub(super) settings: Module,
    /// Image that the module file names.
    pub(super) source: ImageSource,
    /// Signed spec; `None` for a module file of the image.
    signed: Option<SignedSpec>,
}

impl Version {
    fn new(
        generation: u64,
        desired: DesiredState,
        toml: &str,
        settings: Module,
    ) -> Result<Self, SpecRejection> {
        let Image::Source(source) = settings.image.clone() else {
            return Err(SpecRejection::Build);
        };
        Ok(Self { generation, desired, toml: toml.to_owned(), settings, source, signed: None })
    }

    /// Returns the fingerprint of the settings, which is in events and quotes. Settings with
    /// another effect have another fingerprint. The place that the image is fetched from does not
    /// count, because the digest determines the image's content.
    pub(super) fn fingerprint(&self) -> String {
        let mut settings = self.settings.clone();
        settings.image =
            Image::Source(ImageSource { registry: None, archive: None, ..self.source.clone() });
        let text = serde_json::to_string(&settings).unwrap_or_default();
        format!("sha256:{}", measure::hex(&Sha256::digest(text.as_bytes())))
    }
}

/// Spec that was tried and rolled back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailedRollout {
    /// Generation of the spec.
    pub(super) generation: u64,
    /// Reason of the rollback.
    pub(super) reason: String,
}

/// Persistent history of a module.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// Newest version.
    pub(super) desired: Option<Version>,
    /// Last version that was healthy.
    pub(super) last_good: Option<Version>,
    /// Version that was healthy before the last one.
    pub(super) previous_good: Option<Version>,
    /// Last version that was rolled back.
    pub(super) failed: Option<FailedRollout>,
}

impl History {
    fn last_good_mut(&mut self) -> &mut Option<Version> {
        &mut self.last_good
    }

    fn previous_good_mut(&mut self) -> &mut Option<Version> {
        &mut self.previous_good
    }

    /// Returns the reason why the newest version was rolled back, if it was.
    pub(super) fn rollback_reason(&self) -> Option<&str> {
        let failed = self.failed.as_ref()?;
        (failed.generation == self.desired.as_ref()?.generation).then_some(&failed.reason)
    }

    /// Returns all versions that may run again.
    pub(super) fn versions(&self) -> impl Iterator<Item = &Version> {
        [&self.desired, &self.last_good, &self.previous_good]
            .into_iter()
            .flatten()
            .filter(|version| version.desired != DesiredState::Remove)
    }
}

/// Desired states on the data partition.
pub(super) struct DesiredStates {
    dir: PathBuf,
    /// SHA-256 of the owners' certificates, hex.
    owners: Vec<String>,
}

impl DesiredStates {
    /// Opens the store and creates its folder.
    pub(super) fn open(dir: &Path, owners: &[String]) -> Result<Self, ModuleError> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        Ok(Self { dir: dir.to_owned(), owners: owners.to_vec() })
    }

    /// Verifies the signature of a spec and parses it.
    pub(super) fn verify(&self, signed: &SignedSpec) -> Result<(Spec, Version), ModuleError> {
        self.verify_signature(signed)?;
        let spec = Spec::read(&signed.spec).map_err(SpecRejection::from)?;
        let settings = spec.settings().map_err(SpecRejection::from)?;
        let mut version = Version::new(spec.generation, spec.desired, &spec.toml, settings)?;
        version.signed = Some(signed.clone());
        if version.source.archive.is_some() {
            return Err(SpecRejection::Archive.into());
        }
        Ok((spec, version))
    }

    fn verify_signature(&self, signed: &SignedSpec) -> Result<(), SignatureError> {
        let decode = |what, text| measure::unhex(text).ok_or(SignatureError::NotHex { what });
        let certificate = decode("certificate", &signed.certificate)?;
        let fingerprint = measure::hex(&Sha256::digest(&certificate));
        if !self.owners.contains(&fingerprint) {
            return Err(SignatureError::NotPinned { fingerprint });
        }
        let signature = decode("signature", &signed.signature)?;
        let der = CertificateDer::from(certificate);
        let key = EndEntityCert::try_from(&der).map_err(SignatureError::Certificate)?;
        let message = deployment::signed_bytes(&signed.spec);
        let verifies = |algorithm: &&dyn SignatureVerificationAlgorithm| {
            key.verify_signature(*algorithm, &message, &signature).is_ok()
        };
        if ALGORITHMS.iter().any(verifies) { Ok(()) } else { Err(SignatureError::Invalid) }
    }

    fn path(&self, module: &str, ending: &str) -> PathBuf {
        self.dir.join(format!("{module}{ending}"))
    }

    /// Persists the newest spec.
    pub(super) fn persist(&self, module: &str, signed: &SignedSpec) -> Result<(), PathError> {
        write_json(&self.path(module, DESIRED), signed)
    }

    /// Persists that a version was healthy.
    pub(super) fn persist_good(&self, module: &str, version: &Version) -> Result<(), PathError> {
        let last_good = self.path(module, LAST_GOOD);
        if let Ok(text) = std::fs::read_to_string(&last_good) {
            let path = self.path(module, PREVIOUS_GOOD);
            atomic_file::write(&path, text.as_bytes()).map_err(at(&path))?;
        }
        match &version.signed {
            Some(signed) => write_json(&last_good, signed),
            // A module file of the image has no file here.
            None => remove(&last_good),
        }
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

    /// Loads the module files of the image, in the folder `shipped`, and the owner's specs, which
    /// take precedence.
    pub(super) fn load(&self, shipped: &Path) -> Result<BTreeMap<String, History>, ModuleError> {
        let mut histories = load_shipped(shipped)?;
        for (path, name) in list(&self.dir, DESIRED)? {
            match self.load_spec(&path, &name) {
                Ok(version) => histories.entry(name).or_default().desired = Some(version),
                Err(error) => logging::error!(
                    "module {name}: ignored {}: {}",
                    path.display(),
                    error_chain(&error)
                ),
            }
        }
        for (ending, slot) in [
            (LAST_GOOD, History::last_good_mut as fn(&mut History) -> &mut Option<Version>),
            (PREVIOUS_GOOD, History::previous_good_mut),
        ] {
            for (path, name) in list(&self.dir, ending)? {
                if let (Ok(version), Some(history)) =
                    (self.load_spec(&path, &name), histories.get_mut(&name))
                {
                    *slot(history) = Some(version);
                }
            }
        }
        for (path, name) in list(&self.dir, FAILED)? {
            let text = std::fs::read_to_string(&path).map_err(at(&path))?;
            if let (Ok(failed), Some(history)) =
                (serde_json::from_str(&text), histories.get_mut(&name))
            {
                history.failed = Some(failed);
            }
        }
        Ok(histories)
    }

    fn load_spec(&self, path: &Path, name: &str) -> Result<Version, ModuleError> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let signed: SignedSpec = serde_json::from_str(&text).map_err(SpecRejection::SignedSpec)?;
        let (spec, version) = self.verify(&signed)?;
        if spec.module != name {
            let (expected, found) = (name.to_owned(), spec.module);
            return Err(SpecRejection::WrongModule { expected, found }.into());
        }
        Ok(version)
    }
}

/// Loads the module files of the image. Each counts as healthy until a spec replaces it.
fn load_shipped(dir: &Path) -> Result<BTreeMap<String, History>, ModuleError> {
    let mut histories = BTreeMap::new();
    for (path, name) in list(dir, ".toml")? {
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        match parse_shipped(&name, &text) {
            Ok(version) => {
                let (desired, last_good) = (Some(version.clone()), Some(version));
                histories.insert(name, History { desired, last_good, ..History::default() });
            }
            // An invalid file must not stop the other modules.
            Err(error) => logging::error!("module {name} is left out: {}", error_chain(&error)),
        }
    }
    Ok(histories)
}

fn parse_shipped(name: &str, text: &str) -> Result<Version, SpecRejection> {
    Module::check_name(name)?;
    let settings = config::parse(&format!("{name}.toml"), text)?;
    Version::new(0, DesiredState::Run, text, settings)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PathError> {
    let text = serde_json::to_string(value).unwrap_or_default();
    atomic_file::write(path, text.as_bytes()).map_err(at(path))
}

fn remove(path: &Path) -> Result<(), PathError> {
    atomic_file::remove(path).map_err(at(path))
}

/// Lists the files of a folder whose names have this ending, each with the part before it.
fn list(dir: &Path, ending: &str) -> Result<Vec<(PathBuf, String)>, ModuleError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at(dir))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(dir))?.path();
        if let Some(name) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(ending)) {
            files.push((path.clone(), name.to_owned()));
        }
    }
    files.sort();
    Ok(files)
}
