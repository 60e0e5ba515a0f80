//! What runs with a real Docker Engine: its tests and those of the chain, and the benches beside
//! it.

use std::path::Path;

use anyhow::{Result, bail};

use super::{dev, tools_plan};
use crate::plan::{Plan, Step};
use crate::sandbox::Sandbox;

pub(super) const TESTS: &str = "basalt-trustd/engine-tests";

/// An engine's namespaces, a registry beside it.
pub(super) fn sandbox(plan: &Plan) -> Result<Sandbox> {
    if !nix::unistd::geteuid().is_root() {
        bail!("an engine in namespaces of its own, and control groups, need root");
    }
    let state = dev::scratch(plan, "engine")?;
    let scratch = dev::scratch(plan, "gate")?;
    let services = plan.build(&Step::Tree("services".into()))?.dir;
    let programs = plan.build(&Step::Tree("programs".into()))?.dir;
    Ok(dev::sandbox(plan)?
        .engine(&state)
        .write(&scratch, "/cache")
        .read(&services, "/in")
        .env("BASALT_ENGINE_TESTS", "1")
        .env("BASALT_SERVICES", "/in/usr/bin")
        .read(&programs, "/old")
        .env("BASALT_PROGRAMS", "/old"))
}

/// Runs it to its end, and leaves no control group behind.
pub(super) fn check<S: AsRef<str>>(
    sandbox: &Sandbox,
    command: impl IntoIterator<Item = S>,
    what: &str,
) -> Result<()> {
    let result = super::check(&mut sandbox.command(command)?, what);
    // On hosts with the old control groups, empty ones outlive the namespace.
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

/// `cargo xtask bench gate`: the gate's figures beside those of the bare engine, from an optimised
/// build.
pub(super) fn bench_gate() -> Result<()> {
    let mut args = vec![
        "cargo",
        "test",
        "--offline",
        "--release",
        "--package",
        "basalt-trustd",
        "--features",
        TESTS,
    ];
    args.extend([
        "--test",
        "engine",
        "--",
        "--ignored",
        "--exact",
        "bench::figures",
        "--nocapture",
    ]);
    check(&sandbox(&tools_plan()?)?, args, "the bench")
}

/// `cargo xtask bench crypto`: from an optimised build, in the sandbox for its control groups.
pub(super) fn bench_crypto() -> Result<()> {
    check(
        &sandbox(&tools_plan()?)?,
        ["cargo", "run", "--offline", "--release", "--package", "basalt-bench"],
        "the bench",
    )
}
