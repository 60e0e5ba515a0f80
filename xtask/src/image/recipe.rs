//! Recipes of the image's parts: TOML files below `image/`.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::engine::{layers, paths, toml_file};

/// Folder of the kernels' recipes.
pub const KERNELS: &str = "image/recipes/kernels";
/// Folder of the programs' recipes.
pub const PROGRAMS: &str = "image/recipes/programs";

/// The release that images are built for: `image/release.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Release {
    /// Version of the release.
    pub version: String,
    /// Time of the release in seconds since 1970, which build tools use as the current time.
    pub source_date_epoch: u64,
}

/// Recipe of a kernel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// Package set of the source package.
    pub set: String,
    /// Name of the source package.
    pub package: String,
    /// Path of the source archive in the package.
    pub archive: String,
    /// Value of kbuild's `ARCH`.
    pub arch: String,
    /// Value of kbuild's `CROSS_COMPILE`.
    pub cross: String,
    /// Targets of make, which are also the file names of the kernel images.
    pub targets: Vec<String>,
    /// Patterns of the device trees in the result, below `arch/ARCH/boot/dts`.
    pub dtbs: Vec<String>,
    /// Folders of configuration fragments. A later fragment overrides an earlier one.
    pub fragments: Vec<String>,
    /// Folder of patches.
    pub patches: Option<String>,
    /// Symbols that the final configuration must not set, without `CONFIG_`.
    pub absent: Vec<String>,
}

/// Recipe of a program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Program {
    /// Name of the Cargo package.
    pub package: String,
    /// Whether it is linked statically.
    pub r#static: bool,
    /// Cargo profile.
    pub profile: String,
    /// Source folders of a program of the checkout's workspace.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Folder of a program that is a separate Cargo workspace with its own lock, below `programs/`
    /// of a layer.
    pub workspace: Option<String>,
}

/// Recipe of the root file system: `image/recipes/root.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Root {
    /// UUID of the file system and of its hash tree: a fixed value, for reproducible images.
    pub uuid: String,
    /// Options of mkfs.erofs.
    pub erofs: Vec<String>,
    /// Folders and their modes.
    pub folders: BTreeMap<String, String>,
    /// Symbolic links and their targets.
    pub links: BTreeMap<String, String>,
    /// Paths in the root and the names of the programs' recipes.
    pub programs: BTreeMap<String, String>,
    /// Files of the package set `device`. The libraries that they need are added.
    pub take: Vec<String>,
    /// Packages of the tools sysroot whose libraries are statically linked into programs, so that
    /// the image contains parts of them.
    pub linked: Vec<String>,
    /// Binaries that the measured event `engine` covers.
    pub engine: Vec<String>,
}

/// Reads the release.
///
/// # Errors
///
/// Fails if `image/release.toml` cannot be read or is invalid.
pub fn release() -> Result<Release> {
    toml_file::read(&layers::current().find("image/release.toml"))
}

/// Reads a kernel's recipe.
///
/// # Errors
///
/// Fails if there is no such recipe, if its name does not begin with `kernel`, or if it is invalid.
pub fn kernel(name: &str) -> Result<Kernel> {
    // The recipe's name is also the name of its step, which must differ from those of other steps.
    ensure!(
        name.starts_with("kernel"),
        "{KERNELS}/{name}.toml: the name of a kernel's recipe must begin with \"kernel\""
    );
    load_named(KERNELS, name)
}

/// Reads the recipe of the root file system.
///
/// # Errors
///
/// Fails if `image/recipes/root.toml` cannot be read or is invalid.
pub fn root() -> Result<Root> {
    toml_file::read(&layers::current().find("image/recipes/root.toml"))
}

/// Reads a program's recipe.
///
/// # Errors
///
/// Fails if there is no such recipe, if it is invalid, or if it does not have exactly one of
/// `sources` and `workspace`.
pub fn program(name: &str) -> Result<Program> {
    let program: Program = load_named(PROGRAMS, name)?;
    ensure!(
        program.workspace.is_none() != program.sources.is_empty(),
        "{PROGRAMS}/{name}.toml: expected exactly one of sources (folders of the checkout) and \
         workspace (a folder of a layer)"
    );
    Ok(program)
}

/// Returns the folders of the members of the checkout's Cargo workspace.
///
/// # Errors
///
/// Fails if `Cargo.toml` cannot be read.
pub fn members() -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(Deserialize)]
    struct Workspace {
        members: Vec<String>,
    }
    let manifest: Manifest = toml_file::read(&paths::repo().join("Cargo.toml"))?;
    Ok(manifest.workspace.members)
}

/// Reads a recipe of a folder.
fn load_named<T: DeserializeOwned>(folder: &str, name: &str) -> Result<T> {
    let path = layers::current().find(&format!("{folder}/{name}.toml"));
    if !path.exists() {
        bail!(
            "{folder} has no recipe {name:?}; expected one of: {}",
            layers::current().names(folder)?.join(", ")
        );
    }
    toml_file::read(&path)
}
