//! `cargo xtask clean`

use anyhow::Result;

use crate::{paths, progress, store};

#[derive(clap::Args)]
pub struct Args {
    /// Keep the downloads, remove what was made from them
    #[arg(long)]
    keep_downloads: bool,
}

pub fn run(args: Args) -> Result<()> {
    let cache = paths::cache()?;
    for name in ["steps", "tmp", "work", "logs", "blobs"] {
        if (name == "blobs" && args.keep_downloads) || !cache.join(name).exists() {
            continue;
        }
        store::remove(&cache.join(name))?;
    }
    progress::line(&format!("{} is empty", cache.display()));
    Ok(())
}
