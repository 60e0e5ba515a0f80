//! The root partition as a stream of xz: the larger part of the download, and of the time that it
//! takes to make.

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
    // One block with a dictionary that sees all of it: what a program has in common with another
    // one far away is found, too. Two processors could share the work only in blocks, which costs a
    // fifth of the size (docs/performance.md). Whoever unpacks it needs as much memory as the
    // dictionary has. Bits as xz's manual has them for ARM64 code.
    sandbox.write(out, "/out").run(
        &log,
        [
            "xz",
            "--threads=1",
            "--arm64",
            "--lzma2=preset=9,dict=160MiB,lc=2,lp=2,pb=2",
            "/out/root",
        ],
    )
}
