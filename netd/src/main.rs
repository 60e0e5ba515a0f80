//! Gives the node an address, a resolver and the time, and keeps them.
#![deny(unsafe_code)]

mod address;
mod clock;
mod dhcp;
mod lease;
mod sntp;
#[allow(unsafe_code)]
mod sys;

use anyhow::{Context as _, Result};
use config::Addressing;

const IMAGE: &str = "/etc/basalt/node.toml";
/// What init found on the boot partition.
const OWN: &str = "/run/config/node.toml";

fn main() -> Result<()> {
    let image = std::fs::read_to_string(IMAGE).with_context(|| format!("reading {IMAGE}"))?;
    let own = match std::fs::read_to_string(OWN) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {OWN}")),
    };
    let node = config::node(&image, own.as_deref())?;
    clock::never_before_floor()?;
    // From here on others may start: they do not wait for an address.
    std::fs::write("/run/net/ready", "")?;
    let servers = node.time_servers.clone();
    std::thread::spawn(move || clock::keep(&servers));
    match node.network {
        Addressing::None {} => loop {
            std::thread::park();
        },
        Addressing::Static { address, gateway, resolvers } => {
            address::fixed(address, gateway, &resolvers)?;
            loop {
                std::thread::park();
            }
        }
        Addressing::Dhcp {} => lease::keep(&node.hostname),
    }
}
