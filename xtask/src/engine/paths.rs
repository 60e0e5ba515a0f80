//! The folders of the build: the checkout and the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Returns the checkout's root. Cargo always runs `xtask` in the checkout that it was built from.
pub fn repo() -> &'static Path {
    // The manifest's folder is xtask/, so it has a parent.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Returns the cache folder for downloads and results, which all checkouts of this user share.
///
/// # Errors
///
/// Fails if none of the variables BASALT_CACHE, XDG_CACHE_HOME and HOME is set.
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

/// Returns the user's home folder.
fn home() -> Result<PathBuf> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .context("HOME is not set, so there is no cache folder; set BASALT_CACHE=DIR")
}
