//! `cargo xtask size`

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;

use crate::class::root;
use crate::plan::Plan;
use crate::progress::size;
use crate::{hash, paths};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
}

/// What the README promises.
const MOST_OPTIONS: usize = 1_100;
const LARGEST_KERNEL: u64 = 6_600_000;
const MOST_EXECUTABLES: usize = 10;
const LARGEST_DOWNLOAD: u64 = 34_000_000;

pub fn run(args: Args) -> Result<()> {
    let plan = args.image.plan()?;
    super::build_image::build(&plan)?;
    check(&plan)
}

/// The executable files below a folder, and how many of them are setuid or setgid.
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

/// Prints the sizes of a built image; one that is over what is promised is an error.
pub fn check(plan: &Plan) -> Result<()> {
    let out = paths::output(&plan.machine_name);
    let config = std::fs::read_to_string(out.join("kernel.config"))?;
    let count = |suffix: &str| config.lines().filter(|l| l.ends_with(suffix)).count();
    let kernel = plan.planned(&plan.kernel())?.file("Image.gz").metadata()?.len();
    let (executables, setuid) = executables(&root::laid_out(plan)?)?;
    let packed = out.join(format!("basalt-{}.img.xz", plan.machine_name)).metadata()?.len();
    let root = plan.planned(&crate::plan::Step::Root)?.file("root.img").metadata()?.len();
    let mut kept = true;
    let mut row = |what: &str, value: String, promise: String, good: bool| {
        println!("{what:34} {value:>12}   {promise:18} {}", if good { "ok" } else { "TOO MUCH" });
        kept &= good;
    };
    row(
        "kernel options =y",
        count("=y").to_string(),
        format!("at most {MOST_OPTIONS}"),
        count("=y") <= MOST_OPTIONS,
    );
    row("kernel modules", count("=m").to_string(), "0".into(), count("=m") == 0);
    row(
        "Image.gz",
        size(kernel),
        format!("at most {}", size(LARGEST_KERNEL)),
        kernel <= LARGEST_KERNEL,
    );
    row(
        "executables in the root",
        executables.len().to_string(),
        format!("at most {MOST_EXECUTABLES}"),
        executables.len() <= MOST_EXECUTABLES,
    );
    row("setuid or setgid files", setuid.to_string(), "0".into(), setuid == 0);
    row(
        ".img.xz",
        size(packed),
        format!("at most {}", size(LARGEST_DOWNLOAD)),
        packed <= LARGEST_DOWNLOAD,
    );
    row("root partition with hash tree", size(root), String::new(), true);
    println!("\nexecutables: {}", executables.join(" "));
    anyhow::ensure!(kept, "a size is over what README.md promises");
    Ok(())
}
