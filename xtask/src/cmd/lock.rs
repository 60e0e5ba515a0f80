//! `cargo xtask lock [SET]...`

use std::path::PathBuf;

use anyhow::Result;

use crate::engine::{layers, lock, progress};
use crate::image::places::PLACES;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Names of the sets to resolve; without any, all sets of image/sets.toml are resolved
    sets: Vec<String>,
    /// Add a layer that defines sets, as for build-image; their locks are written to the layer
    #[arg(long, value_name = "DIR")]
    layer: Vec<PathBuf>,
}

/// Resolves package sets against the mirror and writes their locks.
///
/// # Errors
///
/// Fails if a layer is invalid or a set cannot be resolved.
pub fn run(args: Args) -> Result<()> {
    layers::add(&args.layer, &PLACES)?;
    let sets = if args.sets.is_empty() { lock::names()? } else { args.sets };
    for set in &sets {
        lock::refresh(set)?;
    }
    progress::line("review the changes: git diff image/locks\nNext: cargo xtask build-image");
    Ok(())
}
