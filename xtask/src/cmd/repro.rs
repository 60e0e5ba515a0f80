//! `cargo xtask repro`: builds the same image again in another folder, with another cache, as
//! another user, and with another umask, time zone, locale and job count.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::build;
use crate::engine::cache::{self, Artifact, KEY_LEN};
use crate::engine::{hash, host, paths, progress};
use crate::image::spec::output_dir;
use crate::rules::kernel;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
    /// Build the kernel again too, instead of reusing its result (about 12 minutes, twice as long
    /// on one processor)
    #[arg(long)]
    kernel: bool,
}

/// Builds the image twice, and reports the first step and file that differ.
///
/// # Errors
///
/// Fails if a build fails or the two results differ.
pub fn run(args: Args) -> Result<()> {
    let session = args.image.open()?;
    super::build_image::build(&session)?;
    let out = output_dir(&session.image.machine_name);
    let work = session.graph.cache.work("repro")?;
    // A run that was killed leaves its files.
    for stale in std::fs::read_dir(&work)? {
        cache::remove(&stale?.path())?;
    }
    let other = tempfile::tempdir_in(work)?;
    let (checkout, cache) =
        (other.path().join("another/checkout"), other.path().join("another-cache"));
    copy_checkout(&checkout)?;
    std::fs::create_dir_all(&cache)?;
    let first_cache = paths::cache()?;
    let layers = args
        .image
        .layer
        .iter()
        .map(|dir| dir.canonicalize())
        .collect::<std::io::Result<Vec<_>>>()?;
    // Downloads are verified by hash, so both builds can use the same ones.
    std::os::unix::fs::symlink(first_cache.join("blobs"), cache.join("blobs"))?;
    if !args.kernel {
        std::fs::create_dir_all(cache.join("steps"))?;
        let kernel = first_cache.join("steps").join(kernel::step(&session.image).name());
        let shell = host::shell()?;
        shell.cmd("cp").arg("-a").args([kernel, cache.join("steps")]).quiet().run()?;
    }
    let mut steps = Vec::new();
    for step in build::steps(&session)? {
        steps.push(session.graph.artifact(&step)?);
    }
    drop(session);
    progress::line("building again in another folder with an empty cache, as an ordinary user");
    let script = "umask 077 && exec \"$@\"";
    let cargo = host::cargo_path();
    let (machine, variant) = (&args.image.machine, &args.image.variant);
    let status = Command::new("/proc/self/exe")
        .args(["as-user", "sh", "-c", script, "sh"])
        .arg(cargo)
        .args(["xtask", "build-image", "--no-trustctl"])
        .args(["--machine", machine, "--variant", variant])
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
        println!("both builds are identical");
        return Ok(());
    }
    bail!("{}", first_difference(&steps, &cache)?)
}

/// Copies the files of the checkout that Git does not ignore.
fn copy_checkout(to: &Path) -> Result<()> {
    let shell = host::shell()?;
    let options = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let names = shell.cmd("git").args(options).quiet().output()?.stdout;
    for name in String::from_utf8(names)?.split('\0').filter(|n| !n.is_empty()) {
        let (from, to) = (paths::repo().join(name), to.join(name));
        if from.exists() {
            std::fs::create_dir_all(to.parent().unwrap_or(&to))?;
            std::fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Compares two output folders file by file, and prints and returns whether they are equal.
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

/// Returns a message that names the first step, in build order, whose result differs, and the first
/// file in it. Later differences are usually consequences of this one.
fn first_difference(steps: &[Artifact], cache: &Path) -> Result<String> {
    for step in steps {
        let key = step.key.get(..KEY_LEN).unwrap_or_default();
        let other = cache.join("steps").join(&step.name).join(key).join("out");
        if !other.is_dir() {
            return Ok(format!(
                "the second build made the step {} from different inputs: it has no result for the \
                 key {key}",
                step.name
            ));
        }
        // Sysroots and crates are extracted downloads, which were verified by hash.
        if step.name.starts_with("sysroot-") || step.name == "crates" {
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
    Ok("the images differ although every step has the same result; compare the two output folders"
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_differing_step_and_file_are_reported() {
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
        let built = |step: &str| Artifact {
            name: step.into(),
            key: "0".repeat(64),
            dir: dir.path().join("one/steps").join(step).join("0".repeat(24)).join("out"),
        };
        let steps = [built("trustd"), built("root-virt")];
        let message = || first_difference(&steps, &dir.path().join("two")).unwrap();
        for base in ["one", "two"] {
            write(base, "trustd", "trustd", "same");
            write(base, "root-virt", "etc/a", "same");
        }
        assert!(message().contains("every step has the same result"));
        write("two", "root-virt", "etc/a", "other");
        assert!(message().ends_with("step root-virt, file etc/a"), "{}", message());
        write("two", "trustd", "trustd", "other");
        assert!(message().ends_with("step trustd, file trustd"), "{}", message());
        std::fs::remove_dir_all(dir.path().join("two/steps/trustd")).unwrap();
        assert!(message().contains("different inputs"));
    }
}
