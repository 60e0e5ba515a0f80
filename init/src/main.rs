//! Init, the first process (PID 1) of a Basalt node.
//!
//! Invariants:
//! - Init starts nothing before all boot events are in the TPM. Every earlier failure stops the
//!   node with one line on the console.
//! - After the handover, init extends no more events. Like every process but trustd, it cannot open
//!   the TPM.
//! - Init never returns, and it reaps every child process.
//! - Processes that a service has to watch do not run for longer than a stated time without it.

#![deny(unsafe_code)]

mod absence;
mod cgroup;
mod console;
mod control;
mod data;
mod error;
mod launch;
mod measured_boot;
mod measurements;
mod mounts;
mod output;
mod service;
mod supervisor;
#[allow(unsafe_code)]
mod sys;
mod tpm;

use std::convert::Infallible;

use config::{Boot, Machine};

use error::InitError;

const BOOT_FILE: &str = "/etc/basalt/boot.toml";

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("launch") {
        console::install_service_logger();
        launch::run(args.next());
    }
    if std::process::id() != 1 {
        eprintln!("basalt-init is the first process of a node; only the kernel can start it");
        std::process::exit(2);
    }
    console::install_logger();
    match boot() {
        Ok(never) => match never {},
        Err(error) => {
            logging::error!("STOPPED: {}", logging::Chain(&error));
            sys::halt();
        }
    }
}

/// Measures the platform, prepares the system, and supervises the services.
fn boot() -> Result<Infallible, InitError> {
    mounts::mount_for_measuring()?;
    let text =
        std::fs::read_to_string(BOOT_FILE).map_err(InitError::io(format!("read {BOOT_FILE}")))?;
    let boot: Boot = config::parse(BOOT_FILE, &text)?;
    let command_line = measurements::command_line()?;
    let machine = Machine::from_command_line(&command_line)?;
    logging::info!("Basalt {} ({} {})", boot.version, boot.variant, machine.name);
    let node = measured_boot::measure(&boot, &machine, &command_line)?;
    logging::info!("handover: the platform is measured");
    mounts::mount_for_services(&node.hostname)?;
    data::mount(&machine)?;
    cgroup::prepare()?;
    supervisor::run(service::load()?)
}
