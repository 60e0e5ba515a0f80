//! `cargo xtask why STEP`

use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    /// The step, as `build-image` prints it; all steps when none is named
    step: Option<String>,
    #[command(flatten)]
    image: super::ImageArgs,
}

pub fn run(args: Args) -> Result<()> {
    let plan = args.image.plan()?;
    let steps = match &args.step {
        Some(name) => vec![super::build::find(&plan, name)?],
        None => plan.steps()?,
    };
    for step in steps {
        print!("{}", plan.store.why(&plan.name(&step), &plan.inputs(&step)?)?);
    }
    Ok(())
}
