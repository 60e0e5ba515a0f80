//! A program of this repository or of a layer, compiled for the device by the tools sysroot's Rust,
//! offline, from vendored crates.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::image::recipe;
use crate::rules::{crates, sysroot};

/// Rust's name of the device.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The program of one recipe.
struct Program(String);

/// Returns the step that compiles a program of `image/recipes/programs`.
pub fn step(name: &str) -> Step {
    Rc::new(Program(name.to_owned()))
}

impl Rule for Program {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn needs(&self) -> Result<Vec<Step>> {
        let workspace = recipe::program(&self.0)?.workspace;
        Ok(vec![sysroot::tools_step(), crates::step(workspace.as_deref())])
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        let recipe = recipe::program(&self.0)?;
        inputs
            .path(&format!("{}/{}.toml", recipe::PROGRAMS, self.0))?
            .path("xtask/src/rules/crates.rs")?;
        match &recipe.workspace {
            Some(folder) => inputs.path(folder).with_context(|| {
                format!("the recipe of {} names {folder}, which no layer has", self.0)
            })?,
            None => inputs.path("Cargo.toml")?,
        };
        for source in &recipe.sources {
            inputs.path(source)?;
        }
        Ok(())
    }

    fn label(&self) -> String {
        "compiling for the device".into()
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let recipe = recipe::program(&self.0)?;
        let stage = graph.cache.work(&format!("stage-{}", self.0))?;
        match &recipe.workspace {
            Some(folder) => crates::stage_workspace(folder, &stage)?,
            None => crates::stage_sources(&stage, &recipe.sources)?,
        }
        let target = graph.cache.work("target-device")?;
        let (sandbox, log) = sysroot::sandbox(graph, &self.0)?;
        let vendored = crates::step(recipe.workspace.as_deref());
        let sandbox = crates::offline_cargo(graph, &vendored, sandbox, &target)?
            .write(&stage, "/src")
            .cwd("/src");
        let mut flags = "--remap-path-prefix=/src=basalt --remap-path-prefix=/vendor=crates \
             -Clink-arg=-Wl,-z,relro,-z,now"
            .to_owned();
        if recipe.r#static {
            flags.push_str(" -Ctarget-feature=+crt-static");
        }
        if recipe.workspace.is_none() {
            // The profiles of this workspace abort on a panic, and nothing on the node unwinds a
            // stack. The tables would be an eighth of trustd.
            flags.push_str(" -Cforce-unwind-tables=no");
        }
        let sandbox = sandbox
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags)
            .env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc")
            .env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar")
            .env("PKG_CONFIG_ALLOW_CROSS", "1")
            .env("PKG_CONFIG_LIBDIR", "/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig");
        let mut cargo = vec!["cargo", "build", "--profile", &recipe.profile, "--locked"];
        cargo.extend(["--offline", "--target", TARGET, "--package", &recipe.package, "--bins"]);
        sandbox.run(&log, cargo)?;
        let folder = target.join(TARGET).join(&recipe.profile);
        std::fs::copy(folder.join(&recipe.package), out.join(&recipe.package)).with_context(
            || format!("cargo built no {} in {}", recipe.package, folder.display()),
        )?;
        Ok(())
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}
