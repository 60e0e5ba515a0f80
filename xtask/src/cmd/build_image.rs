//! `cargo xtask build-image`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::Session;
use crate::engine::{hash, host, progress};
use crate::image::sparse;
use crate::image::spec::output_dir;
use crate::rules::{self, kernel, root};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
    /// Do not compile trustctl, the tool that attests and operates nodes, after the image
    #[arg(long)]
    no_trustctl: bool,
}

/// Builds the image and trustctl, and prints their paths and the next steps.
///
/// # Errors
///
/// Fails if a step or trustctl cannot be built, or a result cannot be written.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let session = args.image.open()?;
    let image = build(&session)?;
    let spec = &session.image;
    let size = |p: &Path| p.metadata().map(|m| progress::size(m.len())).unwrap_or_default();
    let packed = image.with_extension("img.xz");
    let mut named = if spec.machine_name == super::DEFAULT_MACHINE {
        String::new()
    } else {
        format!(" --machine {}", spec.machine_name)
    };
    named.extend(args.image.layer.iter().map(|dir| format!(" --layer {}", dir.display())));
    let trustctl = if args.no_trustctl { None } else { Some(host::build_trustctl()?) };
    let mut next = Vec::new();
    if spec.machine.device_tree.is_for_physical_board() {
        next.push(format!("cargo xtask flash{named}   lists the memory cards in this host"));
    }
    if spec.machine.qemu.is_some() {
        next.push(format!("cargo xtask run{named}   boots the image in QEMU with a software TPM"));
    }
    let measurements = shown(&image.with_file_name("measurements.json"));
    if let Some(trustctl) = trustctl {
        next.push(format!(
            "{} attest HOST:7443 --expect {measurements}   attests the node",
            shown(&trustctl)
        ));
    }
    progress::line(&format!(
        "\n{}  {} ({} as .img.xz), in {}\n{measurements}  reference values of this image\n\n\
         Next: {}",
        shown(&image),
        size(&image),
        size(&packed),
        progress::seconds(started.elapsed()),
        next.join("\n      "),
    ));
    Ok(())
}

/// Builds the steps that changed, copies the results to target/image/MACHINE/ and returns the path
/// of the image.
///
/// # Errors
///
/// Fails if a step cannot be built or a result cannot be written.
pub fn build(session: &Session) -> Result<PathBuf> {
    // Each step is built explicitly: if the result of the last step is in the cache, the graph does
    // not look at the steps that it needs.
    let (graph, image) = (&session.graph, &session.image);
    let deliverables = rules::deliverables(image);
    graph.build(&kernel::step(image))?;
    graph.build(&root::step(image))?;
    for step in &deliverables {
        graph.build(step)?;
    }
    let out = output_dir(&image.machine_name);
    std::fs::create_dir_all(&out)?;
    let mut delivered = vec![std::path::PathBuf::from("kernel.config")];
    for step in &deliverables {
        let built = graph.artifact(step)?;
        for name in hash::walk(&built.dir)? {
            deliver(&built.file(&name.to_string_lossy()), &out.join(&name))?;
            delivered.push(name);
        }
    }
    // Files of an earlier version of the build are removed.
    for stale in hash::walk(&out)?.iter().filter(|name| !delivered.contains(name)) {
        std::fs::remove_file(out.join(stale))?;
    }
    let config = graph.artifact(&kernel::step(image))?.file("config");
    deliver(&config, &out.join("kernel.config"))?;
    Ok(out.join(image.file_name()))
}

/// Copies a result out of the cache unless the same copy exists already.
///
/// A link would let a program that writes to the image change the file in the cache.
fn deliver(from: &Path, to: &Path) -> Result<()> {
    let (source, stamp) = (
        from.canonicalize()?,
        to.with_file_name(format!(
            ".{}.from",
            to.file_name().unwrap_or_default().to_string_lossy()
        )),
    );
    let origin = source.to_string_lossy().into_owned();
    let unchanged = std::fs::read_to_string(&stamp).is_ok_and(|s| s == origin)
        && to.metadata().and_then(|m| m.modified()).ok()
            == stamp.metadata().and_then(|m| m.modified()).ok();
    if unchanged {
        return Ok(());
    }
    let temporary = to.with_extension("new");
    sparse::copy(from, &temporary)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, to)?;
    std::fs::write(&stamp, origin)?;
    // Equal times of file and stamp show that the file has not been modified since.
    let time = stamp.metadata()?.modified()?;
    std::fs::File::options().append(true).open(to)?.set_modified(time)?;
    Ok(())
}

/// Returns a path as text, relative to the current folder if the path is below it.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
