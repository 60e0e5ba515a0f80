//! `cargo xtask why [STEP]`

use anyhow::Result;

use super::build;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the step as build-image prints it; without it, all steps are explained
    step: Option<String>,
    #[command(flatten)]
    image: super::ImageArgs,
}

/// Prints why a step, or each step, would be rebuilt.
///
/// # Errors
///
/// Fails if there is no such step or an input cannot be read.
pub fn run(args: Args) -> Result<()> {
    let session = args.image.open()?;
    let steps = match &args.step {
        Some(name) => vec![build::find(&session, name)?],
        None => build::steps(&session)?,
    };
    for step in steps {
        let inputs = session.graph.inputs(&step)?;
        print!("{}", session.graph.cache.why(&step.name(), &inputs)?);
    }
    Ok(())
}
