//! The kernel: allnoconfig, the fragments merged onto it, and a check that every wish came true.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::plan::Plan;
use crate::store::Inputs;
use crate::{layers, lock, recipe, tree};

pub fn inputs(plan: &Plan, name: &str, inputs: &mut Inputs) -> Result<()> {
    let recipe = recipe::kernel(name)?;
    inputs.path(&format!("{}/{name}.toml", recipe::KERNELS))?.path("xtask/src/class/kernel.rs")?;
    for folder in recipe.fragments.iter().chain(&recipe.patches) {
        inputs.path(folder)?;
    }
    inputs.add(format!("lock {}", recipe.set), lock::load(&recipe.set, plan.locked)?.hash());
    inputs.add("source-date-epoch", recipe::release()?.source_date_epoch.to_string());
    Ok(())
}

pub fn build(plan: &Plan, name: &str, out: &Path) -> Result<()> {
    let recipe = recipe::kernel(name)?;
    let lock = lock::load(&recipe.set, true)?;
    let work = tempfile::tempdir_in(plan.store.scratch())?;
    unpack(&recipe, &lock, work.path())?;
    let source = std::fs::read_dir(work.path())?
        .flatten()
        .map(|e| e.file_name())
        .next()
        .context("the source archive is empty")?;
    std::fs::rename(work.path().join(source), work.path().join("src"))?;
    std::fs::create_dir(work.path().join("build"))?;
    let (fragments, patches) = stage(&recipe, &work.path().join("in"))?;

    let epoch = recipe::release()?.source_date_epoch;
    let (sandbox, log) = plan.sandbox(name)?;
    let sandbox = sandbox
        .write(work.path(), "/work")
        .cwd("/work/src")
        .env("ARCH", &recipe.arch)
        .env("CROSS_COMPILE", &recipe.cross)
        .env("KBUILD_BUILD_TIMESTAMP", format!("@{epoch}"))
        .env("KBUILD_BUILD_USER", "basalt")
        .env("KBUILD_BUILD_HOST", "basalt")
        .env("KCONFIG_NOTIMESTAMP", "1");
    for patch in patches {
        sandbox.run(
            &log,
            ["patch", "-p1", "--no-backup-if-mismatch", "-i", &format!("/work/in/{patch}")],
        )?;
    }
    let mut merge = vec![
        "./scripts/kconfig/merge_config.sh".to_owned(),
        "-n".into(),
        "-O".into(),
        "/work/build".into(),
    ];
    merge.extend(fragments.iter().map(|(name, _)| format!("/work/in/{name}")));
    sandbox.run(&log, merge)?;
    check(&recipe, &fragments, &std::fs::read_to_string(work.path().join("build/.config"))?)?;

    let mut make = vec![
        "make".to_owned(),
        format!("-j{}", Plan::jobs()),
        "-s".into(),
        "O=/work/build".into(),
        "DTC_FLAGS=-@".into(),
    ];
    make.extend(recipe.targets.iter().cloned());
    make.push("dtbs".into());
    sandbox.run(&log, make)?;

    let boot = work.path().join("build/arch").join(&recipe.arch).join("boot");
    for target in &recipe.targets {
        std::fs::copy(boot.join(target), out.join(target))?;
    }
    std::fs::create_dir(out.join("dtbs"))?;
    for pattern in &recipe.dtbs {
        let mut found = 0;
        for dtb in glob::glob(&boot.join("dts").join(pattern).to_string_lossy())? {
            let dtb = dtb?;
            std::fs::copy(
                &dtb,
                out.join("dtbs").join(dtb.file_name().context("a dtb without a name")?),
            )?;
            found += 1;
        }
        ensure!(
            found > 0,
            "the kernel built no device tree that matches {pattern:?} ({}/{name}.toml)",
            recipe::KERNELS
        );
    }
    std::fs::copy(work.path().join("build/.config"), out.join("config"))?;
    Ok(())
}

/// A fragment's name in the order of merging, and its text.
type Fragment = (String, String);

/// Lays fragments and patches into one folder, wherever they come from; answers their names in
/// order.
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

fn unpack(recipe: &recipe::Kernel, lock: &lock::Lock, work: &Path) -> Result<()> {
    let package =
        lock.package.iter().find(|p| p.name == recipe.package).with_context(|| {
            format!("the lock of the set {} has no {}", recipe.set, recipe.package)
        })?;
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

/// kconfig drops a symbol whose dependencies are not met without a word: every wish must be in the
/// final configuration.
fn check(recipe: &recipe::Kernel, fragments: &[Fragment], config: &str) -> Result<()> {
    let wishes: String = fragments.iter().map(|(_, text)| text.as_str()).collect();
    let mut problems = unfulfilled(&wishes, config);
    for symbol in &recipe.absent {
        if config
            .lines()
            .any(|l| l == format!("CONFIG_{symbol}=y") || l == format!("CONFIG_{symbol}=m"))
        {
            problems
                .push(format!("CONFIG_{symbol} is set and must be absent (absent of its recipe)"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel's final configuration is not the one that its fragments ask for:\n  {}",
        problems.join("\n  ")
    )
}

fn unfulfilled(wishes: &str, config: &str) -> Vec<String> {
    let lines: std::collections::BTreeSet<&str> = config.lines().collect();
    let mut last = std::collections::BTreeMap::new();
    for line in wishes.lines() {
        // A later fragment overrules an earlier one.
        if let Some(name) = line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set")) {
            last.insert(name, None);
        } else if let Some((name, _)) =
            line.split_once('=').filter(|(name, _)| name.starts_with("CONFIG_"))
        {
            last.insert(name, Some(line));
        }
    }
    let mut problems = Vec::new();
    for (name, wish) in last {
        let found =
            config.lines().find(|l| l.starts_with(&format!("{name}="))).unwrap_or("not set");
        match wish {
            Some(wish) if !lines.contains(wish) => {
                problems.push(format!("wanted {wish}, found {found}"))
            }
            None if found != "not set" => {
                problems.push(format!("wanted {name} off, found {found}"))
            }
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
        assert_eq!(
            problems,
            ["wanted CONFIG_B=\"x\", found not set", "wanted CONFIG_C off, found CONFIG_C=y"]
        );
    }
}
