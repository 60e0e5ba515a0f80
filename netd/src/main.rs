//! The network daemon: it gives the node an address, resolvers and the time, and keeps them
//! current.

#![deny(unsafe_code)]

mod clock;
mod dhcp;
mod interface;
mod lease;
mod sntp;
#[allow(unsafe_code)]
mod sys;

use std::convert::Infallible;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use config::Addressing;
use logging::{Level, Logger};

/// Settings of the image.
const IMAGE_SETTINGS: &str = "/etc/basalt/node.toml";
/// Settings of this node, which init copied from the boot partition.
const NODE_SETTINGS: &str = "/run/config/node.toml";
/// File that signals init that netd is ready.
const READY_FILE: &str = "/run/net/ready";

fn main() -> ExitCode {
    logging::install(Logger { now: uptime, write: write_line, max_level: Level::Info });
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            logging::error!("netd exits: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Infallible> {
    let image = std::fs::read_to_string(IMAGE_SETTINGS)
        .with_context(|| format!("cannot read {IMAGE_SETTINGS}"))?;
    let overrides = match std::fs::read_to_string(NODE_SETTINGS) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {NODE_SETTINGS}"));
        }
    };
    let node = config::parse_node(&image, overrides.as_deref())?;
    clock::raise_to_floor()?;
    // The services that need netd may start now. They do not need an address.
    std::fs::write(READY_FILE, "").with_context(|| format!("cannot write {READY_FILE}"))?;
    let servers = node.time_servers.clone();
    std::thread::spawn(move || clock::synchronise_forever(&servers));
    match node.network {
        Addressing::None {} => park(),
        Addressing::Static { address, gateway, resolvers } => {
            interface::configure_static(address, gateway, &resolvers)?;
            park()
        }
        Addressing::Dhcp {} => lease::maintain(&node.hostname),
    }
}

/// Blocks the main thread while the clock thread runs.
fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// Returns the time since the kernel started.
fn uptime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// Writes a line to the standard output, which init forwards to the console.
fn write_line(line: &logging::Line<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
