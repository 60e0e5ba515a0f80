//! Programs of this repository, compiled for the device by the tools tree's Rust, offline, from vendored crates.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::plan::{Plan, Step};
use crate::sandbox::{Sandbox, host_cargo};
use crate::store::Inputs;
use crate::{config, hash, paths, recipe};

pub const TARGET: &str = "aarch64-unknown-linux-gnu";

pub fn vendor_inputs(inputs: &mut Inputs) -> Result<()> {
    inputs.path("Cargo.lock")?.add("times", "fixed");
    Ok(())
}

/// All crates of Cargo.lock, fetched and checked by the host's cargo.
pub fn vendor(out: &Path) -> Result<()> {
    let output =
        host_cargo(&["vendor", "--locked", "--versioned-dirs", "--quiet"]).arg(out.join("vendor")).output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not fetch the crates of Cargo.lock; is there a network?\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    age(&out.join("vendor"))
}

/// Gives every file one old time: cargo runs a build script again, and all that depends on it, when a file looks new.
fn age(dir: &Path) -> Result<()> {
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            age(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            std::fs::File::open(entry.path())?.set_modified(old)?;
        }
    }
    Ok(())
}

pub fn inputs(name: &str, inputs: &mut Inputs) -> Result<()> {
    let recipe = recipe::program(name)?;
    inputs.path(&format!("image/recipes/programs/{name}.toml"))?.path("Cargo.toml")?.path("xtask/src/class/program.rs")?;
    for source in &recipe.sources {
        inputs.path(source)?;
    }
    Ok(())
}

pub fn build(plan: &Plan, name: &str, out: &Path) -> Result<()> {
    let recipe = recipe::program(name)?;
    let stage = plan.store.work(&format!("stage-{name}"))?;
    stage_sources(&stage, &recipe.sources)?;
    let target = plan.store.work("target-device")?;
    let (sandbox, log) = plan.sandbox(name)?;
    let sandbox = offline_cargo(plan, sandbox, &target)?.write(&stage, "/src").cwd("/src");
    let mut flags = "--remap-path-prefix=/src=basalt --remap-path-prefix=/vendor=crates -Clink-arg=-Wl,-z,relro,-z,now".to_owned();
    if recipe.r#static {
        flags.push_str(" -Ctarget-feature=+crt-static");
    }
    sandbox
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags)
        .env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc")
        .env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar")
        .env("PKG_CONFIG_ALLOW_CROSS", "1")
        .env("PKG_CONFIG_LIBDIR", "/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig")
        .run(
            &log,
            [
                "cargo",
                "build",
                "--profile",
                &recipe.profile,
                "--locked",
                "--offline",
                "--target",
                TARGET,
                "--package",
                &recipe.package,
                "--bins",
            ],
        )?;
    let folder = target.join(TARGET).join(&recipe.profile);
    std::fs::copy(folder.join(&recipe.package), out.join(&recipe.package))
        .with_context(|| format!("cargo built no {} in {}", recipe.package, folder.display()))?;
    Ok(())
}

/// Gives a sandbox the vendored crates and a target folder; cargo then works without network.
pub fn offline_cargo(plan: &Plan, sandbox: Sandbox, target: &Path) -> Result<Sandbox> {
    let crates = plan.planned(&Step::Vendor)?;
    let crates = if crates.dir.is_dir() { crates } else { plan.build(&Step::Vendor)? };
    std::fs::create_dir_all(target.join("cargo-home"))?;
    let text = "[source.crates-io]\nreplace-with = \"vendored\"\n[source.vendored]\ndirectory = \"/vendor\"\n";
    std::fs::write(target.join("cargo-home/config.toml"), text)?;
    Ok(sandbox
        .read(&crates.file("vendor"), "/vendor")
        .write(target, "/work")
        .env("CARGO_HOME", "/work/cargo-home")
        .env("CARGO_TARGET_DIR", "/work")
        .env("CARGO_BUILD_JOBS", Plan::jobs().to_string())
        .env("CARGO_INCREMENTAL", "0"))
}

#[derive(Deserialize)]
struct Workspace {
    workspace: Members,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<String>,
}

/// Copies the workspace's manifests and the sources of this program into a folder of its own.
///
/// Other members get an empty crate in place of their sources (cargo wants one), so a change there cannot matter here.
pub fn stage_sources(stage: &Path, sources: &[String]) -> Result<()> {
    let repo = paths::repo();
    let workspace: Workspace = config::read(&repo.join("Cargo.toml"))?;
    let mut wanted: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for name in ["Cargo.toml", "Cargo.lock"] {
        wanted.push((name.into(), std::fs::read(repo.join(name))?));
    }
    for member in &workspace.workspace.members {
        if sources.contains(member) {
            for file in hash::walk(&repo.join(member))? {
                wanted.push((Path::new(member).join(&file), std::fs::read(repo.join(member).join(&file))?));
            }
        } else {
            let manifest = Path::new(member).join("Cargo.toml");
            wanted.push((manifest.clone(), skeleton(&std::fs::read_to_string(repo.join(manifest))?)?.into_bytes()));
            wanted.push((Path::new(member).join("src/lib.rs"), Vec::new()));
        }
    }
    let keep: std::collections::BTreeSet<&PathBuf> = wanted.iter().map(|(path, _)| path).collect();
    for old in hash::walk(stage)? {
        if !keep.contains(&old) {
            std::fs::remove_file(stage.join(old))?;
        }
    }
    // Written anew each time: cargo judges by times, and other programs' stages share its target folder. What it makes of an
    // older state of our own crates must never pass as fresh; they compile in seconds.
    for (path, data) in &wanted {
        let target = stage.join(path);
        std::fs::create_dir_all(target.parent().unwrap_or(stage))?;
        std::fs::write(&target, data)?;
    }
    Ok(())
}

/// A manifest without its explicit targets, whose files are not there.
fn skeleton(manifest: &str) -> Result<String> {
    let mut table: toml::Table = toml::from_str(manifest)?;
    for key in ["bin", "test", "bench", "example", "lib"] {
        table.remove(key);
    }
    Ok(toml::to_string(&table)?)
}
