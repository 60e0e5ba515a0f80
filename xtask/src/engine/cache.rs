//! The cache: results of steps, addressed by the hash of their inputs.
//!
//! Invariants:
//! - A folder `steps/NAME/KEY` is complete or absent: it is built under `tmp/`, then renamed.
//! - KEY is the hash of the list of inputs. The list is stored with the result, so that `why` can
//!   always report the inputs that changed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::engine::{hash, layers, paths, progress};

/// Context of errors from writing to the cache.
pub const DISK_FULL: &str = "cannot write to the cache; is the disk full? Free some space \
    (`cargo xtask clean` empties the cache) or move the cache with BASALT_CACHE=DIR; no partial \
    result was stored";

/// The inputs of a step: readable names and the hash of each.
#[derive(Default, Clone)]
pub struct Inputs(pub BTreeMap<String, String>);

impl Inputs {
    /// Adds an input by name and hash (or value, where it is short).
    pub fn add(&mut self, name: impl Into<String>, hash: impl Into<String>) -> &mut Self {
        self.0.insert(name.into(), hash.into());
        self
    }

    /// Adds a file or folder of the repository, with the layers on top of it.
    ///
    /// # Errors
    ///
    /// Fails if the file or folder cannot be read.
    pub fn path(&mut self, relative: &str) -> Result<&mut Self> {
        let hash = layers::current().hash(relative)?;
        Ok(self.add(relative, hash))
    }

    /// Adds the result of another step.
    pub fn step(&mut self, artifact: &Artifact) -> &mut Self {
        self.add(format!("step {}", artifact.name), &artifact.key)
    }

    /// Returns the list of inputs, one line each: `HASH  NAME`.
    fn text(&self) -> String {
        self.0.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect()
    }
}

/// The result of a step, which may not have been built yet.
#[derive(Clone)]
pub struct Artifact {
    /// Name of the step.
    pub name: String,
    /// Hash of its inputs, in hex.
    pub key: String,
    /// Folder of the result.
    pub dir: PathBuf,
}

impl Artifact {
    /// Returns the path of one file of the result.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns whether the result is in the cache.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }
}

/// The cache folder. A lock lets only one build use it at a time.
pub struct Cache {
    root: PathBuf,
    _lock: std::fs::File,
}

/// Number of results stored for one step; the least recently used are removed.
const MAX_RESULTS_PER_STEP: usize = 4;
/// Number of characters of the key in the name of a result's folder.
pub const KEY_LEN: usize = 24;
/// Folders of the cache.
const FOLDERS: [&str; 5] = ["blobs", "steps", "tmp", "logs", "work"];

impl Cache {
    /// Opens the user's cache; waits while another build uses it.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be created, locked or cleaned.
    pub fn open() -> Result<Self> {
        Self::open_at(&paths::cache()?)
    }

