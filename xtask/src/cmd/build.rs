//! `cargo xtask build STEP`

use std::rc::Rc;

use anyhow::{Result, bail};

use super::Session;
use crate::engine::graph::Step;
use crate::engine::progress;
use crate::image::spec::ImageSpec;
use crate::rules::{baseline, manifest};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the step as build-image prints it: kernel, trustd, root, ...
    step: String,
    #[command(flatten)]
    image: super::ImageArgs,
}

/// Builds one step and prints the folder of its result.
///
/// # Errors
///
/// Fails if there is no such step or it cannot be built.
pub fn run(args: Args) -> Result<()> {
    let session = args.image.open()?;
    let step = find(&session, &args.step)?;
    let artifact = session.graph.build(&step)?;
    progress::line(&format!("{} is in {}", artifact.name, artifact.dir.display()));
    Ok(())
}

/// Returns every step of an image, in the order in which they are built.
///
/// # Errors
///
/// Fails if the description of a step cannot be read.
pub fn steps(session: &Session) -> Result<Vec<Step>> {
    let image: &Rc<ImageSpec> = &session.image;
    session.graph.closure(&manifest::step(image))
}

/// Returns the step with this name.
///
/// # Errors
///
/// Fails if there is no such step; the message lists all names.
pub fn find(session: &Session, name: &str) -> Result<Step> {
    let mut steps = steps(session)?;
    steps.push(baseline::step(&session.image));
    let names: Vec<String> = steps.iter().map(|step| step.name()).collect();
    match names.iter().position(|n| n == name) {
        Some(i) => Ok(steps[i].clone()),
        None => bail!("there is no step {name:?}; the steps are: {}", names.join(", ")),
    }
}
