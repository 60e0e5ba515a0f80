//! Programs of this repository, compiled for the device by the tools tree's Rust, offline, from
//! vendored crates.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::plan::{Plan, Step};
use crate::sandbox::{Sandbox, host_cargo};
use crate::store::Inputs;
use crate::{hash, layers, paths, recipe};

pub const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The crates that a program is compiled with.
pub fn crates(name: &str) -> Result<Step> {
    Ok(Step::Vendor(recipe::program(name)?.workspace))
}

pub fn vendor_inputs(workspace: Option<&str>, inputs: &mut Inputs) -> Result<()> {
    let lock = workspace.map_or("Cargo.lock".to_owned(), |folder| format!("{folder}/Cargo.lock"));
    let of = || {
        format!(
            "{} is a Cargo workspace of its own and needs its lock: cargo generate-lockfile",
            workspace.unwrap_or("the checkout")
        )
    };
    inputs.path(&lock).with_context(of)?.add("times", "fixed");
    Ok(())
}

/// All crates of a Cargo.lock, fetched and checked by the host's cargo.
pub fn vendor(plan: &Plan, workspace: Option<&str>, out: &Path) -> Result<()> {
    let mut command = host_cargo(&["vendor", "--locked", "--versioned-dirs", "--quiet"]);
    let stage = tempfile::tempdir_in(plan.store.scratch())?;
    if let Some(folder) = workspace {
        stage_workspace(folder, stage.path())?;
        command.arg("--manifest-path").arg(stage.path().join("Cargo.toml"));
    }
    // Where there is nothing to fetch, cargo makes no folder.
    std::fs::create_dir_all(out.join("vendor"))?;
    let output = command.arg(out.join("vendor")).output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not fetch the crates of Cargo.lock; is there a network?\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    age(&out.join("vendor"))
}

/// Gives every file one old time: cargo runs a build script again, and all that depends on it, when
/// a file looks new.
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
    inputs
        .path(&format!("{}/{name}.toml", recipe::PROGRAMS))?
        .path("xtask/src/class/program.rs")?;
    match &recipe.workspace {
        Some(folder) => inputs
            .path(folder)
            .with_context(|| format!("the recipe of {name} names {folder}, which no layer has"))?,
        None => inputs.path("Cargo.toml")?,
    };
    for source in &recipe.sources {
        inputs.path(source)?;
    }
    Ok(())
}

pub fn build(plan: &Plan, name: &str, out: &Path) -> Result<()> {
    let recipe = recipe::program(name)?;
    let stage = plan.store.work(&format!("stage-{name}"))?;
    match &recipe.workspace {
        Some(folder) => stage_workspace(folder, &stage)?,
        None => stage_sources(&stage, &recipe.sources)?,
    }
    let target = plan.store.work("target-device")?;
    let (sandbox, log) = plan.sandbox(name)?;
    let sandbox =
        offline_cargo(plan, &crates(name)?, sandbox, &target)?.write(&stage, "/src").cwd("/src");
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
pub fn offline_cargo(
    plan: &Plan,
    crates: &Step,
    sandbox: Sandbox,
    target: &Path,
) -> Result<Sandbox> {
    let planned = plan.planned(crates)?;
    let crates = if planned.dir.is_dir() { planned } else { plan.build(crates)? };
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

/// Copies a layer's own workspace into a folder, and nothing else that was there before.
pub fn stage_workspace(folder: &str, stage: &Path) -> Result<()> {
    let mut wanted = Vec::new();
    for (name, path) in layers::current().files(folder)? {
        wanted.push((name, std::fs::read(path)?));
    }
    fill(stage, &wanted)
}

/// Copies the workspace's manifests and the sources of this program into a folder of its own.
///
/// Other members get an empty crate in place of their sources (cargo wants one), so a change there
/// cannot matter here.
pub fn stage_sources(stage: &Path, sources: &[String]) -> Result<()> {
    let repo = paths::repo();
    let mut wanted: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for name in ["Cargo.toml", "Cargo.lock"] {
        wanted.push((name.into(), std::fs::read(repo.join(name))?));
    }
    for member in &recipe::members()? {
        if sources.contains(member) {
            for file in hash::walk(&repo.join(member))? {
                wanted.push((
                    Path::new(member).join(&file),
                    std::fs::read(repo.join(member).join(&file))?,
                ));
            }
        } else {
            let manifest = Path::new(member).join("Cargo.toml");
            wanted.push((
                manifest.clone(),
                skeleton(&std::fs::read_to_string(repo.join(manifest))?)?.into_bytes(),
            ));
            wanted.push((Path::new(member).join("src/lib.rs"), Vec::new()));
        }
    }
    fill(stage, &wanted)
}

/// Makes a folder hold these files and no others.
fn fill(stage: &Path, wanted: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let keep: std::collections::BTreeSet<&PathBuf> = wanted.iter().map(|(path, _)| path).collect();
    for old in hash::walk(stage)? {
        if !keep.contains(&old) {
            std::fs::remove_file(stage.join(old))?;
        }
    }
    // Written anew each time: cargo judges by times, and other programs' stages share its target
    // folder. What it makes of an older state of our own crates must never pass as fresh; they
    // compile in seconds.
    for (path, data) in wanted {
        let target = stage.join(path);
        std::fs::create_dir_all(target.parent().unwrap_or(stage))?;
        std::fs::write(target, data)?;
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
