//! `cargo xtask clean`

use anyhow::Result;

use crate::engine::cache::Cache;
use crate::engine::{paths, progress};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Keep the downloads and remove only build results
    #[arg(long)]
    keep_downloads: bool,
}

/// Empties the cache, after waiting for a build that is running.
///
/// # Errors
///
/// Fails if a folder cannot be removed.
pub fn run(args: Args) -> Result<()> {
    Cache::open()?.clear(!args.keep_downloads)?;
    progress::line(&format!(
        "{} is empty{}",
        paths::cache()?.display(),
        if args.keep_downloads { " except for the downloads" } else { "" }
    ));
    Ok(())
}
