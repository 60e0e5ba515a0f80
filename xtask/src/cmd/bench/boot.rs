//! `cargo xtask bench boot`: measures in the guest the boot times that the README promises.

use std::time::Duration;

use anyhow::{Result, bail};

use super::stats::{median, seconds};
use crate::cmd::{Session, build_image, dev};
use crate::image::sparse;
use crate::qemu::boot::Boot;
use crate::qemu::console::{Console, free_port};
use crate::rules::sysroot;

/// Limit for the time from kernel start to handover.
const MAX_HANDOVER_S: f64 = 2.0;
/// Limit for the time from kernel start until the engine answers.
const MAX_ENGINE_S: f64 = 12.0;
/// Time after which a boot has failed.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// Boots the image several times and prints the median times.
pub(super) fn run(boots: usize) -> Result<()> {
    let session = Session::open_test()?;
    let image = build_image::build(&session)?;
    let (tools, machine) = (sysroot::tools(&session.graph)?, session.image.machine.clone());
    let dir = dev::scratch(&session.graph, "bench")?;
    drop(session);
    let (mut handover, mut engine) = (Vec::new(), Vec::new());
    for n in 0..boots {
        let dir = dir.join(n.to_string());
        std::fs::create_dir_all(&dir)?;
        sparse::copy(&image, &dir.join("disk.img"))?;
        let boot = Boot {
            tools: &tools,
            machine: &machine,
            dir: &dir,
            port: free_port()?,
            tpm: true,
            external_network: false,
        };
        let mut console = Console::start(&boot)?;
        handover.push(seconds(&console.wait_for("handover:", BOOT_TIMEOUT)?)?);
        engine.push(seconds(&console.wait_for("dockerd is ready", BOOT_TIMEOUT)?)?);
    }
    let mut all_ok = true;
    for (subject, mut times, limit) in [
        ("kernel start to handover", handover, MAX_HANDOVER_S),
        ("kernel start to engine answers", engine, MAX_ENGINE_S),
    ] {
        let median = median(&mut times);
        all_ok &= median <= limit;
        println!(
            "{subject:34} median {median:6.2} s of {} boots ({:.2} to {:.2})   at most {limit} s   \
             {}",
            times.len(),
            times[0],
            times[times.len() - 1],
            if median <= limit { "ok" } else { "TOO SLOW" }
        );
    }
    println!("guest times under QEMU emulation; they are valid only if the host is otherwise idle");
    if !all_ok {
        bail!("a time exceeds the limit in README.md; see the table above");
    }
    Ok(())
}
