//! `cargo xtask test [GROUP]...`

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{check, dev, engine, tools_plan};
use crate::plan::{Plan, Step};
use crate::{config, paths, progress, tree};

#[derive(clap::Args)]
pub struct Args {
    /// What to run; everything when nothing is named
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Only tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Group {
    /// Formatting, lints, and that every file under configs/ and image/ parses
    Lint,
    /// Licences, sources and fences of the dependencies
    Deny,
    /// Unit and property tests, and those with a software TPM
    Unit,
    /// Every fuzz target with the same 10,000 inputs (cargo xtask fuzz for more)
    Fuzz,
    /// trustd against a real Docker Engine in its own namespaces (root only)
    Engine,
    /// The image in QEMU
    Boot,
    /// The registry contract, and a node against a whole Ethereum network on loopback: some fifteen
    /// minutes, alone on the machine; needs root and the host's npm, and runs only when named
    Chain,
}

/// Of everything.
const ALL: [Group; 6] =
    [Group::Lint, Group::Deny, Group::Unit, Group::Fuzz, Group::Engine, Group::Boot];

pub fn run(args: Args) -> Result<()> {
    let groups = if args.groups.is_empty() { ALL.to_vec() } else { args.groups };
    let started = Instant::now();
    for group in &groups {
        let begun = Instant::now();
        progress::line(&format!("== {group:?} =="));
        match group {
            Group::Lint => lint()?,
            Group::Deny => super::deny::run()?,
            Group::Unit => unit(args.filter.as_deref())?,
            Group::Fuzz => super::fuzz::short(&tools_plan()?)?,
            Group::Engine => engine(args.filter.as_deref())?,
            Group::Boot => boot(args.filter.as_deref())?,
            Group::Chain => super::chain::run(args.filter.as_deref())?,
        }
        progress::line(&format!("== {group:?}: good, {} ==", progress::seconds(begun.elapsed())));
    }
    progress::line(&format!("all tests passed in {}", progress::seconds(started.elapsed())));
    Ok(())
}

fn lint() -> Result<()> {
    parse_all()?;
    let plan = tools_plan()?;
    let sandbox = dev::sandbox(&plan)?;
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

/// Every file that a build could read is read, whatever machine it is for.
fn parse_all() -> Result<()> {
    let layers = crate::layers::current();
    for machine in crate::machine::names()? {
        crate::machine::load(&machine)?;
    }
    for program in layers.names("image/recipes/programs")? {
        crate::recipe::program(&program)?;
    }
    for module in layers.names("configs/modules")? {
        crate::class::module::load(&module)?;
    }
    for service in layers.named("image/root/etc/basalt/services", "toml")?.values() {
        let _: ::config::Service = config::read(service)?;
    }
    let _: ::config::Node = config::read(&layers.find("configs/node.toml"))?;
    for kernel in layers.names(crate::recipe::KERNELS)? {
        crate::recipe::kernel(&kernel)?;
    }
    crate::recipe::root()?;
    crate::recipe::release()?;
    super::harden::accepted()?;
    for set in tree::names()? {
        crate::lock::load(&set, true)?;
    }
    let daemon = layers.find("image/root/etc/docker/daemon.json");
    let _: serde_json::Value = serde_json::from_slice(&std::fs::read(&daemon)?)
        .with_context(|| format!("{}", daemon.display()))?;
    let containerd = layers.find("image/root/etc/containerd/config.toml");
    let _: toml::Table = config::read(&containerd)?;
    Ok(())
}

fn unit(filter: Option<&str>) -> Result<()> {
    let plan = tools_plan()?;
    let scratch = dev::scratch(&plan, "unit")?;
    let sandbox = dev::sandbox(&plan)?.write(&scratch, "/cache").env("TMPDIR", "/cache");
    check(&mut sandbox.command(cargo_test().chain(filter))?, "cargo test")
}

/// All packages but those that need a machine of their own. With the same selection for all groups
/// nothing is compiled twice.
fn cargo_test<'a>() -> impl Iterator<Item = &'a str> {
    let left_out = ["basalt-bench", "basalt-ci", "basalt-fuzz"]
        .into_iter()
        .flat_map(|package| ["--exclude", package]);
    ["cargo", "test", "--offline", "--workspace"].into_iter().chain(left_out)
}

fn engine(filter: Option<&str>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        progress::line(
            "NOTICE: the engine tests need root and are left out; the boot tests have the engine in the guest",
        );
        return Ok(());
    }
    // Small images go into the engine in parts too.
    let sandbox = engine::sandbox(&tools_plan()?)?.env("BASALT_PART", "65536");
    // Those of the chain end processes at steps that only these have.
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
    // Every machine that QEMU has a board for.
    for machine in crate::machine::names()? {
        if crate::machine::load(&machine)?.qemu.is_some() {
            let plan = Plan::new(&machine, super::DEFAULT_VARIANT, false)?;
            super::build_image::build(&plan)?;
            super::size::check(&plan)?;
        }
    }
    let plan = tools_plan()?;
    super::harden::check(&plan)?;
    let (tools, browser) = (plan.tools()?, plan.build(&Step::Tree("browser".into()))?.dir);
    let scratch = dev::scratch(&plan, "boot")?;
    // From here on the cache is only read; the tests are another program, built by the host's cargo
    // like this one.
    drop(plan);
    let mut command = crate::sandbox::host_cargo(&[
        "test",
        "--package",
        "basalt-ci",
        "--quiet",
        "--",
        "--test-threads",
        "1",
        "--nocapture",
    ]);
    command
        .args(filter)
        .env("BASALT_XTASK", std::env::current_exe()?)
        .env("BASALT_TOOLS", tools)
        .env("BASALT_BROWSER", browser)
        .env("BASALT_IMAGES", paths::output(""))
        .env("BASALT_SCRATCH", scratch);
    check(&mut command, "the boot tests")
}
