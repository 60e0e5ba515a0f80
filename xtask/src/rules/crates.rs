//! The crates of a Cargo workspace, fetched by the host's cargo and vendored; and cargo in the
//! sandbox, which uses them without a network.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::sandbox::Sandbox;
use crate::engine::{hash, host, layers, paths};
use crate::image::recipe;

/// The vendored crates of the checkout's workspace, or of one that a layer has in this folder.
struct Crates(Option<String>);

/// Returns the step that vendors the crates of a workspace: `None` for the checkout's.
pub fn step(workspace: Option<&str>) -> Step {
    Rc::new(Crates(workspace.map(str::to_owned)))
}

impl Rule for Crates {
    fn name(&self) -> String {
        match &self.0 {
            None => "crates".into(),
            Some(workspace) => {
                format!("crates-{}", workspace.rsplit('/').next().unwrap_or(workspace))
            }
        }
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(Vec::new())
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        let workspace = self.0.as_deref();
        let lock =
            workspace.map_or("Cargo.lock".to_owned(), |folder| format!("{folder}/Cargo.lock"));
        inputs.path(&lock).with_context(|| {
            format!(
                "{} is a Cargo workspace of its own and needs its lock: cargo generate-lockfile",
                workspace.unwrap_or("the checkout")
            )
        })?;
        Ok(())
    }

    fn label(&self) -> String {
        "fetching crates".into()
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let shell = host::shell()?;
        let mut vendor =
            host::cargo(&shell, &["vendor", "--locked", "--versioned-dirs", "--quiet"]);
        let stage = tempfile::tempdir_in(graph.cache.scratch())?;
        if let Some(folder) = &self.0 {
            stage_workspace(folder, stage.path())?;
            vendor = vendor.arg("--manifest-path").arg(stage.path().join("Cargo.toml"));
        }
        // If there is nothing to fetch, cargo creates no folder.
        std::fs::create_dir_all(out.join("vendor"))?;
        let output = vendor.arg(out.join("vendor")).ignore_status().output()?;
        ensure!(
            output.status.success(),
            "cargo could not fetch the crates of Cargo.lock; is there a network?\n{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        set_old_times(&out.join("vendor"))
    }

    /// A number: vendored crates are checked against Cargo.lock, whatever this file contains.
    fn revision(&self) -> Revision {
        Revision::Number(1)
    }

    fn sandboxed(&self) -> bool {
        false
    }
}

/// Sets one old time on every file: cargo runs a build script again, and rebuilds everything that
/// depends on it, if a file looks new.
fn set_old_times(dir: &Path) -> Result<()> {
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            set_old_times(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            std::fs::File::open(entry.path())?.set_modified(old)?;
        }
    }
    Ok(())
}

/// Adds the vendored crates and a target folder to a sandbox; cargo then works without a network.
///
/// # Errors
///
/// Fails if the crates cannot be fetched or the target folder cannot be written.
pub fn offline_cargo(
    graph: &BuildGraph,
    crates: &Step,
    sandbox: Sandbox,
    target: &Path,
) -> Result<Sandbox> {
    let crates = graph.build_quietly(crates)?;
    std::fs::create_dir_all(target.join("cargo-home"))?;
    let text = "[source.crates-io]\nreplace-with = \"vendored\"\n\
                [source.vendored]\ndirectory = \"/vendor\"\n";
    std::fs::write(target.join("cargo-home/config.toml"), text)?;
    Ok(sandbox
        .read(&crates.file("vendor"), "/vendor")
        .write(target, "/work")
        .env("CARGO_HOME", "/work/cargo-home")
        .env("CARGO_TARGET_DIR", "/work")
        .env("CARGO_BUILD_JOBS", host::jobs().to_string())
        .env("CARGO_INCREMENTAL", "0"))
}

/// Makes `stage` a copy of a layer's own workspace, and removes everything else from it.
///
/// # Errors
///
/// Fails if a file cannot be read or written.
pub fn stage_workspace(folder: &str, stage: &Path) -> Result<()> {
    let mut files = Vec::new();
    for (name, path) in layers::current().files(folder)? {
        files.push((name, std::fs::read(path)?));
    }
    replace_files(stage, &files)
}

/// Makes `stage` a copy of the checkout's workspace with the sources of one program.
///
/// Cargo requires every member to exist, so the other members are replaced by empty crates. A
/// change in them therefore cannot affect the program.
///
/// # Errors
///
/// Fails if a file cannot be read or written, or a manifest is invalid.
pub fn stage_sources(stage: &Path, sources: &[String]) -> Result<()> {
    let repo = paths::repo();
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for name in ["Cargo.toml", "Cargo.lock"] {
        files.push((name.into(), std::fs::read(repo.join(name))?));
    }
    for member in &recipe::members()? {
        if sources.contains(member) {
            for file in hash::walk(&repo.join(member))? {
                files.push((
                    Path::new(member).join(&file),
                    std::fs::read(repo.join(member).join(&file))?,
                ));
            }
        } else {
            let manifest = Path::new(member).join("Cargo.toml");
            files.push((
                manifest.clone(),
                skeleton(&std::fs::read_to_string(repo.join(manifest))?)?.into_bytes(),
            ));
            files.push((Path::new(member).join("src/lib.rs"), Vec::new()));
        }
    }
    replace_files(stage, &files)
}

/// Makes a folder contain these files and no others.
fn replace_files(stage: &Path, files: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let keep: std::collections::BTreeSet<&PathBuf> = files.iter().map(|(path, _)| path).collect();
    for old in hash::walk(stage)? {
        if !keep.contains(&old) {
            std::fs::remove_file(stage.join(old))?;
        }
    }
    // Written again each time: cargo compares times, and the stages of other programs share its
    // target folder. An object of an older state of our own crates must never pass as fresh; they
    // compile in seconds.
    for (path, data) in files {
        let target = stage.join(path);
        std::fs::create_dir_all(target.parent().unwrap_or(stage))?;
        std::fs::write(target, data)?;
    }
    Ok(())
}

/// Returns a manifest without its explicit targets, whose files do not exist.
fn skeleton(manifest: &str) -> Result<String> {
    let mut table: toml::Table = toml::from_str(manifest)?;
    for key in ["bin", "test", "bench", "example", "lib"] {
        table.remove(key);
    }
    Ok(toml::to_string(&table)?)
}
