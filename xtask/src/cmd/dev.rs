//! `cargo xtask cargo -- ARGS`: cargo in the sandbox with the tools sysroot, offline, for the host.
//! The tests use the same sandbox.

use std::path::Path;

use anyhow::{Result, bail};

use super::Session;
use crate::engine::graph::BuildGraph;
use crate::engine::sandbox::{Net, Sandbox};
use crate::engine::{cache, paths};
use crate::rules::{crates, sysroot};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments for cargo, for example: test --package basalt-trustd
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    args: Vec<String>,
}

/// Runs cargo in the sandbox.
///
/// # Errors
///
/// Fails if the sandbox cannot be set up or cargo fails.
pub fn run(args: Args) -> Result<()> {
    let session = Session::open_test()?;
    let status = sandbox(&session.graph)?
        .command(std::iter::once("cargo".to_owned()).chain(args.args))?
        .status()?;
    if !status.success() {
        bail!("cargo failed in the sandbox ({status})");
    }
    Ok(())
}

/// Returns a sandbox with the checkout at /src (read-only), cargo's target folder at /work, and a
/// loopback network.
///
/// # Errors
///
/// Fails if the tools cannot be extracted or the crates cannot be fetched.
pub fn sandbox(graph: &BuildGraph) -> Result<Sandbox> {
    let target = graph.cache.work("target-host")?;
    let sandbox = Sandbox::new(&sysroot::tools(graph)?).net(Net::Loopback);
    let sandbox = crates::offline_cargo(graph, &crates::step(None), sandbox, &target)?
        .read(paths::repo(), "/src")
        .cwd("/src")
        .env("BASALT_IN_TOOLS_SYSROOT", "1");
    Ok(sandbox.env("CARGO_TERM_COLOR", color()).env("RUST_BACKTRACE", "1"))
}

fn color() -> &'static str {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) { "always" } else { "never" }
}

/// Returns an empty folder in the cache for the files of a test.
///
/// # Errors
///
/// Fails if the folder cannot be created or emptied.
pub fn scratch(graph: &BuildGraph, name: &str) -> Result<std::path::PathBuf> {
    let dir = graph.cache.work(name)?;
    remove_contents(&dir)?;
    Ok(dir)
}

fn remove_contents(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        cache::remove(&entry?.path())?;
    }
    Ok(())
}
