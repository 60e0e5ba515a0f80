//! The sandbox with a real Docker Engine, for the engine tests, the chain test and benchmarks.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Session, dev};
use crate::engine::graph::BuildGraph;
use crate::engine::sandbox::Sandbox;
use crate::rules::sysroot;

/// Feature of trustd that enables these tests.
pub(super) const TESTS: &str = "basalt-trustd/engine-tests";

/// Returns a sandbox in which an engine and a registry can run, with empty state.
pub(super) fn sandbox(graph: &BuildGraph) -> Result<Sandbox> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "a Docker Engine in its own namespaces and control groups needs root; run this command \
             as root"
        );
    }
    let state = dev::scratch(graph, "engine")?;
    let scratch = dev::scratch(graph, "gate")?;
    let services = graph.build(&sysroot::step("services"))?.dir;
    let programs = graph.build(&sysroot::step("programs"))?.dir;
    let engine = graph.build(&sysroot::step("engine"))?.dir;
    Ok(with_image_tools(graph, dev::sandbox(graph)?)?
        .engine(&state)
        .read(&engine, "/engine")
        .env("PATH", "/engine/usr/sbin:/engine/usr/bin:/usr/sbin:/usr/bin")
        .write(&scratch, "/cache")
        .read(&services, "/in")
        .env("BASALT_ENGINE_TESTS", "1")
        .env("BASALT_SERVICES", "/in/usr/bin")
        .read(&programs, "/old")
        .env("BASALT_PROGRAMS", "/old"))
}

/// Adds the tools that make images, and a Go toolchain, with which tests compare how archives are
/// read.
pub(super) fn with_image_tools(graph: &BuildGraph, sandbox: Sandbox) -> Result<Sandbox> {
    let image_tools = graph.build(&sysroot::step("image-tools"))?.dir;
    Ok(sandbox
        .read(&image_tools, "/images")
        .env("BASALT_IMAGE_TOOLS", "/images")
        .env("BASALT_GO", "/images/usr/lib/go-1.24/bin/go"))
}

/// Compiles trustctl in the sandbox, and adds its path to the environment.
///
/// # Errors
/// Fails if trustctl does not compile.
pub(super) fn with_trustctl(sandbox: Sandbox) -> Result<Sandbox> {
    let build = ["cargo", "build", "--offline", "--package", "trustctl"];
    super::check(&mut sandbox.command(build)?, "building trustctl")?;
    Ok(sandbox.env("BASALT_TRUSTCTL", "/work/debug/trustctl"))
}

/// Runs a command in the sandbox, then removes the control groups that are left.
pub(super) fn check<S: AsRef<str>>(
    sandbox: &Sandbox,
    command: impl IntoIterator<Item = S>,
    what: &str,
) -> Result<()> {
    let result = super::check(&mut sandbox.command(command)?, what);
    // On hosts with control groups of version 1, empty groups outlive the namespace.
    for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_below(&controller.path().join("basalt-test"));
    }
    result
}

fn remove_below(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_below(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

/// Runs `cargo xtask bench gate`: measures the gate and the engine alone, with an optimised build.
pub(super) fn bench_gate() -> Result<()> {
    let sandbox = sandbox(&Session::open_test()?.graph)?;
    run_ignored_test(&sandbox, &["--release"], "bench::figures", "the benchmark")
}

/// Runs one ignored test of trustd's engine tests; `options` are further options of cargo.
///
/// # Errors
/// Fails if the test fails. cargo succeeds if no test has this name.
pub(super) fn run_ignored_test(
    sandbox: &Sandbox,
    options: &[&str],
    test: &str,
    what: &str,
) -> Result<()> {
    let mut args = vec!["cargo", "test", "--offline"];
    args.extend(options);
    args.extend(["--package", "basalt-trustd", "--features", TESTS, "--test", "engine"]);
    args.extend(["--", "--ignored", "--exact", test, "--nocapture"]);
    check(sandbox, args, what)
}

/// Runs `cargo xtask bench log`: an optimised build, without an engine.
///
/// # Errors
/// Fails if a figure misses its limit.
pub(super) fn bench_log() -> Result<()> {
    let mut args = vec!["cargo", "test", "--offline", "--release", "--package", "basalt-trustd"];
    args.extend(["--lib", "--", "--ignored", "--exact", "admission::ledger_log::tests::figures"]);
    args.push("--nocapture");
    check(&sandbox(&Session::open_test()?.graph)?, args, "the benchmark")
}

/// Runs `cargo xtask bench crypto`: an optimised build, in the sandbox because of its control
/// groups.
pub(super) fn bench_crypto() -> Result<()> {
    check(
        &sandbox(&Session::open_test()?.graph)?,
        ["cargo", "run", "--offline", "--release", "--package", "basalt-bench"],
        "the benchmark",
    )
}
