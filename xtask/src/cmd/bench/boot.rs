//! `cargo xtask bench boot`: times that are promised in the README, measured in the guest.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cmd::{DEFAULT_VARIANT, TEST_MACHINE, build_image, dev};
use crate::console::Console;
use crate::plan::Plan;
use crate::qemu::Boot;

const HANDOVER_S: f64 = 2.0;
const ENGINE_S: f64 = 12.0;
const DEADLINE: Duration = Duration::from_secs(180);

pub(super) fn run(boots: usize) -> Result<()> {
    let plan = Plan::new(TEST_MACHINE, DEFAULT_VARIANT, false)?;
    let image = build_image::build(&plan)?;
    let (tools, machine) = (plan.tools()?, plan.machine.clone());
    let dir = dev::scratch(&plan, "bench")?;
    drop(plan);
    let (mut handover, mut engine) = (Vec::new(), Vec::new());
    for n in 0..boots {
        let dir = dir.join(n.to_string());
        std::fs::create_dir_all(&dir)?;
        build_image::sparse_copy(&image, &dir.join("disk.img"))?;
        let boot = Boot {
            tools: &tools,
            machine: &machine,
            dir: &dir,
            port: crate::console::free_port()?,
            tpm: true,
            outside: false,
        };
        let mut console = Console::start(&boot)?;
        handover.push(seconds(&console.wait_for("handover:", DEADLINE)?)?);
        engine.push(seconds(&console.wait_for("dockerd is ready", DEADLINE)?)?);
    }
    let mut kept = true;
    for (what, mut times, most) in [
        ("kernel start to handover", handover, HANDOVER_S),
        ("kernel start to engine answers", engine, ENGINE_S),
    ] {
        let median = super::median(&mut times);
        kept &= median <= most;
        println!(
            "{what:34} median {median:6.2} s of {} boots ({:.2} to {:.2})   at most {most} s   {}",
            times.len(),
            times[0],
            times[times.len() - 1],
            if median <= most { "ok" } else { "TOO SLOW" }
        );
    }
    println!("guest time under QEMU's emulation; an otherwise idle host is assumed");
    if !kept {
        bail!("a time is over what README.md promises");
    }
    Ok(())
}

/// `basalt[   1.234] …`
pub(super) fn seconds(line: &str) -> Result<f64> {
    let (_, rest) = line.split_once("basalt[").context("no time in the line")?;
    let (time, _) = rest.split_once(']').context("no time in the line")?;
    Ok(time.trim().parse()?)
}
