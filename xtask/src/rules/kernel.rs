//! The kernel: `allnoconfig`, the fragments merged into it, and a check that the final
//! configuration has every requested symbol.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::sandbox::Sandbox;
use crate::engine::{fetch, host, layers, lock};
use crate::image::recipe;
use crate::image::spec::ImageSpec;
use crate::rules::sysroot;

/// The kernel of one recipe.
struct Kernel(String);

/// Returns the step that builds the kernel of an image's machine.
pub fn step(image: &ImageSpec) -> Step {
    Rc::new(Kernel(image.machine.kernel_recipe.clone()))
}

impl Rule for Kernel {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(vec![sysroot::tools_step()])
    }

    fn inputs(&self, graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        let recipe = recipe::kernel(&self.0)?;
        inputs.path(&format!("{}/{}.toml", recipe::KERNELS, self.0))?;
        for folder in recipe.fragments.iter().chain(&recipe.patches) {
            inputs.path(folder)?;
        }
        let lock = lock::load(&recipe.set, graph.locked)?;
        inputs.add(format!("lock {}", recipe.set), lock.hash());
        inputs.add("source-date-epoch", recipe::release()?.source_date_epoch.to_string());
        Ok(())
    }

    fn label(&self) -> String {
        "configuring and compiling, about 12 minutes on two cores".into()
    }

    fn prepare(&self, graph: &BuildGraph) -> Result<()> {
        sysroot::fetch_packages(&recipe::kernel(&self.0)?.set, graph.locked).map(drop)
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let recipe = recipe::kernel(&self.0)?;
        let work = tempfile::tempdir_in(graph.cache.scratch())?;
        let (sandbox, log) = sysroot::sandbox(graph, &self.0)?;
        unpack(&recipe, &sandbox, &log, work.path())?;
        std::fs::create_dir(work.path().join("build"))?;
        let (fragments, patches) = stage(&recipe, &work.path().join("in"))?;
        let sandbox = environment(&recipe, sandbox)?.write(work.path(), "/work").cwd("/work/src");
        for patch in patches {
            let patch = format!("/work/in/{patch}");
            sandbox.run(&log, ["patch", "-p1", "--no-backup-if-mismatch", "-i", &patch])?;
        }
        let mut merge = ["./scripts/kconfig/merge_config.sh", "-n", "-O", "/work/build"]
            .map(str::to_owned)
            .to_vec();
        merge.extend(fragments.iter().map(|(name, _)| format!("/work/in/{name}")));
        sandbox.run(&log, merge)?;
        let config = work.path().join("build/.config");
        check(&recipe, &fragments, &std::fs::read_to_string(&config)?)?;
        let jobs = format!("-j{}", host::jobs());
        let mut make = vec!["make", &jobs, "-s", "O=/work/build", "DTC_FLAGS=-@"];
        make.extend(recipe.targets.iter().map(String::as_str));
        make.push("dtbs");
        sandbox.run(&log, make)?;
        collect(&self.0, &recipe, &work.path().join("build"), out)
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Adds the variables that kbuild reads, so that neither the user nor the time enters the kernel.
fn environment(recipe: &recipe::Kernel, sandbox: Sandbox) -> Result<Sandbox> {
    let epoch = recipe::release()?.source_date_epoch;
    Ok(sandbox
        .env("ARCH", &recipe.arch)
        .env("CROSS_COMPILE", &recipe.cross)
        .env("KBUILD_BUILD_TIMESTAMP", format!("@{epoch}"))
        .env("KBUILD_BUILD_USER", "basalt")
        .env("KBUILD_BUILD_HOST", "basalt")
        .env("KCONFIG_NOTIMESTAMP", "1"))
}

/// Unpacks the kernel's source into the folder `src` of `work`.
///
/// The package is an `ar` archive with a `data.tar.xz`, and that has the source as another
/// `.tar.xz`.
fn unpack(recipe: &recipe::Kernel, sandbox: &Sandbox, log: &Path, work: &Path) -> Result<()> {
    let lock = lock::load(&recipe.set, true)?;
    let package =
        lock.package.iter().find(|p| p.name == recipe.package).with_context(|| {
            format!("the lock of the set {} has no {}", recipe.set, recipe.package)
        })?;
    let blob = fetch::blob(&package.sha256)?;
    let (folder, name) = (blob.parent().context("no blob folder")?, &package.sha256);
    let script = format!(
        "set -o pipefail; mkdir src && ar p /in/{name} data.tar.xz | xz -dc | \
         tar -xO '{}' | xz -dc | tar -x --no-same-owner --strip-components=1 -C src",
        recipe.archive
    );
    let sandbox = sandbox.clone().read(folder, "/in").write(work, "/work").cwd("/work");
    sandbox
        .run(log, ["bash", "-c", &script])
        .with_context(|| format!("cannot unpack {} of {}", recipe.archive, recipe.package))
}

/// A fragment's name in the order of merging, and its text.
type Fragment = (String, String);

/// Copies fragments and patches of all layers into one folder; returns their names in order.
fn stage(recipe: &recipe::Kernel, to: &Path) -> Result<(Vec<Fragment>, Vec<String>)> {
    std::fs::create_dir(to)?;
    let (mut fragments, mut patches) = (Vec::new(), Vec::new());
    for (n, folder) in recipe.fragments.iter().enumerate() {
        for (stem, path) in layers::current().named(folder, "config")? {
            let (name, text) = (format!("{n}-{stem}.config"), std::fs::read_to_string(path)?);
            std::fs::write(to.join(&name), &text)?;
            fragments.push((name, text));
        }
    }
    if let Some(folder) = &recipe.patches {
        for (stem, path) in layers::current().named(folder, "patch")? {
            let name = format!("{stem}.patch");
            std::fs::copy(path, to.join(&name))?;
            patches.push(name);
        }
    }
    Ok((fragments, patches))
}

/// Copies the kernel images, the device trees and the configuration out of the build folder.
fn collect(name: &str, recipe: &recipe::Kernel, build: &Path, out: &Path) -> Result<()> {
    let boot = build.join("arch").join(&recipe.arch).join("boot");
    for target in &recipe.targets {
        std::fs::copy(boot.join(target), out.join(target))?;
    }
    std::fs::create_dir(out.join("dtbs"))?;
    for pattern in &recipe.dtbs {
        let mut found = 0;
        for dtb in glob::glob(&boot.join("dts").join(pattern).to_string_lossy())? {
            let dtb = dtb?;
            let file = dtb.file_name().context("a device tree without a name")?;
            std::fs::copy(&dtb, out.join("dtbs").join(file))?;
            found += 1;
        }
        ensure!(
            found > 0,
            "the kernel built no device tree that matches {pattern:?} ({}/{name}.toml)",
            recipe::KERNELS
        );
    }
    std::fs::copy(build.join(".config"), out.join("config"))?;
    Ok(())
}

/// Checks the final configuration: kconfig silently drops a symbol whose dependencies are not met.
fn check(recipe: &recipe::Kernel, fragments: &[Fragment], config: &str) -> Result<()> {
    let requested: String = fragments.iter().map(|(_, text)| text.as_str()).collect();
    let mut problems = unmet(&requested, config);
    for symbol in &recipe.absent {
        let set = [format!("CONFIG_{symbol}=y"), format!("CONFIG_{symbol}=m")];
        if config.lines().any(|line| set.iter().any(|s| s == line)) {
            problems
                .push(format!("CONFIG_{symbol} is set and must be absent (absent of its recipe)"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel's final configuration differs from what its fragments request:\n  {}",
        problems.join("\n  ")
    )
}

/// Returns one line for each requested symbol that the final configuration does not have.
fn unmet(requested: &str, config: &str) -> Vec<String> {
    let lines: BTreeSet<&str> = config.lines().collect();
    let mut last = BTreeMap::new();
    for line in requested.lines() {
        // A later fragment overrides an earlier one.
        if let Some(name) = line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set")) {
            last.insert(name, None);
        } else if let Some((name, _)) =
            line.split_once('=').filter(|(name, _)| name.starts_with("CONFIG_"))
        {
            last.insert(name, Some(line));
        }
    }
    let mut problems = Vec::new();
    for (name, request) in last {
        let found =
            config.lines().find(|l| l.starts_with(&format!("{name}="))).unwrap_or("not set");
        match request {
            Some(request) if !lines.contains(request) => {
                problems.push(format!("requested {request}, found {found}"))
            }
            None if found != "not set" => {
                problems.push(format!("requested {name} off, found {found}"))
            }
            _ => {}
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::unmet;

    #[test]
    fn requests_that_kconfig_dropped_are_named() {
        let requested = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\n\
             CONFIG_B=\"x\"\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n";
        assert_eq!(
            unmet(requested, config),
            ["requested CONFIG_B=\"x\", found not set", "requested CONFIG_C off, found CONFIG_C=y"]
        );
    }
}
