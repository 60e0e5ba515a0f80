//! What an image is made of: bills of materials (CycloneDX 1.6, SPDX 2.3) and the licences' texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::program::{TARGET, offline_cargo, stage_workspace};
use crate::plan::{Plan, Step};
use crate::store::Inputs;
use crate::{class, hash, lock, paths, recipe};

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs
        .path("xtask/src/class/parts.rs")?
        .path("image/recipes")?
        .path("configs/modules")?
        .path("image/release.toml")?;
    inputs
        .path("Cargo.toml")?
        .path("xtask/src/class/program.rs")?
        .path("xtask/src/class/module.rs")?;
    for member in recipe::members()? {
        inputs.path(&format!("{member}/Cargo.toml"))?;
    }
    for workspace in workspaces()?.into_keys().flatten() {
        inputs.path(&workspace)?;
    }
    for set in sets(plan)? {
        inputs.add(format!("lock {set}"), lock::load(&set, plan.locked)?.hash());
    }
    inputs.add("machine", plan.machine_name.as_str());
    Ok(())
}

/// The package sets that something of the image comes from.
fn sets(plan: &Plan) -> Result<Vec<String>> {
    let mut sets = vec!["device".to_owned(), kernel_set(plan)?];
    if !plan.machine.firmware.is_empty() {
        sets.push("firmware".into());
    }
    Ok(sets)
}

fn kernel_set(plan: &Plan) -> Result<String> {
    Ok(recipe::kernel(&plan.machine.kernel_recipe)?.set)
}

/// One thing that somebody else made.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    name: String,
    version: String,
    /// Package URL.
    purl: String,
    sha256: String,
    /// An SPDX expression, where its maker gives one.
    licence: Option<String>,
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let mut parts = Vec::new();
    for (workspace, programs) in workspaces()? {
        parts.extend(crates(plan, workspace.as_deref(), &programs)?);
    }
    for set in sets(plan)? {
        parts.extend(lock::load(&set, true)?.package.into_iter().map(of_debian));
    }
    let tools = lock::load("tools", true)?.package;
    for wanted in recipe::root()?.linked {
        let found = tools.iter().find(|p| format!("{}:{}", p.name, p.architecture) == wanted);
        parts.push(of_debian(
            found
                .with_context(|| {
                    format!("image/recipes/root.toml: the tools have no package {wanted}")
                })?
                .clone(),
        ));
    }
    parts.sort();
    // Two workspaces can have a crate in common.
    parts.dedup();
    let name = format!("basalt-{}", plan.machine_name);
    let release = recipe::release()?;
    let time = timestamp(release.source_date_epoch);
    write(&out.join("sbom.cdx.json"), &cyclone_dx(&name, &release.version, &time, &parts))?;
    write(&out.join("sbom.spdx.json"), &spdx(&name, &release.version, &time, &parts))?;
    licences(plan, &parts, &out.join("licences.txt"))
}

fn of_debian(package: lock::Package) -> Part {
    Part {
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

/// The Cargo packages of the image's programs, by the workspace that they are in.
fn workspaces() -> Result<BTreeMap<Option<String>, BTreeSet<String>>> {
    let mut programs: BTreeSet<String> = recipe::root()?.programs.into_values().collect();
    for module in class::module::names()? {
        programs.insert(class::module::program(&module)?);
    }
    let mut found: BTreeMap<Option<String>, BTreeSet<String>> = BTreeMap::new();
    for program in programs {
        let recipe = recipe::program(&program)?;
        found.entry(recipe.workspace).or_default().insert(recipe.package);
    }
    Ok(found)
}

pub fn crates_steps() -> Result<Vec<Step>> {
    Ok(workspaces()?.into_keys().map(Step::Vendor).collect())
}

/// The crates that are compiled into programs of one workspace: what cargo resolves for the device,
/// without what only builds or tests need.
fn crates(plan: &Plan, workspace: Option<&str>, programs: &BTreeSet<String>) -> Result<Vec<Part>> {
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
    let target = plan.store.work("target-parts")?;
    let (sandbox, log) = plan.sandbox("parts")?;
    let stage = tempfile::tempdir_in(plan.store.scratch())?;
    let source = match workspace {
        Some(folder) => {
            stage_workspace(folder, stage.path())?;
            stage.path()
        }
        None => paths::repo(),
    };
    let crates = Step::Vendor(workspace.map(str::to_owned));
    let sandbox = offline_cargo(plan, &crates, sandbox, &target)?.read(source, "/src").cwd("/src");
    let printed = sandbox.output(
        &log,
        [
            "cargo",
            "metadata",
            "--offline",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            TARGET,
        ],
    )?;
    let metadata: Metadata =
        serde_json::from_slice(&printed).context("cargo metadata printed something unexpected")?;
    let edges: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|n| (n.id.as_str(), n)).collect();

    let mut todo = Vec::new();
    for wanted in programs {
        let found = metadata.packages.iter().find(|p| p.name == *wanted && p.source.is_none());
        todo.push(found.with_context(|| format!("cargo knows no package {wanted}"))?.id.as_str());
    }
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in edges.get(id).into_iter().flat_map(|node| &node.deps) {
            if dependency.dep_kinds.iter().any(|k| k.kind.is_none()) {
                todo.push(&dependency.pkg);
            }
        }
    }
    let checksums = checksums(source)?;
    let mut parts = Vec::new();
    for package in
        metadata.packages.iter().filter(|p| seen.contains(p.id.as_str()) && p.source.is_some())
    {
        let key = (package.name.clone(), package.version.clone());
        let Some(sha256) = checksums.get(&key) else {
            bail!("Cargo.lock has no checksum of {} {}", package.name, package.version)
        };
        parts.push(Part {
            purl: format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B")),
            name: package.name.clone(),
            version: package.version.clone(),
            sha256: sha256.clone(),
            // The slash is how expressions were written before SPDX.
            licence: package.license.as_ref().map(|l| l.replace('/', " OR ")),
        });
    }
    Ok(parts)
}

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
    let lock: CargoLock = crate::config::read(&workspace.join("Cargo.lock"))?;
    Ok(lock.package.into_iter().filter_map(|p| Some(((p.name, p.version), p.checksum?))).collect())
}

