//! `cargo xtask repro`: the same image again, from another folder, with another cache, as another user, with another user mask,
//! time zone, locale and job count.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{hash, paths, progress, store};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
    /// Build the kernel again too (some 9 minutes); otherwise its result is taken over
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
    let (checkout, cache) = (other.path().join("another/checkout"), other.path().join("another-cache"));
    copy_checkout(&checkout)?;
    std::fs::create_dir_all(&cache)?;
    let own = paths::cache()?;
    // What was downloaded was checked by hash; it need not come over the network twice.
    std::os::unix::fs::symlink(own.join("blobs"), cache.join("blobs"))?;
    if !args.kernel {
        std::fs::create_dir_all(cache.join("steps"))?;
        let status = Command::new("cp").arg("-a").args([own.join("steps/kernel"), cache.join("steps")]).status()?;
        anyhow::ensure!(status.success(), "cannot copy the kernel's result");
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
    compare(&out, &checkout.join("target/image").join(&args.image.machine))
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

fn compare(one: &Path, two: &Path) -> Result<()> {
    let mut differing = Vec::new();
    for name in hash::walk(one)? {
        let (a, b) = (hash::file(&one.join(&name))?, hash::file(&two.join(&name))?);
        println!("{} {}", if a == b { "same     " } else { "DIFFERENT" }, name.display());
        if a != b {
            differing.push(name.display().to_string());
        }
    }
    if differing.is_empty() {
        println!("identical to the bit");
        return Ok(());
    }
    bail!("the two builds differ in {}", differing.join(", "))
}
