//! The data that an image is made of: the checkout's, with the user's layers laid over it.
//!
//! Invariants:
//! - What of configs/ and image/ a layer may have (`PLACES`) is looked up here, so a layer can add
//!   to it and override each file. A later layer wins over an earlier one, and every layer over the
//!   checkout.
//! - A layer holds nothing that the build would not read: a file in the wrong place is an error,
//!   not a silence. Names that begin with a dot and folders named `target` are left out, there as
//!   in the checkout.
//! - A link counts by its target's name, so it may stand only where links are copied as such.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{hash, paths, progress};

/// What a layer may hold, as FOLDER/*SUFFIX (or FOLDER/** for anything below), or one file.
const PLACES: [&str; 17] = [
    "configs/machines/*.toml",
    "configs/variants/*.toml",
    "configs/modules/*.toml",
    "configs/node.toml",
    "configs/ledger.jsonl",
    "image/kernel/*.config",
    "image/kernel/patches/*.patch",
    "image/kernel-backports/*.config",
    "image/recipes/root.toml",
    "image/recipes/kernels/*.toml",
    "image/recipes/programs/*.toml",
    "image/device-tree/*.dtso",
    "image/root/**",
    "image/hardening.toml",
    "image/sets.toml",
    "image/locks/*.toml",
    "image/release.toml",
];
/// Sources of a layer's own programs, each a Cargo workspace with its lock.
const PROGRAMS: &str = "programs/**";
/// Where links are copied as links.
const LINKS: &str = "image/root/**";
const README: &str = "README.md";

/// Folders, the later ones over the earlier ones; the first is the checkout.
pub struct Layers(Vec<PathBuf>);

static CURRENT: OnceLock<Layers> = OnceLock::new();

/// The layers of this run; the checkout alone if none were laid.
pub fn current() -> &'static Layers {
    CURRENT.get_or_init(|| Layers(vec![paths::repo().to_owned()]))
}

/// Lays the user's layers over the checkout and says what each adds or overrides. Once in a run,
/// before anything is read.
pub fn lay(dirs: &[PathBuf]) -> Result<()> {
    if dirs.is_empty() {
        return Ok(());
    }
    let mut layers = Layers(vec![paths::repo().to_owned()]);
    for dir in dirs {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("--layer {}: there is no such folder", dir.display()))?;
        for line in layers.add(&dir)? {
            progress::line(&line);
        }
    }
    ensure!(CURRENT.set(layers).is_ok(), "layers must be laid before anything is read");
    Ok(())
}

