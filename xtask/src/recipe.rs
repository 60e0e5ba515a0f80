//! The recipes: what the image is made of, as data under image/.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{config, layers, paths};

pub const KERNELS: &str = "image/recipes/kernels";
pub const PROGRAMS: &str = "image/recipes/programs";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Release {
    pub version: String,
    pub source_date_epoch: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// The package set that has the source.
    pub set: String,
    pub package: String,
    pub archive: String,
    pub arch: String,
    pub cross: String,
    pub targets: Vec<String>,
    /// Which of the device trees that the kernel has for its platforms are kept: patterns below
    /// arch/ARCH/boot/dts.
    pub dtbs: Vec<String>,
    /// Folders of fragments, the later ones over the earlier ones.
    pub fragments: Vec<String>,
    /// Folder of patches.
    pub patches: Option<String>,
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
    /// Of the checkout's workspace: the folders that it is made of.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Or a Cargo workspace of its own, with its lock: a folder below programs/ of a layer.
    pub workspace: Option<String>,
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
    /// Packages of the tools tree that programs are linked with, so that parts of them are in the
    /// image.
    pub linked: Vec<String>,
    /// The binaries that the measured event `engine` covers.
    pub engine: Vec<String>,
}

pub fn release() -> Result<Release> {
    config::read(&layers::current().find("image/release.toml"))
}

pub fn kernel(name: &str) -> Result<Kernel> {
    // Its step has this name, and must not be taken for another.
    ensure!(
        name.starts_with("kernel"),
        "{KERNELS}/{name}.toml: the name of a kernel's recipe begins with kernel"
    );
    named(KERNELS, name)
}

pub fn root() -> Result<Root> {
    config::read(&layers::current().find("image/recipes/root.toml"))
}

pub fn program(name: &str) -> Result<Program> {
    let program: Program = named(PROGRAMS, name)?;
    ensure!(
        program.workspace.is_none() != program.sources.is_empty(),
        "{PROGRAMS}/{name}.toml: a program has either sources (folders of the checkout) or a workspace (a folder of a layer)"
    );
    Ok(program)
}

/// The packages of the checkout's Cargo workspace, by their folders.
pub fn members() -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(Deserialize)]
    struct Workspace {
        members: Vec<String>,
    }
    let manifest: Manifest = config::read(&paths::repo().join("Cargo.toml"))?;
    Ok(manifest.workspace.members)
}

fn named<T: DeserializeOwned>(folder: &str, name: &str) -> Result<T> {
    let path = layers::current().find(&format!("{folder}/{name}.toml"));
    if !path.exists() {
        bail!(
            "there is no recipe {name:?}; {folder} has: {}",
            layers::current().names(folder)?.join(", ")
        );
    }
    config::read(&path)
}
