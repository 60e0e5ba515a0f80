//! The dependencies: cargo-deny with deny.toml, installed once into the cache from its own locked
//! sources.

use anyhow::{Context as _, Result, bail};

use crate::sandbox::host_cargo;
use crate::{paths, progress};

const VERSION: &str = "0.20.2";

pub fn run() -> Result<()> {
    let root = paths::cache()?.join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let task =
            progress::Task::begin("cargo-deny", "compiling it once, some 5 minutes on two cores");
        // Its own target folder, removed afterwards: a tool is not worth 500 MB of objects.
        let target = tempfile::tempdir()?;
        let output = host_cargo(&[
            "install",
            "--quiet",
            "--locked",
            "--debug",
            "--version",
            VERSION,
            "cargo-deny",
            "--root",
        ])
        .arg(&root)
        .env("CARGO_TARGET_DIR", target.path())
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .output()
        .context("cannot run cargo")?;
        if !output.status.success() {
            bail!(
                "cargo could not install cargo-deny:\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        task.done(VERSION);
    }
    let deny = |what: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command
            .current_dir(paths::repo())
            .args(["--log-level", "error", "check", "--hide-inclusion-graph"])
            .args(what);
        command.status()
    };
    if !deny(&["bans", "licenses", "sources"])?.success() {
        bail!("cargo-deny found something; deny.toml says what is allowed");
    }
    // The database of advisories is a repository that not every network reaches: then this is said
    // and not counted.
    if std::env::var_os("BASALT_ADVISORIES").is_some() && !deny(&["advisories"])?.success() {
        bail!("cargo-deny found an advisory, or could not fetch their database");
    }
    if std::env::var_os("BASALT_ADVISORIES").is_none() {
        progress::line(
            "advisories are not checked; BASALT_ADVISORIES=1 does, where their database can be fetched",
        );
    }
    Ok(())
}
