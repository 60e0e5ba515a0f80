//! Modules that ship in the node's read-only image: their files, and the archives of their images.
//!
//! Invariant: only a module file of the image names an archive. A spec names a digest, and if the
//! image ships an archive of that digest, it is the source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Image, ImageSource, Module};

use super::error::{ModuleError, SpecRejection};
use super::version::{History, Version};
use crate::util::atomic_file::at;
use crate::util::error_chain::error_chain;

/// Module files of the node's image.
#[derive(Debug, Default)]
pub(super) struct ShippedModules {
    versions: BTreeMap<String, Version>,
}

impl ShippedModules {
    /// Loads the module files of a folder. An invalid file is logged and left out.
    pub(super) fn load(dir: &Path) -> Result<Self, ModuleError> {
        let mut versions = BTreeMap::new();
        for (path, name) in list(dir, ".toml")? {
            let text = std::fs::read_to_string(&path).map_err(at(&path))?;
            match parse(&name, &text) {
                Ok(version) => {
                    versions.insert(name, version);
                }
                // An invalid file must not stop the other modules.
                Err(error) => logging::error!("module {name} is left out: {}", error_chain(&error)),
            }
        }
        Ok(Self { versions })
    }

    /// Returns the module file of a module.
    pub(super) fn get(&self, name: &str) -> Option<&Version> {
        self.versions.get(name)
    }

    /// Returns the archive of an image.
    pub(super) fn archive(&self, digest: &str) -> Option<&str> {
        let sources = self.versions.values().map(|version| &version.source);
        sources
            .filter(|source| source.digest == digest)
            .find_map(|source| source.archive.as_deref())
    }

    /// Returns the history of each module before there is a spec.
    pub(super) fn histories(&self) -> BTreeMap<String, History> {
        let histories = self.versions.iter();
        histories.map(|(name, version)| (name.clone(), History::of_shipped(version))).collect()
    }
}

/// Parses a module file. The text of the version is one that an owner may sign, so it does not have
/// the archive's path.
fn parse(name: &str, text: &str) -> Result<Version, SpecRejection> {
    Module::check_name(name)?;
    let mut settings: Module = config::parse(&format!("{name}.toml"), text)?;
    let mut version = Version::new(text, settings.clone())?;
    version.shipped = true;
    if version.source.archive.is_some() {
        settings.image = Image::Source(ImageSource { archive: None, ..version.source.clone() });
        version.toml = toml::to_string(&settings).map_err(SpecRejection::Text)?;
    }
    Ok(version)
}

/// Lists the files of a folder whose names have this ending, each with the part before it.
pub(super) fn list(dir: &Path, ending: &str) -> Result<Vec<(PathBuf, String)>, ModuleError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_shipped_module_names_no_archive_and_has_the_same_effect() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "memory-mib = 32\n[image]\ndigest = \"{digest}\"\narchive = \"/a.tar\"\n[health]\n\
             stays-s = 1\n"
        );
        std::fs::write(dir.path().join("app.toml"), &text).unwrap();
        std::fs::write(dir.path().join("bad.toml"), "memory-mib = 32\n").unwrap();
        let modules = ShippedModules::load(dir.path()).unwrap();
        assert_eq!(modules.versions.len(), 1);
        let version = modules.get("app").unwrap();
        assert!(version.shipped && !version.toml.contains("archive"), "{}", version.toml);
        let settings: Module = config::parse("app.toml", &version.toml).unwrap();
        let signable = Version::new(&version.toml, settings).unwrap();
        assert_eq!(signable.fingerprint(), version.fingerprint());
        assert_eq!(modules.archive(&digest), Some("/a.tar"));
        assert_eq!(modules.archive("sha256:b"), None);
    }
}