    /// Opens the cache in a folder; waits while another build uses it.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be created, locked or cleaned.
    pub fn open_at(root: &Path) -> Result<Self> {
        for sub in FOLDERS {
            std::fs::create_dir_all(root.join(sub)).with_context(|| {
                format!(
                    "cannot create the cache {}; set BASALT_CACHE=DIR to use another folder",
                    root.display()
                )
            })?;
        }
        let lock = std::fs::File::create(root.join("lock"))?;
        if lock.try_lock().is_err() {
            progress::line("another build is using the cache: waiting until it ends");
            lock.lock()?;
        }
        // No other build is running, so interrupted steps left all of tmp/.
        for entry in std::fs::read_dir(root.join("tmp"))? {
            remove(&entry?.path())?;
        }
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Returns the path of the log of a step.
    pub fn log(&self, step: &str) -> PathBuf {
        self.root.join("logs").join(format!("{step}.log"))
    }

    /// Returns the folder for temporary files of a running step. The next build empties it.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Removes results, work folders and, if `downloads` is set, downloads.
    ///
    /// # Errors
    ///
    /// Fails if a folder cannot be removed.
    pub fn clear(&self, downloads: bool) -> Result<()> {
        for name in ["steps", "work", "logs", "blobs", "tools"] {
            let dir = self.root.join(name);
            if dir.exists() && (downloads || name != "blobs") {
                let trash = self.root.join("tmp").join(format!("gone-{name}"));
                std::fs::rename(&dir, &trash)?;
                remove(&trash)?;
            }
        }
        Ok(())
    }

    /// Returns a folder that persists from build to build (cargo's target folder, for example),
    /// private to `name`.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be created.
    pub fn work(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("work").join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Returns the key and folder of the result of a step with these inputs, built or not.
    pub fn artifact(&self, name: &str, inputs: &Inputs) -> Artifact {
        let key = hash::bytes(inputs.text().as_bytes());
        let dir = self.root.join("steps").join(name).join(&key[..KEY_LEN]).join("out");
        Artifact { name: name.to_owned(), key, dir }
    }

    /// Returns the result of a step from the cache. If it is not cached, calls `build` with an
    /// empty folder for the result and stores that folder.
    ///
    /// # Errors
    ///
    /// Fails if `build` fails or the result cannot be stored.
    pub fn get_or_build(
        &self,
        name: &str,
        label: &str,
        inputs: &Inputs,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Artifact> {
        let artifact = self.artifact(name, inputs);
        let key = &artifact.key;
        let parent = self.root.join("steps").join(name);
        let dir = parent.join(&key[..KEY_LEN]);
        if dir.is_dir() {
            // The time of last use decides which results are evicted.
            let _ = std::fs::File::open(&dir)
                .and_then(|d| d.set_modified(std::time::SystemTime::now()));
            progress::report(name, "cached", &key[..12]);
            return Ok(artifact);
        }
        let task = progress::Task::begin(name, label);
        std::fs::create_dir_all(&parent)?;
        let temporary =
            self.root.join("tmp").join(format!("{}-{}", name.replace('/', "-"), &key[..KEY_LEN]));
        std::fs::create_dir_all(temporary.join("out")).context(DISK_FULL)?;
        let outcome = build(&temporary.join("out"));
        if outcome.is_err() {
            remove(&temporary)?;
        }
        outcome.with_context(|| {
            format!(
                "step {name} failed and no result was stored; its log is {}",
                self.log(name).display()
            )
        })?;
        std::fs::write(temporary.join("inputs"), inputs.text()).context(DISK_FULL)?;
        std::fs::rename(&temporary, &dir).context(DISK_FULL)?;
        task.done(&key[..12]);
        self.evict(&parent)?;
        Ok(artifact)
    }

    /// Removes all but the most recently used results of a step.
    fn evict(&self, parent: &Path) -> Result<()> {
        let mut results = Vec::new();
        for entry in std::fs::read_dir(parent)? {
            let entry = entry?;
            results.push((entry.metadata()?.modified()?, entry.path()));
        }
        results.sort();
        results.reverse();
        for (n, (_, old)) in results.into_iter().skip(MAX_RESULTS_PER_STEP).enumerate() {
            // Renamed first, because an interrupted removal must not leave a partial result.
            let trash = self.root.join("tmp").join(format!("gone-{n}"));
            std::fs::rename(old, &trash)?;
            remove(&trash)?;
        }
        Ok(())
    }

    /// Explains why a step would be rebuilt: lists every input that differs from those of the
    /// newest result.
    ///
    /// # Errors
    ///
    /// Fails if the list of inputs of the newest result cannot be read.
    pub fn why(&self, name: &str, inputs: &Inputs) -> Result<String> {
        if self.artifact(name, inputs).exists() {
            return Ok(format!(
                "{name}: no input changed, the result is in the cache ({} inputs)\n",
                inputs.0.len()
            ));
        }
        let parent = self.root.join("steps").join(name);
        let newest = std::fs::read_dir(&parent).ok().and_then(|dir| {
            dir.flatten()
                .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
                .max()
        });
        let Some((_, newest)) = newest else {
            return Ok(format!("{name}: never built with this cache\n"));
        };
        let text = std::fs::read_to_string(newest.join("inputs"))?;
        let old: BTreeMap<String, String> = text
            .lines()
            .filter_map(|l| l.split_once("  "))
            .map(|(hash, name)| (name.to_owned(), hash.to_owned()))
            .collect();
        let mut answer = format!("{name}: will be rebuilt, because of these inputs\n");
        for (name, hash) in &inputs.0 {
            match old.get(name) {
                None => answer.push_str(&format!("  new      {name}\n")),
                Some(old_hash) if old_hash != hash => answer.push_str(&format!(
                    "  changed  {name}  ({} -> {})\n",
                    short(old_hash),
                    short(hash)
                )),
                Some(_) => {}
            }
        }
        for name in old.keys().filter(|name| !inputs.0.contains_key(*name)) {
            answer.push_str(&format!("  gone     {name}\n"));
        }
        Ok(answer)
    }
}

/// Returns the first 12 characters of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Removes a file or a folder, including folders in it that a package made read-only.
///
/// # Errors
///
/// Fails if a file or folder cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    if removed.is_ok() {
        return Ok(());
    }
    make_writable(path)
        .and_then(|()| std::fs::remove_dir_all(path))
        .with_context(|| format!("cannot remove {}", path.display()))
}

/// Gives the owner of a folder, and of all folders below it, permission to list and change it.
fn make_writable(dir: &Path) -> std::io::Result<()> {
    let mut permissions = dir.symlink_metadata()?.permissions();
    permissions.set_mode(permissions.mode() | 0o700);
    std::fs::set_permissions(dir, permissions)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file atomically: writes a temporary file, syncs it, then renames it.
///
/// # Errors
///
/// Fails if the file cannot be written; the old one is then unchanged.
pub fn write_atomically(path: &Path, data: &[u8]) -> Result<()> {
    let parent =
        path.parent().with_context(|| format!("{} has no parent folder", path.display()))?;
    std::fs::create_dir_all(parent)?;
    let mut temporary = tempfile::NamedTempFile::new_in(parent)?;
    temporary.write_all(data).context(DISK_FULL)?;
    temporary.as_file().sync_all()?;
    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    temporary.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn results_are_cached_by_inputs_and_why_reports_changed_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(dir.path()).unwrap();
        let mut inputs = Inputs::default();
        inputs.add("a", "1");
        let build = |out: &Path| Ok(std::fs::write(out.join("x"), "1")?);
        cache.get_or_build("s", "", &inputs, build).unwrap();
        cache
            .get_or_build("s", "", &inputs, |_| panic!("the result must come from the cache"))
            .unwrap();
        inputs.add("a", "2").add("b", "1");
        let why = cache.why("s", &inputs).unwrap();
        assert!(why.contains("changed  a") && why.contains("new      b"), "{why}");
    }

    #[test]
    fn failed_steps_store_no_result() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(dir.path()).unwrap();
        let inputs = Inputs::default();
        let failed = cache.get_or_build("s", "", &inputs, |out| {
            std::fs::write(out.join("half"), "")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!cache.artifact("s", &inputs).exists());
    }
}
