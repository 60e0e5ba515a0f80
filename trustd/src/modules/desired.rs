//! The owner's specs: checked against the pinned certificates, kept, and found again after a
//! restart.
//!
//! Invariants: a spec on disk counts for no more than one on the network, it is checked again when
//! it is read; a newer one takes the place of an older one in one step, never the other way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Image, Module, Source};
use deployment::{DesiredState, SignedSpec, Spec};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;
use webpki::ring::{ECDSA_P256_SHA256, ED25519};

use super::ModuleError;
use crate::util::atomic_file::{self, PathError, at};

const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 2] = [ECDSA_P256_SHA256, ED25519];

/// A spec that counts.
#[derive(Debug, Clone)]
pub struct Kept {
    pub generation: u64,
    pub desired: DesiredState,
    pub toml: String,
    pub settings: Module,
    pub source: Source,
    /// As the owner sent it; none for a module of the image itself.
    signed: Option<SignedSpec>,
}

impl Kept {
    fn new(
        generation: u64,
        desired: DesiredState,
        toml: &str,
        settings: Module,
    ) -> Result<Self, String> {
        let Image::Node(source) = settings.image.clone() else {
            return Err("on a node, a module names its image by digest".into());
        };
        Ok(Self { generation, desired, toml: toml.to_owned(), settings, source, signed: None })
    }

    /// What the settings come to: another command or another right is another fingerprint, in the
    /// log and in the quote. Where the image comes from does not count; what is in it is the
    /// digest's affair.
    pub fn fingerprint(&self) -> String {
        let mut settings = self.settings.clone();
        settings.image =
            Image::Node(Source { registry: None, archive: None, ..self.source.clone() });
        let text = serde_json::to_string(&settings).unwrap_or_default();
        format!("sha256:{}", measure::hex(&Sha256::digest(text.as_bytes())))
    }
}

/// All that is kept of one module.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The newest.
    pub now: Option<Kept>,
    /// The last one that was healthy.
    pub good: Option<Kept>,
    /// The one that was healthy before that.
    pub before: Option<Kept>,
    /// The generation of a spec that was tried and rolled back, and why.
    pub failed: Option<(u64, String)>,
}

impl Record {
    fn good_mut(&mut self) -> &mut Option<Kept> {
        &mut self.good
    }

    fn before_mut(&mut self) -> &mut Option<Kept> {
        &mut self.before
    }

    /// Why the newest spec was rolled back, if it was.
    pub fn rolled_back(&self) -> Option<&str> {
        let (generation, why) = self.failed.as_ref()?;
        (*generation == self.now.as_ref()?.generation).then_some(why)
    }

    /// All that could be run again.
    pub fn versions(&self) -> impl Iterator<Item = &Kept> {
        [&self.now, &self.good, &self.before]
            .into_iter()
            .flatten()
            .filter(|kept| kept.desired != DesiredState::Remove)
    }
}

pub(super) struct DesiredStates {
    dir: PathBuf,
    /// SHA-256 of the owners' certificates.
    owners: Vec<String>,
}

