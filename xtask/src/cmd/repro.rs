//! `cargo xtask repro`: the same image again, from another folder, with another cache, as another
//! user, with another user mask, time zone, locale and job count.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::store::Built;
use crate::{hash, paths, progress, store};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
    /// Build the kernel again too (some 12 minutes, twice that on one processor); otherwise its
    /// result is taken over
    #[arg(long)]
    kernel: bool,
}

pub fn run(args: Args) -> Result<()> {
    let plan = args.image.plan()?;
    super::build_image::build(&plan)?;
    let out = paths::output(&plan.machine_name);
    let work = plan.store.work("repro")?;
    for left in std::fs::read_dir(&work)? {
        // Of a run that was killed.
        store::remove(&left?.path())?;
    }
    let other = tempfile::tempdir_in(work)?;
    let (checkout, cache) =
        (other.path().join("another/checkout"), other.path().join("another-cache"));
    copy_checkout(&checkout)?;
    std::fs::create_dir_all(&cache)?;
    let own = paths::cache()?;
    let layers = args
        .image
        .layer
        .iter()
        .map(|dir| dir.canonicalize())
        .collect::<std::io::Result<Vec<_>>>()?;
    // What was downloaded was checked by hash; it need not come over the network twice.
    std::os::unix::fs::symlink(own.join("blobs"), cache.join("blobs"))?;
    if !args.kernel {
        std::fs::create_dir_all(cache.join("steps"))?;
        let kernel = own.join("steps").join(plan.name(&plan.kernel()));
        let status = Command::new("cp").arg("-a").args([kernel, cache.join("steps")]).status()?;
        anyhow::ensure!(status.success(), "cannot copy the kernel's result");
    }
    let mut steps = Vec::new();
    for step in plan.steps()? {
        steps.push(plan.planned(&step)?);
    }
    drop(plan);
    progress::line("building again in another folder with an empty cache, as an ordinary user");
    let script = "umask 077 && exec \"$@\"";
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let status = Command::new("/proc/self/exe")
        .args([
            "as-user",
            "sh",
            "-c",
            script,
            "sh",
            &cargo,
            "xtask",
            "build-image",
            "--machine",
            &args.image.machine,
            "--variant",
            &args.image.variant,
        ])
        .args(layers.iter().flat_map(|dir| [std::ffi::OsStr::new("--layer"), dir.as_os_str()]))
        .current_dir(&checkout)
        .env("BASALT_CACHE", &cache)
        .env("BASALT_CONFIG", trustctl::keys::folder()?)
        .env("BASALT_JOBS", "1")
        .env("TZ", "Pacific/Chatham")
        .env("LC_ALL", "tr_TR.UTF-8")
        .env_remove("BASALT_XTASK")
        .status()
        .context("cannot run cargo again")?;
    anyhow::ensure!(status.success(), "the second build failed");
    if compare(&out, &checkout.join("target/image").join(&args.image.machine))? {
        println!("identical to the bit");
        return Ok(());
    }
    bail!("{}", first_difference(&steps, &cache)?)
}

fn copy_checkout(to: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(paths::repo())
        .output()
        .context("cannot run git")?;
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|n| !n.is_empty()) {
        let (from, to) = (paths::repo().join(name), to.join(name));
        if from.exists() {
            std::fs::create_dir_all(to.parent().unwrap_or(&to))?;
            std::fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Compares what the user gets, file by file.
fn compare(one: &Path, two: &Path) -> Result<bool> {
    let mut same = true;
    let all: std::collections::BTreeSet<_> =
        hash::walk(one)?.into_iter().chain(hash::walk(two)?).collect();
    for name in all {
        let equal = one.join(&name).is_file()
            && two.join(&name).is_file()
            && hash::file(&one.join(&name))? == hash::file(&two.join(&name))?;
        println!("{} {}", if equal { "same     " } else { "DIFFERENT" }, name.display());
        same &= equal;
    }
    Ok(same)
}

/// The first step, in the order of building, whose result differs, and the first file in it: an
/// image differs because of that.
fn first_difference(steps: &[Built], cache: &Path) -> Result<String> {
    for step in steps {
        let key = step.key.get(..24).unwrap_or_default();
        let other = cache.join("steps").join(&step.name).join(key).join("out");
        if !other.is_dir() {
            return Ok(format!(
                "the second build made the step {} from other inputs; it has no result for {key}",
                step.name
            ));
        }
        // Trees and crates are unpacked downloads, which were checked.
        if step.name.starts_with("tree-") || step.name == "crates" {
            continue;
        }
        for name in hash::walk(&step.dir)? {
            let (a, b) = (step.dir.join(&name), other.join(&name));
            let link = |path: &Path| std::fs::read_link(path).ok();
            let same = link(&a) == link(&b)
                && (a.is_symlink() || (b.is_file() && hash::file(&a)? == hash::file(&b)?));
            if !same {
                return Ok(format!(
                    "the builds differ first in the step {}, file {}",
                    step.name,
                    name.display()
                ));
            }
        }
    }
    Ok("the images differ, and every step gave the same: they were put together differently".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |base: &str, step: &str, name: &str, text: &str| {
            let path = dir
                .path()
                .join(base)
                .join("steps")
                .join(step)
                .join("0".repeat(24))
                .join("out")
                .join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let built = |step: &str| Built {
            name: step.into(),
            key: "0".repeat(64),
            dir: dir.path().join("one/steps").join(step).join("0".repeat(24)).join("out"),
        };
        let steps = [built("trustd"), built("root-virt")];
        let found = || first_difference(&steps, &dir.path().join("two")).unwrap();
        for base in ["one", "two"] {
            write(base, "trustd", "trustd", "same");
            write(base, "root-virt", "etc/a", "same");
        }
        assert!(found().contains("every step gave the same"));
        write("two", "root-virt", "etc/a", "other");
        assert!(found().ends_with("step root-virt, file etc/a"), "{}", found());
        write("two", "trustd", "trustd", "other");
        assert!(found().ends_with("step trustd, file trustd"), "{}", found());
        std::fs::remove_dir_all(dir.path().join("two/steps/trustd")).unwrap();
        assert!(found().contains("other inputs"));
    }
}
