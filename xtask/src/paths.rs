//! Where things lie: the checkout, the cache, the results.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The checkout's root. `xtask` is always run by cargo from inside the checkout that it was built
/// from.
pub fn repo() -> &'static Path {
    // The manifest's folder is xtask/, so it has a parent.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Downloads, trees and step results, shared by all checkouts of this user.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BASALT_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => home()?.join(".cache"),
    };
    Ok(base.join("basalt"))
}

/// What the user gets: `target/image/MACHINE/`.
pub fn output(machine: &str) -> PathBuf {
    repo().join("target/image").join(machine)
}

fn home() -> Result<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).context(
        "HOME is not set, so there is no place for the cache; set BASALT_CACHE to a folder",
    )
}
