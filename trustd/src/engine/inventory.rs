//! Which containers trustd started in this boot. The folder is on a tmpfs: after a reboot there are
//! none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use config::Access;

use crate::engine::Shape;
use crate::util::atomic_file::{self, PathError, at};

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
    /// What it may ask its socket for.
    pub access: Access,
}

/// By container.
pub struct Ledger {
    containers: PathBuf,
    images: PathBuf,
}

impl Ledger {
    pub fn open(run: &Path) -> Result<Self, PathError> {
        let ledger = Self { containers: run.join("containers"), images: run.join("images") };
        for dir in [&ledger.containers, &ledger.images] {
            std::fs::create_dir_all(dir).map_err(at(dir))?;
        }
        Ok(ledger)
    }

    pub fn all(&self) -> Result<BTreeMap<String, Started>, PathError> {
        let mut all = BTreeMap::new();
        for name in names(&self.containers)? {
            let path = self.containers.join(&name);
            let text = std::fs::read_to_string(&path).map_err(at(&path))?;
            // A file that is being written has another name; one of another form counts for
            // nothing.
            if let Ok(started) = serde_json::from_str(&text) {
                all.insert(name, started);
            }
        }
        Ok(all)
    }

    /// What a container was started as; none if trustd did not start it in this boot.
    pub fn of(&self, container: &str) -> Option<Started> {
        serde_json::from_str(&std::fs::read_to_string(self.containers.join(container)).ok()?).ok()
    }

    pub fn remember(&self, container: &str, started: &Started) -> Result<(), PathError> {
        let path = self.containers.join(container);
        atomic_file::write(&path, serde_json::to_string(started).unwrap_or_default().as_bytes())
            .map_err(at(&path))
    }

    pub fn forget(&self, container: &str) -> Result<(), PathError> {
        let path = self.containers.join(container);
        atomic_file::remove(&path).map_err(at(&path))
    }

    /// Images that trustd loaded.
    pub fn images(&self) -> Result<BTreeSet<String>, PathError> {
        Ok(names(&self.images)?.into_iter().map(|hex| format!("sha256:{hex}")).collect())
    }

    /// Said before the engine gets it: a kill in between leaves an image that is ours.
    pub fn expect_image(&self, digest: &str) -> Result<(), PathError> {
        let path = self.images.join(digest.trim_start_matches("sha256:"));
        atomic_file::write(&path, b"").map_err(at(&path))
    }

    pub fn forget_image(&self, digest: &str) -> Result<(), PathError> {
        let path = self.images.join(digest.trim_start_matches("sha256:"));
        atomic_file::remove(&path).map_err(at(&path))
    }
}

fn names(dir: &Path) -> Result<Vec<String>, PathError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        found.extend(
            entry.map_err(at(dir))?.file_name().into_string().ok().filter(|n| !n.contains('.')),
        );
    }
    Ok(found)
}
