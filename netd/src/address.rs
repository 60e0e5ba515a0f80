//! An interface, its address and what goes with it, whoever said so.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use config::Subnet;

use crate::sys::Interface;

/// Gives the first interface an address of the owner's choice, for good.
pub(crate) fn fixed(
    address: Subnet,
    gateway: Option<Ipv4Addr>,
    resolvers: &[Ipv4Addr],
) -> Result<()> {
    let name = wait_for_interface()?;
    let interface = Interface::new(&name)?;
    interface.up().with_context(|| format!("bringing {name} up"))?;
    apply(&interface, address.host, address.mask(), gateway, resolvers)?;
    println!("{name}: {address} as node.toml says");
    Ok(())
}

/// The first Ethernet interface; USB ones appear late.
pub(crate) fn wait_for_interface() -> Result<String> {
    let mut said = false;
    loop {
        let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        let physical = names
            .into_iter()
            .find(|name| Path::new("/sys/class/net").join(name).join("device").exists());
        if let Some(name) = physical {
            return Ok(name);
        }
        if !said {
            println!("no network interface yet");
            said = true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) fn apply(
    interface: &Interface,
    address: Ipv4Addr,
    mask: Ipv4Addr,
    router: Option<Ipv4Addr>,
    resolvers: &[Ipv4Addr],
) -> Result<()> {
    interface.set_address(address, mask).context("setting the address")?;
    if let Some(router) = router {
        interface.add_default_route(router).context("setting the default route")?;
    }
    let text: String = resolvers.iter().map(|r| format!("nameserver {r}\n")).collect();
    // Written whole: a container that starts now copies this file.
    std::fs::write("/run/resolv.conf.new", text)?;
    std::fs::rename("/run/resolv.conf.new", "/run/resolv.conf")?;
    Ok(())
}
