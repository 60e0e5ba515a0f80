//! `cargo xtask test chain`: the registry contract by itself, then a node against a whole network
//! of Ethereum's on this machine.
//!
//! What runs comes from npm, by lock files with the hash of every package; the host's npm fetches
//! it and runs none of its scripts, and Node.js of the set `programs` runs it, in the sandbox,
//! without a network.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{check, dev, engine, tools_plan};
use crate::plan::{Plan, Step};
use crate::{hash, paths, progress};

const WANTED: &str = "npm of the host (Debian: apt install npm; nodejs.org), which fetches the compiler and the network's nodes";

pub(super) fn run(filter: Option<&str>) -> Result<()> {
    let plan = tools_plan()?;
    if filter.is_none() {
        contracts(&plan)?;
    }
    network(plan)
}

/// The packages of a folder with a lock file, in a place of their own.
fn packages(plan: &Plan, folder: &str) -> Result<PathBuf> {
    let from = paths::repo().join(folder);
    let lock = hash::file(&from.join("package-lock.json"))?;
    let dir = plan.store.work(&format!("npm-{}", &lock[..16]))?;
    let done = dir.join(".complete");
    if done.exists() {
        return Ok(dir);
    }
    progress::line(&format!("{folder}: npm fetches what its lock file names"));
    for name in ["package.json", "package-lock.json", ".npmrc"] {
        std::fs::copy(from.join(name), dir.join(name))
            .with_context(|| format!("{folder}/{name}"))?;
    }
    let local = from.join("snappy");
    if local.exists() {
        copy(&local, &dir.join("snappy"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir);
    match npm.status() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            bail!("npm ci failed in {} ({status}); is the registry reached?", dir.display())
        }
        Err(error) => bail!("these tests need {WANTED}: {error}"),
    }
    std::fs::write(done, "")?;
    Ok(dir)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Unit tests, and random votes held against a model.
fn contracts(plan: &Plan) -> Result<()> {
    let packages = packages(plan, "contracts")?;
    let programs = plan.build(&Step::Tree("programs".into()))?.dir;
    let scratch = dev::scratch(plan, "contracts")?;
    copy(&paths::repo().join("contracts"), &scratch.join("contracts"))?;
    copy(&paths::repo().join("docs"), &scratch.join("docs"))?;
    std::fs::create_dir(scratch.join("contracts/node_modules"))?;
    let sandbox = dev::sandbox(plan)?
        .read(&programs, "/old")
        // Node.js has a part of itself there.
        .read(&programs.join("usr/share"), "/usr/share")
        .write(&scratch, "/cache")
        .read(&packages.join("node_modules"), "/cache/contracts/node_modules")
        .cwd("/cache/contracts")
        .env("LD_LIBRARY_PATH", "/old/usr/lib/x86_64-linux-gnu");
    check(&mut sandbox.command(["/old/usr/bin/node", "--test", "test/"])?, "the contract's tests")
}

/// One test of the engine's, which is left out there.
fn network(plan: Plan) -> Result<()> {
    let sandbox = engine::sandbox(&plan)?;
    let packages = packages(&plan, "ci/devnet")?;
    let recording = dev::scratch(&plan, "chain")?;
    let scratch = plan.store.work("gate")?;
    for place in ["npm", "recording"] {
        std::fs::create_dir(scratch.join(place))?;
    }
    let mut sandbox = sandbox
        .read(&packages, "/cache/npm")
        .write(&recording, "/cache/recording")
        .env("BASALT_DEVNET", "/cache/npm")
        .env("BASALT_CHAIN_RECORDING", "/cache/recording");
    // For who records anew what the other tests replay.
    const WIDE: &str = "BASALT_CHAIN_512";
    if let Ok(value) = std::env::var(WIDE) {
        sandbox = sandbox.env(WIDE, value);
    }
    check(
        &mut sandbox.command(["cargo", "build", "--offline", "--package", "trustctl"])?,
        "building trustctl",
    )?;
    let sandbox = sandbox.env("BASALT_TRUSTCTL", "/work/debug/trustctl");
    // From here on the cache is only read; the network takes its time.
    drop(plan);
    let mut args = vec![
        "cargo",
        "test",
        "--offline",
        "--package",
        "basalt-trustd",
        "--features",
        engine::TESTS,
    ];
    args.extend([
        "--test",
        "engine",
        "--",
        "--ignored",
        "--exact",
        "chain::a_real_network_decides",
        "--nocapture",
    ]);
    engine::check(&sandbox, args, "the test of the chain")?;
    // A test by another name would be none.
    if std::fs::read_dir(&recording)?.next().is_none() {
        bail!("the test of the chain ran nothing: it recorded nothing in {}", recording.display());
    }
    progress::line(&format!(
        "what happened is recorded in {}; lib/ledger/tests/ethereum has what the other tests replay",
        recording.display()
    ));
    Ok(())
}

/// `cargo xtask bench ledger`: from an optimised build, with a recorded bundle of 512 keys.
pub(super) fn bench() -> Result<()> {
    let plan = tools_plan()?;
    let mut args = vec![
        "cargo",
        "test",
        "--offline",
        "--release",
        "--package",
        "basalt-ledger",
        "--features",
        "ethereum",
    ];
    args.extend(["--test", "devnet", "--", "--ignored", "--exact", "figures", "--nocapture"]);
    check(&mut dev::sandbox(&plan)?.command(args)?, "the bench")
}
