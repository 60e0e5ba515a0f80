//! `cargo xtask build STEP`

use anyhow::{Result, bail};

use crate::plan::{Plan, Step};
use crate::progress;

#[derive(clap::Args)]
pub struct Args {
    /// The step, as `build-image` prints it: kernel, trustd, root-virt, ...
    step: String,
    #[command(flatten)]
    image: super::ImageArgs,
}

pub fn run(args: Args) -> Result<()> {
    let plan = args.image.plan()?;
    let step = find(&plan, &args.step)?;
    let built = plan.build(&step)?;
    progress::line(&format!("{} is in {}", built.name, built.dir.display()));
    Ok(())
}

pub fn find(plan: &Plan, name: &str) -> Result<Step> {
    let mut steps = plan.steps()?;
    steps.push(Step::Baseline);
    let names: Vec<String> = steps.iter().map(|s| plan.name(s)).collect();
    match names.iter().position(|n| n == name) {
        Some(i) => Ok(steps[i].clone()),
        None => bail!("there is no step {name:?}; there are: {}", names.join(", ")),
    }
}
