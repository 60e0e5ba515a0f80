//! `cargo xtask lock [SET]...`

use anyhow::Result;

use crate::{lock, progress, tree};

#[derive(clap::Args)]
pub struct Args {
    /// The sets to resolve; all of image/sets.toml when none is named
    sets: Vec<String>,
    /// A layer whose sets these are, as for build-image; their locks are written there
    #[arg(long, value_name = "DIR")]
    layer: Vec<std::path::PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    crate::layers::lay(&args.layer)?;
    let sets = if args.sets.is_empty() { tree::names()? } else { args.sets };
    for set in &sets {
        lock::refresh(set)?;
    }
    progress::line("Look at what changed: git diff image/locks. Then: cargo xtask build-image");
    Ok(())
}
