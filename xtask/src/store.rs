//! Results of steps, kept by the hash of all that went into them.
//!
//! Invariants: a folder `steps/NAME/KEY` is complete or absent (built under `tmp/`, then renamed);
//! KEY is the hash of the list of inputs that lies beside the result, so `why` can always say what
//! changed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{hash, layers, paths, progress};

pub const DISK_FULL: &str = "cannot write to the cache; is the disk full? Free some space (`cargo xtask clean` empties the cache) or move the cache with BASALT_CACHE=DIR; nothing half-done was kept";

/// What a step is made from: a name a person understands, and a hash.
#[derive(Default, Clone)]
pub struct Inputs(pub BTreeMap<String, String>);

impl Inputs {
    pub fn add(&mut self, name: impl Into<String>, hash: impl Into<String>) -> &mut Self {
        self.0.insert(name.into(), hash.into());
        self
    }

    /// A file or folder of the repository, with the layers over it.
    pub fn path(&mut self, relative: &str) -> Result<&mut Self> {
        let hash = layers::current().hash(relative)?;
        Ok(self.add(relative, hash))
    }

    /// Another step's result.
    pub fn step(&mut self, step: &Built) -> &mut Self {
        self.add(format!("step {}", step.name), &step.key)
    }

    fn text(&self) -> String {
        self.0.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect()
    }
}

/// A step's finished result.
#[derive(Clone)]
pub struct Built {
    pub name: String,
    pub key: String,
    pub dir: PathBuf,
}

impl Built {
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The cache, held by one build at a time.
pub struct Store {
    root: PathBuf,
    _lock: std::fs::File,
}

const KEPT_RESULTS: usize = 4;

impl Store {
    pub fn open() -> Result<Self> {
        let root = paths::cache()?;
        for sub in ["blobs", "steps", "tmp", "logs", "work"] {
            std::fs::create_dir_all(root.join(sub)).with_context(|| {
                format!(
                    "cannot make the cache {}; BASALT_CACHE=DIR names another place",
                    root.display()
                )
            })?;
        }
        let lock = std::fs::File::create(root.join("lock"))?;
        if lock.try_lock().is_err() {
            progress::line("another build is using the cache: waiting for it to end");
            lock.lock()?;
        }
        // Whoever held the lock before is gone, so whatever lies in tmp/ was interrupted.
        for entry in std::fs::read_dir(root.join("tmp"))? {
            remove(&entry?.path())?;
        }
        Ok(Self { root, _lock: lock })
    }

    pub fn log(&self, step: &str) -> PathBuf {
        self.root.join("logs").join(format!("{step}.log"))
    }

    /// A place for what a step needs while it runs; emptied at the next start if the step is
    /// interrupted.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Removes results, work and (unless they are to be kept) downloads.
    pub fn clear(&self, downloads: bool) -> Result<()> {
        for name in ["steps", "work", "logs", "blobs", "tools"] {
            let dir = self.root.join(name);
            if dir.exists() && (downloads || name != "blobs") {
                let gone = self.root.join("tmp").join(format!("gone-{name}"));
                std::fs::rename(&dir, &gone)?;
                remove(&gone)?;
            }
        }
        Ok(())
    }

