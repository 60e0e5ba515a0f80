//! `cargo xtask test chain`: tests the registry contract alone, then a node against a complete
//! Ethereum network on this machine.
//!
//! The host's npm fetches the packages by lock files with the hash of every package, and runs none
//! of their scripts. Node.js of the package set `programs` runs them in the sandbox, without access
//! to a network.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Session, check, dev, engine};
use crate::engine::graph::BuildGraph;
use crate::engine::{hash, host, paths, progress};
use crate::rules::sysroot;

/// Requirement that error messages name.
const NPM: &str = "npm on the host (Debian: apt install npm), which fetches the compiler and the \
    nodes of the network";

/// Runs the tests; with a filter, only those of the network.
pub(super) fn run(filter: Option<&str>) -> Result<()> {
    let graph = Session::open_test()?.graph;
    if filter.is_none() {
        test_contract(&graph)?;
    }
    test_network(graph)
}

/// Fetches the npm packages of a folder with a lock file and returns the folder that has them.
fn fetch_packages(graph: &BuildGraph, folder: &str) -> Result<PathBuf> {
    let from = paths::repo().join(folder);
    let lock = hash::file(&from.join("package-lock.json"))?;
    let dir = graph.cache.work(&format!("npm-{}", &lock[..16]))?;
    let done = dir.join(".complete");
    if done.exists() {
        return Ok(dir);
    }
    progress::line(&format!("{folder}: npm fetches the packages of the lock file"));
    for name in ["package.json", "package-lock.json", ".npmrc"] {
        std::fs::copy(from.join(name), dir.join(name))
            .with_context(|| format!("cannot copy {folder}/{name}"))?;
    }
    let local = from.join("snappy");
    if local.exists() {
        copy(&local, &dir.join("snappy"))?;
    }
    let shell = host::shell()?;
    shell.change_dir(&dir);
    let npm = shell.cmd("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    npm.quiet().run().with_context(|| {
        format!(
            "npm ci failed in {}; is the package registry reachable? These tests need {NPM}",
            dir.display()
        )
    })?;
    std::fs::write(done, "")?;
    Ok(dir)
}

/// Copies a folder with everything in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in
        std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?
    {
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

/// Runs the unit tests of the contract and compares random votes with a model.
fn test_contract(graph: &BuildGraph) -> Result<()> {
    let packages = fetch_packages(graph, "contracts")?;
    let programs = graph.build(&sysroot::step("programs"))?.dir;
    let scratch = dev::scratch(graph, "contracts")?;
    copy(&paths::repo().join("contracts"), &scratch.join("contracts"))?;
    copy(&paths::repo().join("docs"), &scratch.join("docs"))?;
    std::fs::create_dir(scratch.join("contracts/node_modules"))?;
    let sandbox = dev::sandbox(graph)?
        .read(&programs, "/old")
        // Node.js loads a part of its library from there.
        .read(&programs.join("usr/share"), "/usr/share")
        .write(&scratch, "/cache")
        .read(&packages.join("node_modules"), "/cache/contracts/node_modules")
        .cwd("/cache/contracts")
        .env("LD_LIBRARY_PATH", "/old/usr/lib/x86_64-linux-gnu");
    check(
        &mut sandbox.command(["/old/usr/bin/node", "--test", "test/"])?,
        "the tests of the contract",
    )
}

/// Runs the test of the Ethereum network, which the engine tests leave out.
fn test_network(graph: BuildGraph) -> Result<()> {
    let sandbox = engine::sandbox(&graph)?;
    let packages = fetch_packages(&graph, "ci/devnet")?;
    let recording = dev::scratch(&graph, "chain")?;
    let scratch = graph.cache.work("gate")?;
    for name in ["npm", "recording"] {
        std::fs::create_dir(scratch.join(name))?;
    }
    let mut sandbox = engine::with_trustctl(sandbox)?
        .read(&packages, "/cache/npm")
        .write(&recording, "/cache/recording")
        .env("BASALT_DEVNET", "/cache/npm")
        .env("BASALT_CHAIN_RECORDING", "/cache/recording");
    // Selects a sync committee of 512 keys, to record the data again that the other tests replay.
    const FULL_COMMITTEE: &str = "BASALT_CHAIN_512";
    if let Ok(value) = std::env::var(FULL_COMMITTEE) {
        sandbox = sandbox.env(FULL_COMMITTEE, value);
    }
    // The lock of the cache is released: the test only reads the cache, and takes minutes.
    drop(graph);
    engine::run_ignored_test(&sandbox, &[], "chain::a_real_network_decides", "the chain test")?;
    // cargo succeeds if no test has this name, so the recording shows whether the test ran.
    if std::fs::read_dir(&recording)?.next().is_none() {
        bail!("the chain test did not run: it recorded nothing in {}", recording.display());
    }
    progress::line(&format!(
        "the network is recorded in {}; lib/ledger/tests/ethereum has the recordings that other \
         tests replay",
        recording.display()
    ));
    Ok(())
}

/// Runs `cargo xtask bench ledger`: an optimised build, with a recorded bundle of 512 keys.
pub(super) fn bench() -> Result<()> {
    let graph = Session::open_test()?.graph;
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
    check(&mut dev::sandbox(&graph)?.command(args)?, "the benchmark")
}
