//! The commands, a file each.

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

use anyhow::{Context as _, Result, ensure};

use crate::plan::Plan;

pub const DEFAULT_MACHINE: &str = "rpi4";
/// QEMU's own board: the fast one, on which the long tests and the measured times are.
pub const TEST_MACHINE: &str = "virt";
pub const DEFAULT_VARIANT: &str = "prod";

/// What names an image; the same options for every command that deals with one.
#[derive(clap::Args, Clone)]
pub struct ImageArgs {
    /// A file of configs/machines/, without .toml
    #[arg(long, default_value = DEFAULT_MACHINE)]
    pub machine: String,
    /// A file of configs/variants/, without .toml
    #[arg(long, default_value = DEFAULT_VARIANT)]
    pub variant: String,
    /// Refuse to change image/locks/
    #[arg(long)]
    pub locked: bool,
    /// A folder that adds machines, recipes, fragments, modules and files, or overrides them; later
    /// ones win (docs/porting.md)
    #[arg(long, value_name = "DIR")]
    pub layer: Vec<std::path::PathBuf>,
}

/// Runs a command that says by itself what is wrong.
fn check(command: &mut std::process::Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {what}"))?;
    ensure!(status.success(), "{what} failed");
    Ok(())
}

/// For what needs the tools and no image.
pub fn tools_plan() -> Result<Plan> {
    Plan::new(TEST_MACHINE, DEFAULT_VARIANT, false)
}

impl ImageArgs {
    pub fn plan(&self) -> Result<Plan> {
        crate::layers::lay(&self.layer)?;
        Plan::new(&self.machine, &self.variant, self.locked)
    }
}
