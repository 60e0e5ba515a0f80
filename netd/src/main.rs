//! Gives the node an address, a resolver and the time, and keeps them.
#![deny(unsafe_code)]

mod clock;
mod dhcp;
mod lease;
mod sntp;
#[allow(unsafe_code)]
mod sys;

use anyhow::{Context as _, Result};
use config::{Dhcp, Node};

fn main() -> Result<()> {
    let text = std::fs::read_to_string("/etc/basalt/node.toml").context("reading /etc/basalt/node.toml")?;
    let node: Node = config::parse("/etc/basalt/node.toml", &text)?;
    clock::never_before_floor()?;
    // From here on others may start: they do not wait for an address.
    std::fs::write("/run/net/ready", "")?;
    let servers = node.time_servers.clone();
    std::thread::spawn(move || clock::keep(&servers));
    match node.network {
        Dhcp::None {} => loop {
            std::thread::park();
        },
        Dhcp::Dhcp {} => lease::keep(&node.hostname),
    }
}
