//! Reads the TOML files of the repository. Unknown keys are rejected. An error contains the file,
//! the line and the allowed keys.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use serde::de::DeserializeOwned;

/// Reads a file as a value of `T`.
///
/// # Errors
///
/// Fails if the file cannot be read or is not a valid `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // The error of the toml crate contains the line, the key and, if the key is unknown, the
    // allowed keys.
    toml::from_str(&text).map_err(|error| anyhow!("{} is invalid:\n{error}", path.display()))
}
