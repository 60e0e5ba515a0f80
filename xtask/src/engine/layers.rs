//! The input files of a build: those of the checkout, overridden by the user's layers.
//!
//! Invariants:
//! - Every file that a layer may contain ([`Places`]) is looked up here, so a layer can add files
//!   and override files of the checkout. A later layer overrides an earlier one, and every layer
//!   overrides the checkout.
//! - A layer contains no file that the build would not read: a file in the wrong place is an error
//!   and is not ignored. Names that begin with a dot and folders named `target` are skipped, as
//!   they are in the checkout.
//! - The hash of a symbolic link covers the name of its target. Links are therefore allowed only
//!   where the build copies them as links.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

use crate::engine::{hash, paths, progress};

/// Patterns of the files that a layer may contain.
///
/// A pattern is `FOLDER/*SUFFIX`, `FOLDER/**` for all files below the folder, or the path of one
/// file.
pub struct Places {
    /// Patterns of files that a layer can add or override.
    pub files: &'static [&'static str],
    /// Pattern of the sources of a layer's own programs.
    pub programs: &'static str,
    /// Pattern of the files that the build copies as links if they are links.
    pub links: &'static str,
}

/// The file that every layer may contain and the build does not read.
const README: &str = "README.md";

/// The folders of the input files, in order of increasing precedence; the first is the checkout.
pub struct Layers(Vec<PathBuf>);

static CURRENT: OnceLock<Layers> = OnceLock::new();

/// Returns the layers of this run; the checkout alone if no layers were added.
pub fn current() -> &'static Layers {
    CURRENT.get_or_init(|| Layers(vec![paths::repo().to_owned()]))
}

/// Puts the user's layers on top of the checkout and prints a line for each file that a layer adds
/// or overrides.
///
/// The caller calls this at most once in a run, before it reads any file.
///
/// # Errors
///
/// Fails if a layer does not exist, is empty, or contains a file that is not in `places`.
pub fn add(dirs: &[PathBuf], places: &Places) -> Result<()> {
    if dirs.is_empty() {
        return Ok(());
    }
    let mut layers = Layers(vec![paths::repo().to_owned()]);
    for dir in dirs {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("--layer {}: there is no such folder", dir.display()))?;
        for line in layers.add(&dir, places)? {
            progress::line(&line);
        }
    }
    ensure!(CURRENT.set(layers).is_ok(), "layers must be added before any file is read");
    Ok(())
}

