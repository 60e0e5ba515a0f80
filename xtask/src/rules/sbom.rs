//! The software bill of materials of an image (CycloneDX 1.6 and SPDX 2.3), and the texts of the
//! licences.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::{lock, paths, toml_file};
use crate::image::recipe;
use crate::image::sbom::{Component, Subject, cyclone_dx, spdx};
use crate::image::spec::ImageSpec;
use crate::rules::program::TARGET;
use crate::rules::{crates, module, sysroot};

/// The bill of materials of one image.
struct Sbom(Rc<ImageSpec>);

/// Returns the step that writes the bill of materials of an image.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(Sbom(image.clone()))
}

impl Rule for Sbom {
    fn name(&self) -> String {
        format!("sbom-{}", self.0.machine_name)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        let mut needs = vec![sysroot::tools_step(), sysroot::step("device")];
        needs.extend(crates_steps()?);
        if !self.0.machine.firmware.is_empty() {
            needs.push(sysroot::step("firmware"));
        }
        Ok(needs)
    }

    fn inputs(&self, graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        for path in [
            "xtask/src/image/sbom.rs",
            "xtask/src/rules/crates.rs",
            "xtask/src/rules/module.rs",
            "xtask/src/rules/program.rs",
            "image/recipes",
            "configs/modules",
            "image/release.toml",
            "Cargo.toml",
        ] {
            inputs.path(path)?;
        }
        for member in recipe::members()? {
            inputs.path(&format!("{member}/Cargo.toml"))?;
        }
        for workspace in workspaces()?.into_keys().flatten() {
            inputs.path(&workspace)?;
        }
        for set in sets(&self.0)? {
            inputs.add(format!("lock {set}"), lock::load(&set, graph.locked)?.hash());
        }
        inputs.add("machine", self.0.machine_name.as_str());
        Ok(())
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let mut components = Vec::new();
        for (workspace, programs) in workspaces()? {
            let name = self.name();
            components.extend(crate_components(graph, &name, workspace.as_deref(), &programs)?);
        }
        for set in sets(&self.0)? {
            components.extend(lock::load(&set, true)?.package.into_iter().map(debian_component));
        }
        components.extend(linked_components()?);
        components.sort();
        // Two workspaces can have a crate in common.
        components.dedup();
        let name = format!("basalt-{}", self.0.machine_name);
        let release = recipe::release()?;
        let (version, time) = (release.version.as_str(), release.source_date_epoch);
        let subject = Subject { name: &name, version, time };
        write(&out.join("sbom.cdx.json"), &cyclone_dx(&subject, &components))?;
        write(&out.join("sbom.spdx.json"), &spdx(&subject, &components))?;
        licences(graph, &self.0, &components, &out.join("licences.txt"))
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Returns the package sets that something of the image comes from.
fn sets(image: &ImageSpec) -> Result<Vec<String>> {
    let mut sets = vec!["device".to_owned(), kernel_set(image)?];
    if !image.machine.firmware.is_empty() {
        sets.push("firmware".into());
    }
    Ok(sets)
}

fn kernel_set(image: &ImageSpec) -> Result<String> {
    Ok(recipe::kernel(&image.machine.kernel_recipe)?.set)
}

/// Returns the packages of the tools that programs of the image are linked with.
fn linked_components() -> Result<Vec<Component>> {
    let tools = lock::load("tools", true)?.package;
    let mut components = Vec::new();
    for linked in recipe::root()?.linked {
        let package = tools
            .iter()
            .find(|p| format!("{}:{}", p.name, p.architecture) == linked)
            .with_context(|| {
                format!("image/recipes/root.toml: the tools have no package {linked}")
            })?;
        components.push(debian_component(package.clone()));
    }
    Ok(components)
}

fn debian_component(package: lock::Package) -> Component {
    Component {
        purl: format!(
            "pkg:deb/debian/{}@{}?arch={}",
            package.name,
            package.version.replace('+', "%2B"),
            package.architecture
        ),
        name: package.name,
        version: package.version,
        sha256: package.sha256,
        licence: None,
    }
}

fn write(path: &Path, value: &Value) -> Result<()> {
    Ok(std::fs::write(path, serde_json::to_string_pretty(value)? + "\n")?)
}

/// Returns the Cargo packages of the image's programs, by workspace.
fn workspaces() -> Result<BTreeMap<Option<String>, BTreeSet<String>>> {
    let mut programs: BTreeSet<String> = recipe::root()?.programs.into_values().collect();
    for module in module::names()? {
        programs.insert(module::program_of(&module)?);
    }
    let mut found: BTreeMap<Option<String>, BTreeSet<String>> = BTreeMap::new();
    for program in programs {
        let recipe = recipe::program(&program)?;
        found.entry(recipe.workspace).or_default().insert(recipe.package);
    }
    Ok(found)
}

/// Returns the steps that vendor the crates of the image's programs.
fn crates_steps() -> Result<Vec<Step>> {
    Ok(workspaces()?.into_keys().map(|w| crates::step(w.as_deref())).collect())
}

/// The output of `cargo metadata`, as far as it is used.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Metadata {
    /// Returns the IDs of everything that is compiled into these packages of the workspace: what
    /// cargo resolves for the device, without what only builds or tests need.
    fn compiled_into(&self, programs: &BTreeSet<String>) -> Result<BTreeSet<&str>> {
        let nodes: BTreeMap<&str, &Node> =
            self.resolve.nodes.iter().map(|n| (n.id.as_str(), n)).collect();
        let mut todo = Vec::new();
        for program in programs {
            let package = self.packages.iter().find(|p| p.name == *program && p.source.is_none());
            todo.push(
                package.with_context(|| format!("cargo knows no package {program}"))?.id.as_str(),
            );
        }
        let mut ids = BTreeSet::new();
        while let Some(id) = todo.pop() {
            if !ids.insert(id) {
                continue;
            }
            for dependency in nodes.get(id).into_iter().flat_map(|node| &node.deps) {
                if dependency.dep_kinds.iter().any(|k| k.kind.is_none()) {
                    todo.push(&dependency.pkg);
                }
            }
        }
        Ok(ids)
    }
}

/// Returns the crates that are compiled into programs of one workspace. `step` names the log.
fn crate_components(
    graph: &BuildGraph,
    step: &str,
    workspace: Option<&str>,
    programs: &BTreeSet<String>,
) -> Result<Vec<Component>> {
    let target = graph.cache.work("target-sbom")?;
    let (sandbox, log) = sysroot::sandbox(graph, step)?;
    let stage = tempfile::tempdir_in(graph.cache.scratch())?;
    let source = match workspace {
        Some(folder) => {
            crates::stage_workspace(folder, stage.path())?;
            stage.path()
        }
        None => paths::repo(),
    };
    let sandbox = crates::offline_cargo(graph, &crates::step(workspace), sandbox, &target)?
        .read(source, "/src")
        .cwd("/src");
    let printed = sandbox.output(
        &log,
        ["cargo", "metadata", "--offline", "--locked", "--format-version", "1"]
            .into_iter()
            .chain(["--filter-platform", TARGET]),
    )?;
    let metadata: Metadata =
        serde_json::from_slice(&printed).context("cargo metadata printed something unexpected")?;
    let ids = metadata.compiled_into(programs)?;
    let checksums = checksums(source)?;
    let mut components = Vec::new();
    for package in
        metadata.packages.iter().filter(|p| ids.contains(p.id.as_str()) && p.source.is_some())
    {
        let key = (package.name.clone(), package.version.clone());
        let Some(sha256) = checksums.get(&key) else {
            bail!("Cargo.lock has no checksum of {} {}", package.name, package.version)
        };
        components.push(Component {
            purl: format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B")),
            name: package.name.clone(),
            version: package.version.clone(),
            sha256: sha256.clone(),
            // Older manifests separate licences by a slash instead of an SPDX operator.
            licence: package.license.as_ref().map(|l| l.replace('/', " OR ")),
        });
    }
    Ok(components)
}

/// Returns the checksums of the crates of a Cargo.lock, by name and version.
fn checksums(workspace: &Path) -> Result<BTreeMap<(String, String), String>> {
    #[derive(Deserialize)]
    struct CargoLock {
        package: Vec<Locked>,
    }
    #[derive(Deserialize)]
    struct Locked {
        name: String,
        version: String,
        checksum: Option<String>,
    }
    let lock: CargoLock = toml_file::read(&workspace.join("Cargo.lock"))?;
    Ok(lock.package.into_iter().filter_map(|p| Some(((p.name, p.version), p.checksum?))).collect())
}

/// Writes the texts of all licences, each once, with the names of the components that use it.
fn licences(
    graph: &BuildGraph,
    image: &ImageSpec,
    components: &[Component],
    path: &Path,
) -> Result<()> {
    let vendored = crates_steps()?
        .iter()
        .map(|step| Ok(graph.artifact(step)?.file("vendor")))
        .collect::<Result<Vec<_>>>()?;
    // The kernel's source is not extracted into a sysroot.
    let kernel = kernel_set(image)?;
    let sysroots = sets(image)?
        .into_iter()
        .filter(|set| *set != kernel)
        .chain(["tools".to_owned()])
        .map(|set| Ok(graph.artifact(&sysroot::step(&set))?.dir))
        .collect::<Result<Vec<_>>>()?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for component in components {
        let name = format!("{} {}", component.name, component.version);
        let files = if component.purl.starts_with("pkg:cargo/") {
            crate_licences(&vendored, component)?
        } else {
            let path = format!("usr/share/doc/{}/copyright", component.name);
            sysroots.iter().map(|sysroot| sysroot.join(&path)).collect()
        };
        for file in files.iter().filter(|f| f.is_file()) {
            let text = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    let mut all = String::from(
        "The components of this image and the texts of their licences; sbom.spdx.json has the \
         expressions.\nThe kernel: GPL-2.0 with the syscall note; its texts are in the package \
         linux-source of the bill of materials.\n",
    );
    for (text, names) in &texts {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (line, names) = ("=".repeat(80), names.join(", "));
        all.push_str(&format!("\n{line}\n{names}\n\n{}\n", text.trim_end()));
    }
    Ok(std::fs::write(path, all)?)
}

/// Returns the licence files of a vendored crate.
fn crate_licences(vendored: &[PathBuf], component: &Component) -> Result<Vec<PathBuf>> {
    const PREFIXES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];
    let folder = format!("{}-{}", component.name, component.version);
    let dir = vendored.iter().map(|vendor| vendor.join(&folder)).find(|dir| dir.is_dir());
    let dir = dir.with_context(|| format!("{folder} is not among the fetched crates"))?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let upper = entry.file_name().to_string_lossy().to_uppercase();
        if PREFIXES.iter().any(|p| upper.starts_with(p)) && entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
