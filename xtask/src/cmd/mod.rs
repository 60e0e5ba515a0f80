//! The commands, one file each.

pub mod bench;
pub mod build;
pub mod build_image;
mod chain;
pub mod clean;
pub mod deny;
pub mod dev;
mod engine;
pub mod flash;
pub mod fuzz;
pub mod harden;
pub mod lock;
pub mod repro;
pub mod run;
pub mod size;
pub mod test;
pub mod why;

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};

use crate::engine::cache::Cache;
use crate::engine::graph::BuildGraph;
use crate::engine::layers;
use crate::image::machine::TEST_MACHINE;
use crate::image::places::PLACES;
use crate::image::spec::ImageSpec;

/// Machine that a command uses if none is given.
pub const DEFAULT_MACHINE: &str = "rpi4";
/// Variant that a command uses if none is given.
pub const DEFAULT_VARIANT: &str = "prod";

/// Options that select an image, shared by all commands that work on one.
#[derive(clap::Args, Clone)]
pub struct ImageArgs {
    /// Select the machine: the name of a file in configs/machines/, without .toml
    #[arg(long, default_value = DEFAULT_MACHINE)]
    pub machine: String,
    /// Select the variant: the name of a file in configs/variants/, without .toml
    #[arg(long, default_value = DEFAULT_VARIANT)]
    pub variant: String,
    /// Fail if a lock in image/locks/ is out of date, instead of resolving it again
    #[arg(long)]
    pub locked: bool,
    /// Add a layer: a folder that adds or overrides machines, recipes, kernel fragments, modules
    /// and files; later layers override earlier ones (docs/porting.md)
    #[arg(long, value_name = "DIR")]
    pub layer: Vec<PathBuf>,
}

/// The open cache and the image that a command works on.
pub struct Session {
    /// Build graph over the cache, which is locked until the session is dropped.
    pub graph: BuildGraph,
    /// The image.
    pub image: Rc<ImageSpec>,
}

impl Session {
    /// Opens the cache for an image.
    ///
    /// # Errors
    ///
    /// Fails if there is no such machine or variant, or if the cache cannot be opened.
    pub fn open(machine: &str, variant: &str, locked: bool) -> Result<Self> {
        let image = Rc::new(ImageSpec::new(machine, variant)?);
        Ok(Self { graph: BuildGraph::new(Cache::open()?, locked), image })
    }

    /// Opens the cache for the image of the tests. Commands that need only the tools use it too.
    ///
    /// # Errors
    ///
    /// Fails if the cache cannot be opened.
    pub fn open_test() -> Result<Self> {
        Self::open(TEST_MACHINE, DEFAULT_VARIANT, false)
    }
}

impl ImageArgs {
    /// Adds the layers and opens the cache.
    ///
    /// # Errors
    ///
    /// Fails if a layer is invalid, if there is no such machine or variant, or if the cache cannot
    /// be opened.
    pub fn open(&self) -> Result<Session> {
        layers::add(&self.layer, &PLACES)?;
        Session::open(&self.machine, &self.variant, self.locked)
    }
}

/// Runs a command that prints its own errors; fails if its exit status is not 0.
fn check(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {what}"))?;
    ensure!(status.success(), "{what} failed");
    Ok(())
}
