//! `cargo xtask clean`

use anyhow::Result;

use crate::store::Store;
use crate::{paths, progress};

#[derive(clap::Args)]
pub struct Args {
    /// Keep the downloads, remove what was made from them
    #[arg(long)]
    keep_downloads: bool,
}

pub fn run(args: Args) -> Result<()> {
    // Waits for a build that is under way.
    Store::open()?.clear(!args.keep_downloads)?;
    progress::line(&format!(
        "{} is empty{}",
        paths::cache()?.display(),
        if args.keep_downloads { " but for the downloads" } else { "" }
    ));
    Ok(())
}
