//! Inventory of the containers and images that trustd gave to the engine in this boot.
//!
//! The inventory is on a tmpfs, so it is empty after a reboot, and no write waits for a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use config::Access;
use serde::{Deserialize, Serialize};

use super::config_digest::ConfigDigest;
use crate::util::atomic_file::{self, PathError, at};

/// Container that trustd created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRecord {
    /// Name of the module.
    pub module: String,
    /// Digest that the module file names: of the manifest, or of the index that lists it.
    pub requested_digest: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Fingerprint of the module's settings.
    pub fingerprint: String,
    /// Digest of the configuration that the engine reports.
    pub config_digest: ConfigDigest,
    /// Command of the health check that the engine runs in the container; empty if there is none.
    pub health_command: Vec<String>,
    /// Whether the container has the module's name on the networks that it shares with peers.
    pub joined_peers: bool,
    /// Whether trustd is stopping the container. Its exit is then no failure.
    pub stopping: bool,
    /// Calls that the container may make on its socket.
    pub access: Access,
}

/// Records of containers by ID, and digests of images. One file for each.
pub struct Inventory {
    containers: PathBuf,
    images: PathBuf,
}

impl Inventory {
    /// Opens the inventory below `run` and creates its folders.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if a folder cannot be created.
    pub fn open(run: &Path) -> Result<Self, PathError> {
        let inventory = Self { containers: run.join("containers"), images: run.join("images") };
        for dir in [&inventory.containers, &inventory.images] {
            std::fs::create_dir_all(dir).map_err(at(dir))?;
        }
        Ok(inventory)
    }

    /// Returns the records of all containers by ID.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if a file cannot be read.
    pub fn all(&self) -> Result<BTreeMap<String, ContainerRecord>, PathError> {
        let mut all = BTreeMap::new();
        for name in file_names(&self.containers)? {
            let path = self.containers.join(&name);
            let text = match std::fs::read_to_string(&path) {
                // The record was removed meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.map_err(at(&path))?,
            };
            // A file of another form is no record. A file that is being written has another name.
            if let Ok(record) = serde_json::from_str(&text) {
                all.insert(name, record);
            }
        }
        Ok(all)
    }

    /// Returns the record of a container, or `None` if trustd did not create it in this boot.
    pub fn get(&self, container: &str) -> Option<ContainerRecord> {
        serde_json::from_str(&std::fs::read_to_string(self.containers.join(container)).ok()?).ok()
    }

    /// Adds or replaces the record of a container.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if the file cannot be written.
    pub fn insert(&self, container: &str, record: &ContainerRecord) -> Result<(), PathError> {
        let path = self.containers.join(container);
        atomic_file::write(&path, serde_json::to_string(record).unwrap_or_default().as_bytes())
            .map_err(at(&path))
    }

    /// Removes the record of a container.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if the file cannot be removed.
    pub fn remove(&self, container: &str) -> Result<(), PathError> {
        let path = self.containers.join(container);
        atomic_file::remove(&path).map_err(at(&path))
    }

    /// Returns the digests of the images that trustd loaded.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if the folder cannot be read.
    pub fn images(&self) -> Result<BTreeSet<String>, PathError> {
        Ok(file_names(&self.images)?.into_iter().map(|hex| format!("sha256:{hex}")).collect())
    }

    /// Adds an image. This happens before the engine gets the image, so that the image is known
    /// even if the process is killed in between.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if the file cannot be written.
    pub fn insert_image(&self, digest: &str) -> Result<(), PathError> {
        let path = self.image_path(digest);
        atomic_file::write(&path, b"").map_err(at(&path))
    }

    /// Removes an image.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if the file cannot be removed.
    pub fn remove_image(&self, digest: &str) -> Result<(), PathError> {
        let path = self.image_path(digest);
        atomic_file::remove(&path).map_err(at(&path))
    }

    fn image_path(&self, digest: &str) -> PathBuf {
        self.images.join(digest.trim_start_matches("sha256:"))
    }
}

/// Returns the names of the files in a folder without those that are being written.
fn file_names(dir: &Path) -> Result<Vec<String>, PathError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        let name = entry.map_err(at(dir))?.file_name().into_string();
        names.extend(name.ok().filter(|name| !name.contains('.')));
    }
    Ok(names)
}