impl Layers {
    /// Puts a folder on top of the other layers; returns one line of the report for each file.
    fn add(&mut self, dir: &Path, places: &Places) -> Result<Vec<String>> {
        let mut report = Vec::new();
        for name in hash::walk(dir)? {
            let name = name.to_string_lossy().into_owned();
            if name == README {
                continue;
            }
            let is_allowed = places.files.iter().any(|place| matches(place, &name));
            if !is_allowed && !matches(places.programs, &name) {
                bail!(
                    "the layer {} contains {name}, which the build does not read; expected one of: \
                     {}, {}, {README} (see docs/porting.md)",
                    dir.display(),
                    places.files.join(", "),
                    places.programs
                );
            }
            let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_symlink());
            if is_link(&dir.join(&name)) && !matches(places.links, &name) {
                bail!(
                    "the layer {}: {name} is a symbolic link; expected a regular file, because \
                     links are allowed only in {}",
                    dir.display(),
                    places.links
                );
            }
            if let Some(parent) = Path::new(&name)
                .ancestors()
                .skip(1)
                .find(|a| is_link(&self.find(&a.to_string_lossy())))
            {
                bail!(
                    "the layer {}: {name} is below {}, which is a symbolic link in another layer",
                    dir.display(),
                    parent.display()
                );
            }
            let below = self.find(&name);
            let exists = below.symlink_metadata().is_ok();
            report.push(match exists {
                true => format!(
                    "layer {}: OVERRIDES {name} of {}",
                    dir.display(),
                    self.owner(&name).display()
                ),
                false => format!("layer {}: adds {name}", dir.display()),
            });
        }
        ensure!(
            !report.is_empty(),
            "the layer {} contains no file that the build would read",
            dir.display()
        );
        self.0.push(dir.to_owned());
        Ok(report)
    }

    /// Returns the path of a file or folder in the topmost layer that has it, or else its path in
    /// the checkout.
    pub fn find(&self, name: &str) -> PathBuf {
        self.owner(name).join(name)
    }

    /// Returns the topmost layer that has this file.
    pub fn owner(&self, name: &str) -> &Path {
        &self.0[self.height(name)]
    }

    /// Returns the index of the topmost layer that has this file; 0, the checkout, if none has it.
    fn height(&self, name: &str) -> usize {
        self.0.iter().rposition(|dir| dir.join(name).symlink_metadata().is_ok()).unwrap_or(0)
    }

    /// Returns where to write a file that belongs to another one: in the layer of that one, or in
    /// a higher layer that already has the file.
    pub fn next_to(&self, name: &str, other: &str) -> PathBuf {
        self.0[self.height(name).max(self.height(other))].join(name)
    }

    /// Returns all files below a folder: their names relative to it, sorted, and their paths.
    ///
    /// # Errors
    ///
    /// Fails if no layer has the folder, or if it cannot be listed.
    pub fn files(&self, folder: &str) -> Result<BTreeMap<PathBuf, PathBuf>> {
        let mut files = BTreeMap::new();
        let mut found = false;
        for dir in self.0.iter().map(|layer| layer.join(folder)).filter(|dir| dir.is_dir()) {
            found = true;
            files.extend(hash::walk(&dir)?.into_iter().map(|name| (name.clone(), dir.join(name))));
        }
        ensure!(found, "cannot list {}: there is no such folder", self.0[0].join(folder).display());
        Ok(files)
    }

    /// Returns the direct files of a folder that end in `.extension`: their names without it,
    /// sorted, and their paths.
    ///
    /// # Errors
    ///
    /// Fails if no layer has the folder, or if it cannot be listed.
    pub fn named(&self, folder: &str, extension: &str) -> Result<BTreeMap<String, PathBuf>> {
        let entry = |(name, path): (PathBuf, PathBuf)| {
            let is_match =
                name.components().count() == 1 && name.extension().is_some_and(|e| e == extension);
            is_match.then(|| {
                (name.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)
            })
        };
        Ok(self.files(folder)?.into_iter().filter_map(entry).collect())
    }

    /// Returns the names of the TOML files of a folder, without `.toml`.
    ///
    /// # Errors
    ///
    /// Fails if no layer has the folder, or if it cannot be listed.
    pub fn names(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.named(folder, "toml")?.into_keys().collect())
    }

    /// Returns the hash of a file, or of all files of a folder in all layers.
    ///
    /// # Errors
    ///
    /// Fails if the file or folder cannot be read.
    pub fn hash(&self, name: &str) -> Result<String> {
        let path = self.find(name);
        if path.is_dir() { hash::files(&self.files(name)?) } else { hash::file(&path) }
    }
}

