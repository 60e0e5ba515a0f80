//! A module that ships in the image: its program alone in an OCI archive.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use config::{Image, ImageSource, Module};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::{layers, toml_file};
use crate::image::recipe;
use crate::rules::program;

const DIR: &str = "configs/modules";

/// The archive of one module.
struct ModuleArchive(String);

/// Returns the step that builds the archive of a module of `configs/modules`.
pub fn step(name: &str) -> Step {
    Rc::new(ModuleArchive(name.to_owned()))
}

impl Rule for ModuleArchive {
    fn name(&self) -> String {
        format!("module-{}", self.0)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(vec![program::step(&program_of(&self.0)?)])
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        // This program writes the archive itself, so its code and crates are inputs.
        inputs.path("lib/oci/src")?.path("Cargo.lock")?;
        Ok(())
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let program = program_of(&self.0)?;
        let package = recipe::program(&program)?.package;
        let binary = std::fs::read(graph.artifact(&program::step(&program))?.file(&package))?;
        let path = format!("/{program}");
        let image = oci::BuiltImage {
            architecture: "arm64",
            folders: &["run", "run/basalt"],
            files: &[(&program, 0o755, &binary)],
            entrypoint: &[&path],
            user: "65532:65532",
        };
        let (archive, digest) = oci::build(&image)?;
        std::fs::write(out.join("image.tar"), archive)?;
        std::fs::write(out.join("digest"), &digest)?;
        Ok(())
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Returns the names of the modules of `configs/modules` that the build makes an archive for.
///
/// # Errors
///
/// Fails if a module's file is invalid.
pub fn names() -> Result<Vec<String>> {
    let mut shipped = Vec::new();
    for name in layers::current().names(DIR)? {
        if matches!(load(&name)?.image, Image::Build(_)) {
            shipped.push(name);
        }
    }
    Ok(shipped)
}

/// Reads the file of a module.
///
/// # Errors
///
/// Fails if the name or the file is invalid.
pub fn load(name: &str) -> Result<Module> {
    let path = layers::current().find(&format!("{DIR}/{name}.toml"));
    Module::check_name(name).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    toml_file::read(&path)
}

/// Returns the program that a shipped module consists of.
///
/// # Errors
///
/// Fails if the module's file is invalid or names an image instead of a program.
pub fn program_of(name: &str) -> Result<String> {
    match load(name)?.image {
        Image::Build(build) => Ok(build.program),
        Image::Source(_) => bail!("{DIR}/{name}.toml names an image and is not built"),
    }
}

/// Returns the module as the node reads it, with the path of its archive, and the image's digest.
///
/// # Errors
///
/// Fails if the module's file is invalid or its archive is not built.
pub fn installed(graph: &BuildGraph, name: &str) -> Result<(Module, String)> {
    let mut module = load(name)?;
    let archive = graph.artifact(&step(name))?;
    let digest =
        std::fs::read_to_string(archive.file("digest")).context("the module is not built")?;
    module.image = Image::Source(ImageSource {
        digest: digest.clone(),
        registry: None,
        archive: Some(format!("/usr/share/basalt/modules/{name}.tar")),
    });
    Ok((module, digest))
}
