//! A module that ships in the image: its program alone in an OCI archive.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use config::{Image, Module, Source};

use crate::plan::{Plan, Step};
use crate::store::Inputs;
use crate::{config as files, layers, recipe};

const DIR: &str = "configs/modules";

/// The modules of configs/modules that the build makes an archive for.
pub fn names() -> Result<Vec<String>> {
    let mut shipped = Vec::new();
    for name in layers::current().names(DIR)? {
        if matches!(load(&name)?.image, Image::Ship(_)) {
            shipped.push(name);
        }
    }
    Ok(shipped)
}

pub fn load(name: &str) -> Result<Module> {
    let path = layers::current().find(&format!("{DIR}/{name}.toml"));
    Module::valid_name(name).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    files::read(&path)
}

pub fn program(name: &str) -> Result<String> {
    match load(name)?.image {
        Image::Ship(ship) => Ok(ship.program),
        Image::Node(_) => bail!("{DIR}/{name}.toml names an image and is not built"),
    }
}

pub fn needs(name: &str) -> Result<Vec<Step>> {
    Ok(vec![Step::Program(program(name)?)])
}

pub fn inputs(_name: &str, inputs: &mut Inputs) -> Result<()> {
    // The form of the archive is this program's doing.
    // The rule itself counts.
    inputs.path("xtask/src/class/module.rs")?;
    inputs.path("lib/oci/src")?.path("Cargo.lock")?;
    Ok(())
}

pub fn build(plan: &Plan, name: &str, out: &Path) -> Result<()> {
    let program = program(name)?;
    let recipe = recipe::program(&program)?;
    let binary =
        std::fs::read(plan.planned(&Step::Program(program.clone()))?.file(&recipe.package))?;
    let path = format!("/{program}");
    let image = oci::Plain {
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

/// The module's file as the node gets it, its archive's place filled in.
pub fn installed(plan: &Plan, name: &str) -> Result<(Module, String)> {
    let mut module = load(name)?;
    let built = plan.planned(&Step::Module(name.to_owned()))?;
    let digest =
        std::fs::read_to_string(built.file("digest")).context("the module is not built")?;
    module.image = Image::Node(Source {
        digest: digest.clone(),
        registry: None,
        archive: Some(format!("/usr/share/basalt/modules/{name}.tar")),
    });
    Ok((module, digest))
}