fn cyclone_dx(name: &str, version: &str, time: &str, parts: &[Part]) -> Value {
    let components: Vec<Value> = parts
        .iter()
        .map(|part| {
            let mut component = json!({
                "type": "library", "bom-ref": part.purl, "name": part.name, "version": part.version, "purl": part.purl,
                "hashes": [{ "alg": "SHA-256", "content": part.sha256 }],
            });
            if let Some(licence) = &part.licence {
                component["licenses"] = json!([{ "expression": licence }]);
            }
            component
        })
        .collect();
    json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": { "timestamp": time, "component": { "type": "operating-system", "bom-ref": name, "name": name, "version": version } },
        "components": components,
    })
}

fn spdx(name: &str, version: &str, time: &str, parts: &[Part]) -> Value {
    let id = |purl: &str| format!("SPDXRef-{}", &hash::bytes(purl.as_bytes())[..16]);
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-image", "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
    })];
    let mut relationships = vec![
        json!({ "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-image" }),
    ];
    for part in parts {
        packages.push(json!({
            "SPDXID": id(&part.purl), "name": part.name, "versionInfo": part.version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
            "checksums": [{ "algorithm": "SHA256", "checksumValue": part.sha256 }],
            "externalRefs": [{ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": part.purl }],
            "licenseConcluded": "NOASSERTION", "licenseDeclared": part.licence.as_deref().unwrap_or("NOASSERTION"), "copyrightText": "NOASSERTION",
        }));
        relationships
            .push(json!({ "spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": id(&part.purl) }));
    }
    // Must differ from document to document.
    let content = hash::bytes(
        parts.iter().map(|p| format!("{} {}\n", p.purl, p.sha256)).collect::<String>().as_bytes(),
    );
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": name,
        "documentNamespace": format!("urn:basalt:{name}:{version}:{content}"),
        "creationInfo": { "created": time, "creators": [format!("Tool: basalt-xtask-{version}")] },
        "packages": packages, "relationships": relationships,
    })
}

/// All licences' texts, each once, with those whom it is of.
fn licences(plan: &Plan, parts: &[Part], path: &Path) -> Result<()> {
    let kernel = kernel_set(plan)?;
    let vendors = crates_steps()?
        .iter()
        .map(|step| Ok(plan.planned(step)?.file("vendor")))
        .collect::<Result<Vec<_>>>()?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for part in parts {
        let name = format!("{} {}", part.name, part.version);
        let mut files = Vec::new();
        if part.purl.starts_with("pkg:cargo/") {
            let folder = vendors
                .iter()
                .map(|vendor| vendor.join(format!("{}-{}", part.name, part.version)))
                .find(|dir| dir.is_dir());
            for entry in
                std::fs::read_dir(folder.with_context(|| {
                    format!("{name} is not among the crates that were fetched")
                })?)?
            {
                let file = entry?;
                let upper = file.file_name().to_string_lossy().to_uppercase();
                if ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"]
                    .iter()
                    .any(|start| upper.starts_with(start))
                    && file.file_type()?.is_file()
                {
                    files.push(file.path());
                }
            }
        } else {
            // The kernel's source is not laid out as a tree.
            for set in
                sets(plan)?.into_iter().filter(|set| *set != kernel).chain(["tools".to_owned()])
            {
                files.push(
                    plan.planned(&Step::Tree(set))?
                        .file("usr/share/doc")
                        .join(&part.name)
                        .join("copyright"),
                );
            }
        }
        for file in files.iter().filter(|f| f.is_file()) {
            texts
                .entry(String::from_utf8_lossy(&std::fs::read(file)?).into_owned())
                .or_default()
                .insert(name.clone());
        }
    }
    let mut all = String::from(
        "What this image is made of and under which terms; sbom.spdx.json has the expressions.\nThe kernel: GPL-2.0 with the syscall note, its texts are in the package linux-source of the bill of materials.\n",
    );
    for (text, names) in &texts {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        all.push_str(&format!(
            "\n{}\n{}\n\n{}\n",
            "=".repeat(80),
            names.join(", "),
            text.trim_end()
        ));
    }
    Ok(std::fs::write(path, all)?)
}

/// RFC 3339 in UTC, from seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut left) = (1970, days);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    format!(
        "{year:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        month + 1,
        left + 1,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // date -u -d @SECONDS +%FT%TZ
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_219_200, "2026-11-21T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn every_part_is_in_both_bills() {
        let part = |name: &str| Part {
            name: name.into(),
            version: "1".into(),
            purl: format!("pkg:cargo/{name}@1"),
            sha256: "00".into(),
            licence: Some("MIT OR Apache-2.0".into()),
        };
        let parts = [part("a"), part("b")];
        let cdx = cyclone_dx("x", "0", "t", &parts);
        assert_eq!(cdx["components"].as_array().unwrap().len(), 2);
        assert_eq!(cdx["components"][1]["purl"], "pkg:cargo/b@1");
        let spdx = spdx("x", "0", "t", &parts);
        let ids: BTreeSet<&str> = spdx["packages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["SPDXID"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), 3);
        for relation in spdx["relationships"].as_array().unwrap() {
            assert!(ids.contains(relation["relatedSpdxElement"].as_str().unwrap()));
        }
    }
}
