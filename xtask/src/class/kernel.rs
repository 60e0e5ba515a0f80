//! The kernel: allnoconfig, the fragments merged onto it, and a check that every wish came true.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::plan::Plan;
use crate::store::Inputs;
use crate::{lock, paths, recipe, tree};

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    inputs.path("image/recipes/kernel.toml")?.path("image/kernel")?.path("xtask/src/class/kernel.rs")?;
    inputs.add("lock kernel", lock::load("kernel", plan.locked)?.hash());
    inputs.add("source-date-epoch", recipe::release()?.source_date_epoch.to_string());
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let recipe = recipe::kernel()?;
    let lock = lock::load("kernel", true)?;
    let work = tempfile::tempdir_in(plan.store.scratch())?;
    unpack(&recipe, &lock, work.path())?;
    let source = std::fs::read_dir(work.path())?.flatten().map(|e| e.file_name()).next().context("the source archive is empty")?;
    std::fs::rename(work.path().join(source), work.path().join("src"))?;
    std::fs::create_dir(work.path().join("build"))?;

    let epoch = recipe::release()?.source_date_epoch;
    let (sandbox, log) = plan.sandbox("kernel")?;
    let sandbox = sandbox
        .write(work.path(), "/work")
        .read(&paths::repo().join("image/kernel"), "/in")
        .cwd("/work/src")
        .env("ARCH", &recipe.arch)
        .env("CROSS_COMPILE", &recipe.cross)
        .env("KBUILD_BUILD_TIMESTAMP", format!("@{epoch}"))
        .env("KBUILD_BUILD_USER", "basalt")
        .env("KBUILD_BUILD_HOST", "basalt")
        .env("KCONFIG_NOTIMESTAMP", "1");
    for patch in glob("image/kernel/patches/*.patch")? {
        sandbox.run(&log, ["patch", "-p1", "--no-backup-if-mismatch", "-i", &format!("/in/patches/{patch}")])?;
    }
    let fragments = glob("image/kernel/*.config")?;
    let mut merge = vec!["./scripts/kconfig/merge_config.sh".to_owned(), "-n".into(), "-O".into(), "/work/build".into()];
    merge.extend(fragments.iter().map(|f| format!("/in/{f}")));
    sandbox.run(&log, merge)?;
    check(&recipe, &fragments, &std::fs::read_to_string(work.path().join("build/.config"))?)?;

    let mut make = vec!["make".to_owned(), format!("-j{}", Plan::jobs()), "-s".into(), "O=/work/build".into(), "DTC_FLAGS=-@".into()];
    make.extend(recipe.targets.iter().cloned());
    make.extend(recipe.dtbs.iter().cloned());
    sandbox.run(&log, make)?;

    let built = work.path().join("build");
    for target in &recipe.targets {
        std::fs::copy(built.join("arch").join(&recipe.arch).join("boot").join(target), out.join(target))?;
    }
    std::fs::create_dir(out.join("dtbs"))?;
    for dtb in &recipe.dtbs {
        let name = Path::new(dtb).file_name().context("a dtb without a name")?;
        std::fs::copy(built.join("arch").join(&recipe.arch).join("boot/dts").join(dtb), out.join("dtbs").join(name))?;
    }
    std::fs::copy(built.join(".config"), out.join("config"))?;
    Ok(())
}

fn unpack(recipe: &recipe::Kernel, lock: &lock::Lock, work: &Path) -> Result<()> {
    let package = lock
        .package
        .iter()
        .find(|p| p.name == recipe.package)
        .with_context(|| format!("the lock of the set kernel has no {}", recipe.package))?;
    tree::with_data(package, |deb| {
        for entry in deb.entries()? {
            let entry = entry?;
            if entry.path()? == Path::new(&recipe.archive) {
                let mut source = tar::Archive::new(liblzma::read::XzDecoder::new(entry));
                source.set_preserve_ownerships(false);
                source.unpack(work)?;
                return Ok(());
            }
        }
        bail!("the package {} holds no {}", recipe.package, recipe.archive)
    })
}

/// File names (without folder) that match a pattern in the repository, sorted.
fn glob(pattern: &str) -> Result<Vec<String>> {
    let full = paths::repo().join(pattern);
    let mut names = Vec::new();
    for path in glob::glob(&full.to_string_lossy())? {
        names.push(path?.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// kconfig drops a symbol whose dependencies are not met without a word: every wish must be in the final configuration.
fn check(recipe: &recipe::Kernel, fragments: &[String], config: &str) -> Result<()> {
    let mut wishes = String::new();
    for fragment in fragments {
        wishes.push_str(&std::fs::read_to_string(paths::repo().join("image/kernel").join(fragment))?);
    }
    let mut problems = unfulfilled(&wishes, config);
    for symbol in &recipe.absent {
        if config.lines().any(|l| l == format!("CONFIG_{symbol}=y") || l == format!("CONFIG_{symbol}=m")) {
            problems.push(format!("CONFIG_{symbol} is set and must be absent (image/recipes/kernel.toml)"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("the kernel's final configuration is not the one that image/kernel/ asks for:\n  {}", problems.join("\n  "))
}

fn unfulfilled(wishes: &str, config: &str) -> Vec<String> {
    let lines: std::collections::BTreeSet<&str> = config.lines().collect();
    let mut last = std::collections::BTreeMap::new();
    for line in wishes.lines() {
        // A later fragment overrules an earlier one.
        if let Some(name) = line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set")) {
            last.insert(name, None);
        } else if let Some((name, _)) = line.split_once('=').filter(|(name, _)| name.starts_with("CONFIG_")) {
            last.insert(name, Some(line));
        }
    }
    let mut problems = Vec::new();
    for (name, wish) in last {
        let found = config.lines().find(|l| l.starts_with(&format!("{name}="))).unwrap_or("not set");
        match wish {
            Some(wish) if !lines.contains(wish) => problems.push(format!("wanted {wish}, found {found}")),
            None if found != "not set" => problems.push(format!("wanted {name} off, found {found}")),
            _ => {}
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::unfulfilled;

    #[test]
    fn wishes_that_kconfig_dropped_are_named() {
        let wishes = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_B=\"x\"\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n";
        let problems = unfulfilled(wishes, config);
        assert_eq!(problems, ["wanted CONFIG_B=\"x\", found not set", "wanted CONFIG_C off, found CONFIG_C=y"]);
    }
}
