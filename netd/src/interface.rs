//! The network interface: its address, its default route, and the resolvers.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use config::InterfaceAddress;

use crate::sys::Interface;

const INTERFACES: &str = "/sys/class/net";
const RESOLVER_FILE: &str = "/run/resolv.conf";

/// Interval between two searches for an interface.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Gives the first interface the fixed address of the settings.
pub(crate) fn configure_static(
    address: InterfaceAddress,
    gateway: Option<Ipv4Addr>,
    resolvers: &[Ipv4Addr],
) -> Result<()> {
    let name = wait_for_interface()?;
    let interface = Interface::new(&name)?;
    interface.bring_up().with_context(|| format!("cannot bring {name} up"))?;
    apply(&interface, address.ip, address.mask(), gateway, resolvers)?;
    logging::info!("{name}: address {address}, fixed by node.toml");
    Ok(())
}

/// Waits for a physical interface and returns the name of the first one. USB adapters appear late.
pub(crate) fn wait_for_interface() -> Result<String> {
    let mut reported = false;
    loop {
        let mut names: Vec<String> = std::fs::read_dir(INTERFACES)
            .with_context(|| format!("cannot list {INTERFACES}"))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        let is_physical = |name: &String| Path::new(INTERFACES).join(name).join("device").exists();
        if let Some(name) = names.into_iter().find(is_physical) {
            return Ok(name);
        }
        if !reported {
            logging::warn!("no network interface found, waiting for one");
            reported = true;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Sets address and default route of an interface, and writes the resolvers.
pub(crate) fn apply(
    interface: &Interface,
    address: Ipv4Addr,
    mask: Ipv4Addr,
    router: Option<Ipv4Addr>,
    resolvers: &[Ipv4Addr],
) -> Result<()> {
    interface.set_address(address, mask).context("cannot set the address")?;
    if let Some(router) = router {
        interface.add_default_route(router).context("cannot set the default route")?;
    }
    let text: String = resolvers.iter().map(|r| format!("nameserver {r}\n")).collect();
    // Containers copy this file when they start, so it is replaced atomically.
    let new = format!("{RESOLVER_FILE}.new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, RESOLVER_FILE))
        .with_context(|| format!("cannot write {RESOLVER_FILE}"))
}
