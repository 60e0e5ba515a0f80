//! A sysroot: the Debian packages of one set, extracted. Nothing of a package is run.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, bail};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::lock::{self, Lock};
use crate::engine::sandbox::Sandbox;
use crate::engine::{fetch, progress, sysroot};
use crate::image::recipe;

/// The set of the programs that build and test; never part of an image.
const TOOLS: &str = "tools";

/// The sysroot of a package set.
struct Sysroot(String);

/// Returns the step that extracts a package set.
pub fn step(set: &str) -> Step {
    Rc::new(Sysroot(set.to_owned()))
}

/// Returns the step that extracts the tools.
pub fn tools_step() -> Step {
    step(TOOLS)
}

impl Rule for Sysroot {
    fn name(&self) -> String {
        format!("sysroot-{}", self.0)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(Vec::new())
    }

    fn inputs(&self, graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        inputs.add("lock", lock::load(&self.0, graph.locked)?.hash());
        Ok(())
    }

    fn label(&self) -> String {
        let packages = lock::load(&self.0, true).map_or(0, |lock| lock.package.len());
        format!("extracting {packages} packages")
    }

    fn prepare(&self, graph: &BuildGraph) -> Result<()> {
        fetch_packages(&self.0, graph.locked).map(drop)
    }

    fn build(&self, _graph: &BuildGraph, out: &Path) -> Result<()> {
        sysroot::extract(&lock::load(&self.0, true)?.package, out)
    }

    /// A number: a comment in this file or in `engine/sysroot.rs` must not rebuild the kernel. It
    /// must be raised when the files that are extracted from the same packages change.
    fn revision(&self) -> Revision {
        Revision::Number(2)
    }

    fn sandboxed(&self) -> bool {
        false
    }
}

/// Returns the folder of the tools sysroot, extracted now if it is not in the cache.
///
/// # Errors
///
/// Fails if a package cannot be fetched or extracted.
pub fn tools(graph: &BuildGraph) -> Result<PathBuf> {
    Ok(graph.build_quietly(&tools_step())?.dir)
}

/// Returns a sandbox in the tools sysroot, and the path of an empty log for this step.
///
/// # Errors
///
/// Fails if the tools cannot be extracted or the log cannot be created.
pub fn sandbox(graph: &BuildGraph, step: &str) -> Result<(Sandbox, PathBuf)> {
    let log = graph.cache.log(step);
    std::fs::write(&log, "")?;
    let epoch = recipe::release()?.source_date_epoch;
    Ok((Sandbox::new(&tools(graph)?).env("SOURCE_DATE_EPOCH", epoch.to_string()), log))
}

/// Fetches all packages of a set that are not in the download cache, and returns the lock. Resolves
/// the set again if the mirror no longer has a package, unless `locked` forbids it.
///
/// # Errors
///
/// Fails if a package cannot be fetched.
pub fn fetch_packages(set: &str, locked: bool) -> Result<Lock> {
    let lock = lock::load(set, locked)?;
    let gone = fetch::packages(&lock, set)?;
    let Some(first) = gone.first() else { return Ok(lock) };
    if locked {
        bail!(
            "the mirror no longer has {} {} ({}), of {} such packages, and --locked forbids newer \
             ones.\nRun `cargo xtask lock {set}`, or name a mirror that still has it: \
             BASALT_MIRROR=URL",
            first.name,
            first.version,
            first.architecture,
            gone.len()
        );
    }
    progress::line(&format!(
        "NOTICE: {} locked packages are gone from the mirror (first: {} {}).",
        gone.len(),
        first.name,
        first.version
    ));
    progress::line(&format!(
        "NOTICE: resolving the set {set} again: image/locks/{set}.toml changes, and so do the \
         measurements. Commit it."
    ));
    let fresh = lock::refresh(set)?;
    let gone = fetch::packages(&fresh, set)?;
    if let Some(first) = gone.first() {
        bail!(
            "the mirror lists {} {} but does not have it; it is probably being updated: retry in a \
             few minutes",
            first.name,
            first.version
        );
    }
    Ok(fresh)
}
