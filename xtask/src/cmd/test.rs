//! `cargo xtask test [GROUP]...`: runs the groups of checks and tests.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::{DEFAULT_VARIANT, Session, check, dev, engine};
use crate::engine::{host, layers, lock, paths, progress, toml_file};
use crate::image::spec::output_dir;
use crate::image::{machine, recipe};
use crate::lint::{self, commands::ParseArguments};
use crate::rules::{module, sysroot};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Groups to run; without any, all groups except chain
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Run only the tests whose names contain this text
    #[arg(long)]
    filter: Option<String>,
}

/// A group of checks and tests.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Group {
    /// Check formatting, lints, imports and the documentation, and parse every file in configs/ and
    /// image/
    Lint,
    /// Check licences, sources and bans of the dependencies
    Deny,
    /// Run unit and property tests, and tests with a software TPM
    Unit,
    /// Run every fuzz target with the same 10,000 inputs (for more: cargo xtask fuzz)
    Fuzz,
    /// Test trustd with a real Docker Engine in its own namespaces (needs root)
    Engine,
    /// Boot the images in QEMU and test the nodes
    Boot,
    /// Test the registry contract, and a node with a complete Ethereum network on loopback (needs
    /// root and npm, about 15 minutes on an otherwise idle machine; runs only if it is named)
    Chain,
}

/// Groups that run if none is named.
const DEFAULT_GROUPS: [Group; 6] =
    [Group::Lint, Group::Deny, Group::Unit, Group::Fuzz, Group::Engine, Group::Boot];

/// Runs the groups one after the other, and stops at the first that fails. `parse` is the parser of
/// this program's own arguments.
///
/// # Errors
///
/// Fails if a group fails.
pub fn run(args: Args, parse: ParseArguments) -> Result<()> {
    let groups = if args.groups.is_empty() { DEFAULT_GROUPS.to_vec() } else { args.groups };
    let started = Instant::now();
    for group in &groups {
        let begun = Instant::now();
        progress::line(&format!("== {group:?} =="));
        match group {
            Group::Lint => lint(parse)?,
            Group::Deny => super::deny::run()?,
            Group::Unit => unit(args.filter.as_deref())?,
            Group::Fuzz => super::fuzz::test(&Session::open_test()?.graph)?,
            Group::Engine => engine(args.filter.as_deref())?,
            Group::Boot => boot(args.filter.as_deref())?,
            Group::Chain => super::chain::run(args.filter.as_deref())?,
        }
        progress::line(&format!(
            "== {group:?}: passed in {} ==",
            progress::seconds(begun.elapsed())
        ));
    }
    progress::line(&format!("all tests passed in {}", progress::seconds(started.elapsed())));
    Ok(())
}

fn lint(parse: ParseArguments) -> Result<()> {
    parse_all()?;
    lint::run(paths::repo(), &recipe::members()?, parse)?;
    let session = Session::open_test()?;
    let sandbox = dev::sandbox(&session.graph)?;
    check(&mut sandbox.command(["cargo", "fmt", "--all", "--check"])?, "cargo fmt --check")?;
    let lints = [
        "cargo",
        "clippy",
        "--offline",
        "--workspace",
        "--all-targets",
        "--features",
        engine::TESTS,
        "--",
        "--deny",
        "warnings",
    ];
    check(&mut sandbox.command(lints)?, "cargo clippy")
}

/// Parses every file that a build of any machine could read.
fn parse_all() -> Result<()> {
    let layers = layers::current();
    for machine in machine::names()? {
        machine::load(&machine)?;
    }
    for program in layers.names("image/recipes/programs")? {
        recipe::program(&program)?;
    }
    for module in layers.names("configs/modules")? {
        module::load(&module)?;
    }
    for service in layers.named("image/root/etc/basalt/services", "toml")?.values() {
        let _: ::config::Service = toml_file::read(service)?;
    }
    let _: ::config::Node = toml_file::read(&layers.find("configs/node.toml"))?;
    for kernel in layers.names(recipe::KERNELS)? {
        recipe::kernel(&kernel)?;
    }
    recipe::root()?;
    recipe::release()?;
    super::harden::load_accepted()?;
    for set in lock::names()? {
        lock::load(&set, true)?;
    }
    let daemon = layers.find("image/root/etc/docker/daemon.json");
    let settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&daemon)?)
        .with_context(|| format!("{} is not valid JSON", daemon.display()))?;
    // Otherwise containers would outlive a restart of the engine.
    if settings["live-restore"] != false {
        bail!("{}: live-restore: expected false", daemon.display());
    }
    let containerd = layers.find("image/root/etc/containerd/config.toml");
    let _: toml::Table = toml_file::read(&containerd)?;
    Ok(())
}

fn unit(filter: Option<&str>) -> Result<()> {
    let graph = Session::open_test()?.graph;
    let scratch = dev::scratch(&graph, "unit")?;
    let sandbox = engine::with_image_tools(&graph, dev::sandbox(&graph)?)?
        .write(&scratch, "/cache")
        .env("TMPDIR", "/cache");
    check(&mut sandbox.command(cargo_test().chain(filter))?, "cargo test")
}

/// Returns a cargo command that tests all packages except for those that need their own sandbox or
/// virtual machine. The same selection for all groups avoids compiling a package twice.
fn cargo_test<'a>() -> impl Iterator<Item = &'a str> {
    let excluded = ["basalt-bench", "basalt-ci", "basalt-fuzz"]
        .into_iter()
        .flat_map(|package| ["--exclude", package]);
    ["cargo", "test", "--offline", "--workspace"].into_iter().chain(excluded)
}

fn engine(filter: Option<&str>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        progress::line(
            "NOTICE: the engine tests are skipped because they need root; the boot tests run the \
             engine in the guest",
        );
        return Ok(());
    }
    // A low limit makes trustd transfer small images in several parts too.
    let sandbox = engine::with_trustctl(engine::sandbox(&Session::open_test()?.graph)?)?
        .env("BASALT_MIN_PART_BYTES", "65536");
    // The tests in trustd/tests/chain.rs need failpoints, which only this feature compiles in.
    let selected = [
        "--features",
        engine::TESTS,
        "--test",
        "engine",
        "--test",
        "chain",
        "--",
        "--test-threads",
        "1",
    ];
    engine::check(&sandbox, cargo_test().chain(selected).chain(filter), "the engine tests")
}

fn boot(filter: Option<&str>) -> Result<()> {
    // All machines that QEMU can emulate are built and checked.
    for machine in machine::names()? {
        if machine::load(&machine)?.qemu.is_some() {
            let session = Session::open(&machine, DEFAULT_VARIANT, false)?;
            super::build_image::build(&session)?;
            super::size::check(&session)?;
        }
    }
    let session = Session::open_test()?;
    super::harden::check(&session)?;
    let graph = &session.graph;
    let (tools, browser) = (sysroot::tools(graph)?, graph.build(&sysroot::step("browser"))?.dir);
    let scratch = dev::scratch(graph, "boot")?;
    // The lock of the cache is released: the tests are another program, which the host's cargo
    // builds, and only read the cache.
    drop(session);
    let shell = host::shell()?;
    host::cargo(&shell, &["test", "--package", "basalt-ci", "--quiet", "--"])
        .args(["--test-threads", "1", "--nocapture"])
        .args(filter)
        .env("BASALT_XTASK", std::env::current_exe()?)
        .env("BASALT_TOOLS", tools)
        .env("BASALT_BROWSER", browser)
        .env("BASALT_IMAGES", output_dir(""))
        .env("BASALT_SCRATCH", scratch)
        .run()
        .context("the boot tests failed")
}