impl DesiredStates {
    pub(super) fn open(dir: &Path, owners: &[String]) -> Result<Self, ModuleError> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        Ok(Self { dir: dir.to_owned(), owners: owners.to_vec() })
    }

    /// Checks who signed, and what.
    pub(super) fn check(&self, signed: &SignedSpec) -> Result<(Spec, Kept), ModuleError> {
        let bad = |problem: &str| ModuleError::Signature(problem.to_owned());
        let certificate =
            measure::unhex(&signed.certificate).ok_or_else(|| bad("the certificate is not hex"))?;
        let fingerprint = measure::hex(&Sha256::digest(&certificate));
        if !self.owners.contains(&fingerprint) {
            return Err(bad(&format!("the certificate {fingerprint} is not pinned in node.toml")));
        }
        let signature =
            measure::unhex(&signed.signature).ok_or_else(|| bad("the signature is not hex"))?;
        let der = CertificateDer::from(certificate);
        let key = EndEntityCert::try_from(&der)
            .map_err(|e| bad(&format!("the certificate cannot be read: {e}")))?;
        let message = deployment::signed_bytes(&signed.spec);
        if !ALGORITHMS
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, &message, &signature).is_ok())
        {
            return Err(bad("the signature does not hold"));
        }
        let spec = Spec::read(&signed.spec).map_err(ModuleError::Config)?;
        let settings = spec.settings().map_err(ModuleError::Config)?;
        let mut kept = Kept::new(spec.generation, spec.desired, &spec.toml, settings)
            .map_err(ModuleError::Config)?;
        kept.signed = Some(signed.clone());
        if kept.source.archive.is_some() {
            return Err(ModuleError::Config(
                "image.archive names a file of the node's own image; leave it out and send the archive: trustctl image push".into(),
            ));
        }
        Ok((spec, kept))
    }

    fn path(&self, module: &str, what: &str) -> PathBuf {
        self.dir.join(format!("{module}.{what}.json"))
    }

    pub(super) fn keep(&self, module: &str, signed: &SignedSpec) -> Result<(), PathError> {
        self.write(&self.path(module, "now"), &serde_json::to_string(signed).unwrap_or_default())
    }

    /// A spec was found to be good: it is what is gone back to.
    pub(super) fn mark_good(&self, module: &str, kept: &Kept) -> Result<(), PathError> {
        let good = self.path(module, "good");
        if let Ok(text) = std::fs::read_to_string(&good) {
            self.write(&self.path(module, "before"), &text)?;
        }
        match &kept.signed {
            Some(signed) => self.write(&good, &serde_json::to_string(signed).unwrap_or_default()),
            // A module of the image itself: that is kept nowhere else.
            None => atomic_file::remove(&good).map_err(at(&good)),
        }
    }

    /// Keeps of a module that was removed its generation alone.
    pub(super) fn forget(&self, module: &str) -> Result<(), PathError> {
        ["good", "before", "failed"].into_iter().try_for_each(|what| {
            let path = self.path(module, what);
            atomic_file::remove(&path).map_err(at(&path))
        })
    }

    pub(super) fn mark_failed(
        &self,
        module: &str,
        failed: Option<&(u64, String)>,
    ) -> Result<(), PathError> {
        let path = self.path(module, "failed");
        match failed {
            Some(failed) => self.write(&path, &serde_json::to_string(failed).unwrap_or_default()),
            None => atomic_file::remove(&path).map_err(at(&path)),
        }
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), PathError> {
        atomic_file::write(path, text.as_bytes()).map_err(at(path))
    }

    /// The image's own modules, and over them what the owner desired.
    pub(super) fn read(&self, shipped: &Path) -> Result<BTreeMap<String, Record>, ModuleError> {
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        for (path, name) in list(shipped, ".toml")? {
            let text = std::fs::read_to_string(&path).map_err(at(&path))?;
            let parsed = Module::valid_name(&name)
                .and_then(|()| {
                    config::parse(&format!("{name}.toml"), &text).map_err(|e| e.to_string())
                })
                .and_then(|settings| Kept::new(0, DesiredState::Run, &text, settings));
            match parsed {
                Ok(kept) => records.entry(name).or_default().now = Some(kept),
                // One bad file must not keep the others from running.
                Err(problem) => println!("module {name} is left out: {problem}"),
            }
        }
        // A module of the image is good until a spec takes its place.
        for record in records.values_mut() {
            record.good = record.now.clone();
        }
        for (path, name) in list(&self.dir, ".now.json")? {
            match self.read_one(&path, &name) {
                Ok(kept) => records.entry(name).or_default().now = Some(kept),
                Err(problem) => {
                    println!("module {name}: {} is not used: {problem}", path.display())
                }
            }
        }
        for (end, into) in [
            (".good.json", Record::good_mut as fn(&mut Record) -> &mut Option<Kept>),
            (".before.json", Record::before_mut),
        ] {
            for (path, name) in list(&self.dir, end)? {
                if let (Ok(kept), Some(record)) =
                    (self.read_one(&path, &name), records.get_mut(&name))
                {
                    *into(record) = Some(kept);
                }
            }
        }
        for (path, name) in list(&self.dir, ".failed.json")? {
            let text = std::fs::read_to_string(&path).map_err(at(&path))?;
            if let (Ok(failed), Some(record)) =
                (serde_json::from_str(&text), records.get_mut(&name))
            {
                record.failed = Some(failed);
            }
        }
        Ok(records)
    }

    fn read_one(&self, path: &Path, name: &str) -> Result<Kept, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let signed: SignedSpec = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let (spec, kept) = self.check(&signed).map_err(|e| e.to_string())?;
        if spec.module != name {
            return Err(format!("it is for the module {}", spec.module));
        }
        Ok(kept)
    }
}

/// Files of a folder by the end of their names, and what comes before it.
fn list(dir: &Path, end: &str) -> Result<Vec<(PathBuf, String)>, ModuleError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(dir))?.path();
        if let Some(name) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(end)) {
            found.push((path.clone(), name.to_owned()));
        }
    }
    found.sort();
    Ok(found)
}
