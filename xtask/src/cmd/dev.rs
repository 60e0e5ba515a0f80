//! `cargo xtask cargo -- ARGS`: cargo inside the tools tree, offline, for the host; what the tests
//! use.

use std::path::Path;

use anyhow::{Result, bail};

use crate::class::program::offline_cargo;
use crate::paths;
use crate::plan::{Plan, Step};
use crate::sandbox::{Net, Sandbox};

#[derive(clap::Args)]
pub struct Args {
    /// What cargo is told, for example: test --package basalt-trustd
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    args: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    let plan = Plan::new(super::TEST_MACHINE, super::DEFAULT_VARIANT, false)?;
    let status =
        sandbox(&plan)?.command(std::iter::once("cargo".to_owned()).chain(args.args))?.status()?;
    if !status.success() {
        bail!("cargo failed inside the tools tree ({status})");
    }
    Ok(())
}

/// The checkout at /src (read-only), cargo's target folder at /work, a loopback network.
pub fn sandbox(plan: &Plan) -> Result<Sandbox> {
    let target = plan.store.work("target-host")?;
    let sandbox = Sandbox::new(&plan.tools()?).net(Net::Loopback);
    let sandbox = offline_cargo(plan, &Step::Vendor(None), sandbox, &target)?
        .read(paths::repo(), "/src")
        .cwd("/src")
        .env("BASALT_IN_TOOLS_TREE", "1");
    Ok(sandbox.env("CARGO_TERM_COLOR", color()).env("RUST_BACKTRACE", "1"))
}

fn color() -> &'static str {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) { "always" } else { "never" }
}

/// The tests' own folder for what they leave behind.
pub fn scratch(plan: &Plan, name: &str) -> Result<std::path::PathBuf> {
    let dir = plan.store.work(name)?;
    clean(&dir)?;
    Ok(dir)
}

fn clean(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        crate::store::remove(&entry?.path())?;
    }
    Ok(())
}