impl Layers {
    /// Puts a folder on top; answers what it does, a line a file.
    fn add(&mut self, dir: &Path) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for name in hash::walk(dir)? {
            let name = name.to_string_lossy().into_owned();
            if name == README {
                continue;
            }
            if !matches(PROGRAMS, &name) && !PLACES.iter().any(|place| matches(place, &name)) {
                bail!(
                    "the layer {} has {name}, which nothing would read. A layer may hold: {}, {PROGRAMS}, {README} (docs/porting.md)",
                    dir.display(),
                    PLACES.join(", ")
                );
            }
            let link = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_symlink());
            if link(&dir.join(&name)) && !matches(LINKS, &name) {
                bail!(
                    "the layer {}: {name} is a symbolic link; only below image/root/ may there be some",
                    dir.display()
                );
            }
            if let Some(parent) = Path::new(&name)
                .ancestors()
                .skip(1)
                .find(|a| link(&self.find(&a.to_string_lossy())))
            {
                bail!(
                    "the layer {}: {name} lies below {}, which is a symbolic link in another layer",
                    dir.display(),
                    parent.display()
                );
            }
            let below = self.find(&name);
            let there = below.symlink_metadata().is_ok();
            said.push(match there {
                true => format!(
                    "layer {}: OVERRIDES {name} of {}",
                    dir.display(),
                    self.owner(&name).display()
                ),
                false => format!("layer {}: adds {name}", dir.display()),
            });
        }
        ensure!(
            !said.is_empty(),
            "the layer {} holds nothing that the build would read",
            dir.display()
        );
        self.0.push(dir.to_owned());
        Ok(said)
    }

    /// The file or folder of this name in the topmost layer that has it; the place in the checkout
    /// if none has.
    pub fn find(&self, name: &str) -> PathBuf {
        self.owner(name).join(name)
    }

    /// The topmost layer that has this file.
    pub fn owner(&self, name: &str) -> &Path {
        &self.0[self.height(name)]
    }

    fn height(&self, name: &str) -> usize {
        self.0.iter().rposition(|dir| dir.join(name).symlink_metadata().is_ok()).unwrap_or(0)
    }

    /// Where a file is written that belongs to another one: beside that one, or further up where it
    /// is already.
    pub fn beside(&self, name: &str, other: &str) -> PathBuf {
        self.0[self.height(name).max(self.height(other))].join(name)
    }

    /// All files below a folder: their names in it, sorted, and where each lies.
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

    /// The files of a folder itself that end in `.extension`: their names without it, sorted, and
    /// where each lies.
    pub fn named(&self, folder: &str, extension: &str) -> Result<BTreeMap<String, PathBuf>> {
        let of = |(name, path): (PathBuf, PathBuf)| {
            let plain =
                name.components().count() == 1 && name.extension().is_some_and(|e| e == extension);
            plain.then(|| {
                (name.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)
            })
        };
        Ok(self.files(folder)?.into_iter().filter_map(of).collect())
    }

    /// The TOML files of a folder, by their names without `.toml`.
    pub fn names(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.named(folder, "toml")?.into_keys().collect())
    }

    /// The hash of a file, or of all files of a folder, wherever they lie.
    pub fn hash(&self, name: &str) -> Result<String> {
        let path = self.find(name);
        if path.is_dir() { hash::files(&self.files(name)?) } else { hash::file(&path) }
    }
}

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

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_last_layer_wins_and_each_override_is_said() {
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
        let said = layers.add(&one).unwrap();
        assert!(
            said.iter()
                .any(|l| l.contains("OVERRIDES configs/machines/m.toml of") && l.contains("base")),
            "{said:?}"
        );
        assert!(said.iter().any(|l| l.ends_with("adds image/kernel/80-b.config")), "{said:?}");
        let said = layers.add(&two).unwrap();
        assert_eq!(said.len(), 2);
        assert!(
            said[0].ends_with("one") && said[1].ends_with("adds programs/p/src/main.rs"),
            "{said:?}"
        );
        // A lock is written where the sets or an older lock of it are, never below.
        assert_eq!(
            layers.beside("image/locks/a.toml", "image/sets.toml"),
            base.join("image/locks/a.toml")
        );
        write(&one, "image/sets.toml", "");
        assert_eq!(
            layers.beside("image/locks/a.toml", "image/sets.toml"),
            one.join("image/locks/a.toml")
        );
        write(&two, "image/locks/a.toml", "");
        assert_eq!(
            layers.beside("image/locks/a.toml", "image/sets.toml"),
            two.join("image/locks/a.toml")
        );
        assert_eq!(std::fs::read_to_string(layers.find("configs/machines/m.toml")).unwrap(), "two");
        assert_eq!(
            layers.named("image/kernel", "config").unwrap().into_keys().collect::<Vec<_>>(),
            ["00-a", "80-b"]
        );
        assert_ne!(layers.hash("image/kernel").unwrap(), before, "a fragment that is added counts");
        assert_eq!(layers.find("image/root/etc/a"), base.join("image/root/etc/a"));
        assert!(layers.files("image/none").is_err());
    }

    #[test]
    fn a_link_may_stand_only_where_links_are_copied() {
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
                .add(&layer(1, "image/kernel/80-x.config"))
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );
        layers.add(&layer(2, "image/root/d")).unwrap();
        let through = dir.path().join("3");
        write(&through, "image/root/d/f", "");
        assert!(layers.add(&through).unwrap_err().to_string().contains("lies below image/root/d"));
    }

    #[test]
    fn a_file_that_nothing_would_read_is_refused() {
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
            let result = Layers(vec![dir.path().join("none")]).add(dir.path());
            // Dot files are an editor's and nobody's.
            assert_eq!(result.is_err(), !name.contains("/."), "{name}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(Layers(vec![]).add(empty.path()).is_err());
    }
}
