//! Which containers trustd started in this boot. The folder is on a tmpfs: after a reboot there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ModuleError, io};
use crate::engine::Shape;
use crate::files;

/// What a container was started as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    pub module: String,
    /// What was approved: of the manifest, or of the index that lists it.
    pub asked: String,
    /// Of the manifest.
    pub digest: String,
    /// Fingerprint of the module's settings.
    pub settings: String,
    /// What the engine made of them.
    pub shape: Shape,
    /// What the engine runs in it to see whether it is healthy.
    pub check: Vec<String>,
    /// It has the module's name on the networks with its peers.
    pub introduced: bool,
}

pub(super) struct Ledger {
    containers: PathBuf,
    images: PathBuf,
}

impl Ledger {
    pub(super) fn open(run: &Path) -> Result<Self, ModuleError> {
        let ledger = Self { containers: run.join("containers"), images: run.join("images") };
        for dir in [&ledger.containers, &ledger.images] {
            std::fs::create_dir_all(dir).map_err(io(dir))?;
        }
        Ok(ledger)
    }

    pub(super) fn all(&self) -> Result<BTreeMap<String, Started>, ModuleError> {
        let mut all = BTreeMap::new();
        for name in names(&self.containers)? {
            let path = self.containers.join(&name);
            let text = std::fs::read_to_string(&path).map_err(io(&path))?;
            // A file that is being written has another name; one of another form counts for nothing.
            if let Ok(started) = serde_json::from_str(&text) {
                all.insert(name, started);
            }
        }
        Ok(all)
    }

    /// What one container was started as.
    pub(super) fn of(&self, container: &str) -> Option<Started> {
        serde_json::from_str(&std::fs::read_to_string(self.containers.join(container)).ok()?).ok()
    }

    pub(super) fn remember(&self, container: &str, started: &Started) -> Result<(), ModuleError> {
        let path = self.containers.join(container);
        files::write(&path, serde_json::to_string(started).unwrap_or_default().as_bytes()).map_err(io(&path))
    }

    pub(super) fn forget(&self, container: &str) -> Result<(), ModuleError> {
        let path = self.containers.join(container);
        files::remove(&path).map_err(io(&path))
    }

    /// Images that trustd loaded.
    pub(super) fn images(&self) -> Result<BTreeSet<String>, ModuleError> {
        Ok(names(&self.images)?.into_iter().map(|hex| format!("sha256:{hex}")).collect())
    }

    /// Said before the engine gets it: a kill in between leaves an image that is ours.
    pub(super) fn expect_image(&self, digest: &str) -> Result<(), ModuleError> {
        let path = self.images.join(digest.trim_start_matches("sha256:"));
        files::write(&path, b"").map_err(io(&path))
    }

    pub(super) fn forget_image(&self, digest: &str) -> Result<(), ModuleError> {
        let path = self.images.join(digest.trim_start_matches("sha256:"));
        files::remove(&path).map_err(io(&path))
    }
}

fn names(dir: &Path) -> Result<Vec<String>, ModuleError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        found.extend(entry.map_err(io(dir))?.file_name().into_string().ok().filter(|n| !n.contains('.')));
    }
    Ok(found)
}
