//! The recipes: what the image is made of, as data under image/.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::{config, paths};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Release {
    pub version: String,
    pub source_date_epoch: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    pub package: String,
    pub archive: String,
    pub arch: String,
    pub cross: String,
    pub targets: Vec<String>,
    pub dtbs: Vec<String>,
    pub absent: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Program {
    pub package: String,
    /// Linked without any shared library.
    pub r#static: bool,
    /// Profile of Cargo.toml.
    pub profile: String,
    pub sources: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Root {
    /// The identity of the file system and of its hash tree; anything, but always the same.
    pub uuid: String,
    /// Options of mkfs.erofs.
    pub erofs: Vec<String>,
    pub folders: BTreeMap<String, String>,
    pub links: BTreeMap<String, String>,
    /// Place in the root = program of image/recipes/programs.
    pub programs: BTreeMap<String, String>,
    /// Files of the device set, taken with every library they need.
    pub take: Vec<String>,
    /// The binaries that the measured event `engine` covers.
    pub engine: Vec<String>,
}

pub fn release() -> Result<Release> {
    config::read(&paths::repo().join("image/release.toml"))
}

pub fn kernel() -> Result<Kernel> {
    config::read(&paths::repo().join("image/recipes/kernel.toml"))
}

pub fn root() -> Result<Root> {
    config::read(&paths::repo().join("image/recipes/root.toml"))
}

pub fn program(name: &str) -> Result<Program> {
    let dir = paths::repo().join("image/recipes/programs");
    let path = dir.join(format!("{name}.toml"));
    if !path.exists() {
        bail!("there is no program {name:?}; image/recipes/programs has: {}", config::names(&dir)?.join(", "));
    }
    config::read(&path)
}
