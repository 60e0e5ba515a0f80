//! `cargo xtask build-image`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::plan::{Plan, Step};
use crate::{hash, paths, progress};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
}

pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let plan = args.image.plan()?;
    let image = build(&plan)?;
    let size = |p: &Path| p.metadata().map(|m| progress::size(m.len())).unwrap_or_default();
    let packed = image.with_extension("img.xz");
    let mut named = if plan.machine_name == super::DEFAULT_MACHINE {
        String::new()
    } else {
        format!(" --machine {}", plan.machine_name)
    };
    named.extend(args.image.layer.iter().map(|dir| format!(" --layer {}", dir.display())));
    let mut next = Vec::new();
    if plan.machine.device_tree.is_of_a_real_board() {
        next.push(format!("cargo xtask flash{named}   lists the cards that it can be written to"));
    }
    if plan.machine.qemu.is_some() {
        next.push(format!("cargo xtask run{named}   boots it in QEMU with a software TPM"));
    }
    progress::line(&format!(
        "\n{}  {} ({} as .img.xz), in {}\n{}  what this image will measure\n\nNext: {}",
        shown(&image),
        size(&image),
        size(&packed),
        progress::seconds(started.elapsed()),
        shown(&image.with_file_name("measurements.json")),
        next.join("\n      "),
    ));
    Ok(())
}

/// Builds whatever changed and puts the results into target/image/MACHINE/.
pub fn build(plan: &Plan) -> Result<PathBuf> {
    // One by one, though the last needs the others: a result that is in the cache does not ask for
    // what it was made from.
    for step in [plan.kernel(), Step::Root, Step::Disk, Step::Download, Step::Parts, Step::Manifest]
    {
        plan.build(&step)?;
    }
    let out = paths::output(&plan.machine_name);
    std::fs::create_dir_all(&out)?;
    let mut delivered = vec![std::path::PathBuf::from("kernel.config")];
    for step in [Step::Disk, Step::Download, Step::Parts, Step::Manifest] {
        let built = plan.planned(&step)?;
        for name in hash::walk(&built.dir)? {
            deliver(&built.file(&name.to_string_lossy()), &out.join(&name))?;
            delivered.push(name);
        }
    }
    for left in hash::walk(&out)?.iter().filter(|name| !delivered.contains(name)) {
        // Of another version of the build.
        std::fs::remove_file(out.join(left))?;
    }
    let config = plan.planned(&plan.kernel())?.file("config");
    deliver(&config, &out.join("kernel.config"))?;
    Ok(out.join(format!("basalt-{}.img", plan.machine_name)))
}

/// Copies a result (the cache's own file must not be written to by whoever uses the image); one
/// that is there already stays.
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
    sparse_copy(from, &temporary)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, to)?;
    std::fs::write(&stamp, origin)?;
    // The same time on both says that nobody touched the file since.
    let time = stamp.metadata()?.modified()?;
    std::fs::File::options().append(true).open(to)?.set_modified(time)?;
    Ok(())
}

/// Compared with as a whole: byte by byte takes seconds in a build without optimisation.
pub static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Copies a file; zeros become holes.
pub fn sparse_copy(from: &Path, to: &Path) -> Result<()> {
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
    let (mut source, mut target) = (std::fs::File::open(from)?, std::fs::File::create(to)?);
    let length = source.metadata()?.len();
    let mut buffer = vec![0; ZEROS.len()];
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        if buffer[..n] == ZEROS[..n] {
            target.seek(SeekFrom::Current(n as i64))?;
        } else {
            target.write_all(&buffer[..n])?;
        }
    }
    target.set_len(length)?;
    Ok(())
}

fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
