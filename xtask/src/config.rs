//! Reads the TOML files of the repository. Unknown keys are refused; an error names the file, the
//! place and what is allowed.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use serde::de::DeserializeOwned;

pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text, path)
}

pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    // The message of the toml crate has the line, the key and, for an unknown key, those that are
    // allowed.
    toml::from_str(text)
        .map_err(|error| anyhow!("{} is not as it should be:\n{error}", path.display()))
}
