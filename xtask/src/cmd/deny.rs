//! `cargo xtask test deny`: checks the dependencies with cargo-deny and deny.toml.
//!
//! cargo-deny is compiled once from its own locked sources and installed into the cache.

use anyhow::{Context as _, Result, bail};

use crate::engine::{host, paths, progress};

/// Version of cargo-deny.
const VERSION: &str = "0.20.2";

/// Checks bans, licences and sources; advisories only if `BASALT_ADVISORIES` is set.
///
/// # Errors
///
/// Fails if cargo-deny cannot be installed or finds a violation.
pub fn run() -> Result<()> {
    let root = paths::cache()?.join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let task =
            progress::Task::begin("cargo-deny", "compiling it once, about 5 minutes on two cores");
        // The target folder of 500 MB is removed afterwards.
        let target = tempfile::tempdir()?;
        let shell = host::shell()?;
        let install = ["install", "--quiet", "--locked", "--debug", "--version", VERSION];
        let output = host::cargo(&shell, &install)
            .args(["cargo-deny", "--root"])
            .arg(&root)
            .env("CARGO_TARGET_DIR", target.path())
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .ignore_status()
            .output()?;
        if !output.status.success() {
            bail!(
                "cargo could not install cargo-deny:\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        task.done(VERSION);
    }
    let shell = host::shell()?;
    let deny = |checks: &[&str]| {
        let args = ["--log-level", "error", "check", "--hide-inclusion-graph"];
        shell.cmd(&program).args(args).args(checks).quiet().run()
    };
    deny(&["bans", "licenses", "sources"])
        .context("cargo-deny found a violation of deny.toml; its report is above")?;
    // The database of advisories is a Git repository that not every network reaches, so it is
    // consulted only on request.
    if std::env::var_os("BASALT_ADVISORIES").is_some() {
        deny(&["advisories"])
            .context("cargo-deny found an advisory, or could not fetch their database")?;
    } else {
        progress::line(
            "advisories are not checked; set BASALT_ADVISORIES=1 where their database can be \
             fetched",
        );
    }
    Ok(())
}
