//! `cargo xtask size`: compares the sizes of an image with the limits in the README.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;

use super::Session;
use crate::engine::hash;
use crate::engine::progress::size;
use crate::image::spec::output_dir;
use crate::rules::{kernel, root};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
}

// These are the limits that the README promises.
const MAX_KERNEL_OPTIONS: usize = 1_100;
const MAX_KERNEL_BYTES: u64 = 6_600_000;
const MAX_EXECUTABLES: usize = 10;
const MAX_DOWNLOAD_BYTES: u64 = 34_000_000;

/// Builds the image and prints its sizes.
///
/// # Errors
///
/// Fails if a step cannot be built or a size exceeds its limit.
pub fn run(args: Args) -> Result<()> {
    let session = args.image.open()?;
    super::build_image::build(&session)?;
    check(&session)
}

/// Returns the executable files below a folder, and the number of setuid and setgid files.
///
/// # Errors
///
/// Fails if a folder cannot be read.
pub fn executables(root: &Path) -> Result<(Vec<String>, usize)> {
    let (mut executables, mut setuid) = (Vec::new(), 0);
    for name in hash::walk(root)? {
        let meta = root.join(&name).symlink_metadata()?;
        let mode = meta.permissions().mode();
        if meta.is_file() && mode & 0o111 != 0 {
            executables.push(name.display().to_string());
        }
        setuid += usize::from(meta.is_file() && mode & 0o6000 != 0);
    }
    Ok((executables, setuid))
}

/// Prints the sizes of a built image.
///
/// # Errors
///
/// Fails if a file cannot be read or a size exceeds its limit.
pub fn check(session: &Session) -> Result<()> {
    let (graph, image) = (&session.graph, &session.image);
    let out = output_dir(&image.machine_name);
    let config = std::fs::read_to_string(out.join("kernel.config"))?;
    let count = |suffix: &str| config.lines().filter(|l| l.ends_with(suffix)).count();
    let kernel = graph.artifact(&kernel::step(image))?.file("Image.gz").metadata()?.len();
    let (executables, setuid) = executables(&root::tree(graph, image)?)?;
    let packed = out.join(format!("{}.xz", image.file_name())).metadata()?.len();
    let root = graph.artifact(&root::step(image))?.file("root.img").metadata()?.len();
    let mut all_ok = true;
    let mut row = |subject: &str, value: String, limit: String, ok: bool| {
        println!("{subject:34} {value:>12}   {limit:18} {}", if ok { "ok" } else { "TOO LARGE" });
        all_ok &= ok;
    };
    row(
        "kernel options =y",
        count("=y").to_string(),
        format!("at most {MAX_KERNEL_OPTIONS}"),
        count("=y") <= MAX_KERNEL_OPTIONS,
    );
    row("kernel modules", count("=m").to_string(), "0".into(), count("=m") == 0);
    row(
        "Image.gz",
        size(kernel),
        format!("at most {}", size(MAX_KERNEL_BYTES)),
        kernel <= MAX_KERNEL_BYTES,
    );
    row(
        "executables in the root",
        executables.len().to_string(),
        format!("at most {MAX_EXECUTABLES}"),
        executables.len() <= MAX_EXECUTABLES,
    );
    row("setuid or setgid files", setuid.to_string(), "0".into(), setuid == 0);
    row(
        ".img.xz",
        size(packed),
        format!("at most {}", size(MAX_DOWNLOAD_BYTES)),
        packed <= MAX_DOWNLOAD_BYTES,
    );
    row("root partition with hash tree", size(root), String::new(), true);
    println!("\nexecutables: {}", executables.join(" "));
    anyhow::ensure!(all_ok, "a size exceeds the limit in README.md; see the table above");
    Ok(())
}
