//! The image as `.img.xz`: three streams one after the other, which every xz reads as one.
//!
//! The root's is a step of its own, since it takes most of the time and is the same until the root
//! changes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::Result;

use crate::plan::{Plan, Step};
use crate::qemu::partition_start;
use crate::store::Inputs;

pub fn inputs(inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/download.rs")?;
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let name = format!("basalt-{}.img", plan.machine_name);
    let image = plan.planned(&Step::Disk)?.file(&name);
    let (root, data, end) =
        (partition_start(&image, 2)?, partition_start(&image, 3)?, image.metadata()?.len());
    let work = tempfile::tempdir_in(plan.store.scratch())?;
    let (sandbox, log) = plan.sandbox("download")?;
    let sandbox = sandbox.write(work.path(), "/work").cwd("/work");
    let (mut source, mut target) =
        (File::open(image)?, File::create(out.join(format!("{name}.xz")))?);
    for (from, to, stream) in [(0, root, "head"), (root, data, "root"), (data, end, "data")] {
        let packed = if stream == "root" {
            plan.planned(&Step::Packed)?.file("root.xz")
        } else {
            source.seek(SeekFrom::Start(from))?;
            std::io::copy(
                &mut (&source).take(to - from),
                &mut File::create(work.path().join(stream))?,
            )?;
            // Kernel and firmware are compressed already, the rest is empty.
            sandbox.run(&log, ["xz", "-0", "--threads=1", stream])?;
            work.path().join(format!("{stream}.xz"))
        };
        std::io::copy(&mut File::open(packed)?, &mut target)?;
    }
    Ok(())
}