/// Returns whether a file's name matches a pattern of [`Places`].
fn matches(place: &str, name: &str) -> bool {
    if let Some(folder) = place.strip_suffix("**") {
        return name.starts_with(folder);
    }
    match place.split_once('*') {
        None => place == name,
        Some((folder, suffix)) => {
            let rest = name.strip_prefix(folder).and_then(|rest| rest.strip_suffix(suffix));
            rest.is_some_and(|stem| !stem.is_empty() && !stem.contains('/'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places {
        files: &[
            "configs/machines/*.toml",
            "configs/node.toml",
            "image/kernel/*.config",
            "image/root/**",
            "image/sets.toml",
            "image/locks/*.toml",
        ],
        programs: "programs/**",
        links: "image/root/**",
    };

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn later_layers_override_and_every_override_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (base, one, two) =
            (dir.path().join("base"), dir.path().join("one"), dir.path().join("two"));
        for name in ["image/kernel/00-a.config", "image/root/etc/a", "configs/machines/m.toml"] {
            write(&base, name, "base");
        }
        write(&one, "image/kernel/80-b.config", "one");
        write(&one, "configs/machines/m.toml", "one");
        write(&two, "configs/machines/m.toml", "two");
        write(&two, "programs/p/src/main.rs", "");
        let mut layers = Layers(vec![base.clone()]);
        let before = layers.hash("image/kernel").unwrap();
        let report = layers.add(&one, &PLACES).unwrap();
        assert!(
            report
                .iter()
                .any(|l| l.contains("OVERRIDES configs/machines/m.toml of") && l.contains("base")),
            "{report:?}"
        );
        assert!(report.iter().any(|l| l.ends_with("adds image/kernel/80-b.config")), "{report:?}");
        let report = layers.add(&two, &PLACES).unwrap();
        assert_eq!(report.len(), 2);
        assert!(
            report[0].ends_with("one") && report[1].ends_with("adds programs/p/src/main.rs"),
            "{report:?}"
        );
        // A lock is written to the layer of the sets or of the previous lock, never to a lower one.
        assert_eq!(
            layers.next_to("image/locks/a.toml", "image/sets.toml"),
            base.join("image/locks/a.toml")
        );
        write(&one, "image/sets.toml", "");
        assert_eq!(
            layers.next_to("image/locks/a.toml", "image/sets.toml"),
            one.join("image/locks/a.toml")
        );
        write(&two, "image/locks/a.toml", "");
        assert_eq!(
            layers.next_to("image/locks/a.toml", "image/sets.toml"),
            two.join("image/locks/a.toml")
        );
        assert_eq!(std::fs::read_to_string(layers.find("configs/machines/m.toml")).unwrap(), "two");
        assert_eq!(
            layers.named("image/kernel", "config").unwrap().into_keys().collect::<Vec<_>>(),
            ["00-a", "80-b"]
        );
        assert_ne!(
            layers.hash("image/kernel").unwrap(),
            before,
            "an added fragment changes the hash"
        );
        assert_eq!(layers.find("image/root/etc/a"), base.join("image/root/etc/a"));
        assert!(layers.files("image/none").is_err());
    }

    #[test]
    fn links_are_allowed_only_where_the_build_copies_them() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |n: u32, name: &str| {
            let layer = dir.path().join(n.to_string());
            write(&layer, "configs/node.toml", "");
            std::fs::create_dir_all(layer.join(name).parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("/etc", layer.join(name)).unwrap();
            layer
        };
        let mut layers = Layers(vec![dir.path().join("none")]);
        assert!(
            layers
                .add(&layer(1, "image/kernel/80-x.config"), &PLACES)
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );
        layers.add(&layer(2, "image/root/d"), &PLACES).unwrap();
        let through = dir.path().join("3");
        write(&through, "image/root/d/f", "");
        assert!(
            layers
                .add(&through, &PLACES)
                .unwrap_err()
                .to_string()
                .contains("is below image/root/d")
        );
    }

    #[test]
    fn files_that_the_build_does_not_read_are_rejected() {
        for name in [
            "configs/machnies/m.toml",
            "configs/machines/sub/m.toml",
            "xtask/src/main.rs",
            "image/kernel/.toml",
            "notes.txt",
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), "configs/node.toml", "");
            write(dir.path(), name, "");
            let result = Layers(vec![dir.path().join("none")]).add(dir.path(), &PLACES);
            // Names that begin with a dot are skipped, because editors leave such files.
            assert_eq!(result.is_err(), !name.contains("/."), "{name}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(Layers(vec![]).add(empty.path(), &PLACES).is_err());
    }
}
