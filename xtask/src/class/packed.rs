//! The root partition as a stream of xz: the larger part of the download, and of the time that it takes to make.

use std::path::Path;

use anyhow::Result;

use crate::plan::{Plan, Step};
use crate::store::Inputs;

pub fn inputs(inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/packed.rs")?;
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let image = out.join("root");
    std::fs::copy(plan.planned(&Step::Root)?.file("root.img"), &image)?;
    // As the partition is: in whole MiB.
    let length = image.metadata()?.len().next_multiple_of(1 << 20);
    std::fs::File::options().write(true).open(&image)?.set_len(length)?;
    let (sandbox, log) = plan.sandbox("packed")?;
    // The same bytes for any number of threads: the blocks' size is given, and `+` keeps a single one in blocks too.
    let threads = format!("--threads=+{}", Plan::jobs());
    sandbox.write(out, "/out").run(&log, ["xz", &threads, "--block-size=16MiB", "--arm64", "--lzma2=preset=6", "/out/root"])
}