    /// A folder that stays from build to build (cargo's target folder), private to `name`.
    pub fn work(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("work").join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Where the result of a step with these inputs is or will be.
    pub fn planned(&self, name: &str, inputs: &Inputs) -> Built {
        let key = hash::bytes(inputs.text().as_bytes());
        let dir = self.root.join("steps").join(name).join(&key[..24]).join("out");
        Built { name: name.to_owned(), key, dir }
    }

    pub fn lookup(&self, name: &str, inputs: &Inputs) -> Option<Built> {
        Some(self.planned(name, inputs)).filter(|built| built.dir.is_dir())
    }

    /// The result of a step: from the cache, or made by `build`, which fills the empty folder that
    /// it is given.
    pub fn step(
        &self,
        name: &str,
        doing: &str,
        inputs: &Inputs,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Built> {
        let built = self.planned(name, inputs);
        let key = &built.key;
        let parent = self.root.join("steps").join(name);
        let dir = parent.join(&key[..24]);
        if dir.is_dir() {
            // Marks it as used, for the clean-up.
            let _ = std::fs::File::open(&dir)
                .and_then(|d| d.set_modified(std::time::SystemTime::now()));
            progress::report(name, "cached", &key[..12]);
            return Ok(built);
        }
        let task = progress::Task::begin(name, doing);
        std::fs::create_dir_all(&parent)?;
        let temporary =
            self.root.join("tmp").join(format!("{}-{}", name.replace('/', "-"), &key[..24]));
        std::fs::create_dir_all(temporary.join("out")).context(DISK_FULL)?;
        let made = build(&temporary.join("out"));
        if made.is_err() {
            remove(&temporary)?;
        }
        made.with_context(|| {
            format!(
                "step {name} failed; nothing of it was kept. Its log: {}",
                self.log(name).display()
            )
        })?;
        std::fs::write(temporary.join("inputs"), inputs.text()).context(DISK_FULL)?;
        std::fs::rename(&temporary, &dir).context(DISK_FULL)?;
        task.done(&key[..12]);
        self.forget_old(&parent)?;
        Ok(built)
    }

    fn forget_old(&self, parent: &Path) -> Result<()> {
        let mut results = Vec::new();
        for entry in std::fs::read_dir(parent)? {
            let entry = entry?;
            results.push((entry.metadata()?.modified()?, entry.path()));
        }
        results.sort();
        results.reverse();
        for (n, (_, old)) in results.into_iter().skip(KEPT_RESULTS).enumerate() {
            // Moved away whole first: an interrupted removal must not leave half a result in its
            // place.
            let gone = self.root.join("tmp").join(format!("gone-{n}"));
            std::fs::rename(old, &gone)?;
            remove(&gone)?;
        }
        Ok(())
    }

    /// Says why a step would be made anew: every input that differs from the newest result.
    pub fn why(&self, name: &str, inputs: &Inputs) -> Result<String> {
        if self.lookup(name, inputs).is_some() {
            return Ok(format!(
                "{name}: nothing changed, the result is in the cache ({} inputs)\n",
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
        let mut answer = format!("{name}: will be built anew, because\n");
        for (name, hash) in &inputs.0 {
            match old.get(name) {
                None => answer.push_str(&format!("  new      {name}\n")),
                Some(was) if was != hash => answer.push_str(&format!(
                    "  changed  {name}  ({} -> {})\n",
                    short(was),
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

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Removes a folder even where a package left folders without write permission in it.
pub fn remove(path: &Path) -> Result<()> {
    let gone = if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    if gone.is_ok() {
        return Ok(());
    }
    let status = std::process::Command::new("chmod").args(["-R", "u+rwX"]).arg(path).status()?;
    if !status.success() {
        bail!("cannot remove {}", path.display());
    }
    std::fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Writes a whole file or nothing: temporary file, fsync, rename.
pub fn write_atomically(path: &Path, data: &[u8]) -> Result<()> {
    let parent = path.parent().context("a path without a folder")?;
    std::fs::create_dir_all(parent)?;
    let mut temporary = tempfile::NamedTempFile::new_in(parent)?;
    temporary.write_all(data).context(DISK_FULL)?;
    temporary.as_file().sync_all()?;
    temporary.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temporary.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Store {
        for sub in ["blobs", "steps", "tmp", "logs", "work"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        Store { root: dir.to_owned(), _lock: std::fs::File::create(dir.join("lock")).unwrap() }
    }

    #[test]
    fn a_result_is_kept_by_its_inputs_and_why_names_the_change() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut inputs = Inputs::default();
        inputs.add("a", "1");
        store.step("s", "", &inputs, |out| Ok(std::fs::write(out.join("x"), "1")?)).unwrap();
        store.step("s", "", &inputs, |_| panic!("must come from the cache")).unwrap();
        inputs.add("a", "2").add("b", "1");
        let why = store.why("s", &inputs).unwrap();
        assert!(why.contains("changed  a") && why.contains("new      b"), "{why}");
    }

    #[test]
    fn a_failed_step_leaves_no_result() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let inputs = Inputs::default();
        let failed = store.step("s", "", &inputs, |out| {
            std::fs::write(out.join("half"), "")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(store.lookup("s", &inputs).is_none());
    }
}
