//! Address configuration of a node.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{ConfigProblem, InvalidValue};

/// Source of the node's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Addressing {
    /// Lease of a DHCP server.
    Dhcp {},
    /// Fixed address.
    Static {
        /// Address of the node and length of the network prefix.
        address: InterfaceAddress,
        /// Default gateway, another address of the same network.
        gateway: Option<Ipv4Addr>,
        /// DNS resolvers.
        #[serde(default)]
        resolvers: Vec<Ipv4Addr>,
    },
    /// No network.
    None {},
}

impl Addressing {
    pub(crate) fn check(&self) -> Result<(), ConfigProblem> {
        match self {
            Self::Static { address, gateway: Some(gateway), .. }
                if !address.network_contains(*gateway) || *gateway == address.ip =>
            {
                let expected = format!("another address of the network of {address}");
                Err(InvalidValue::new(expected, gateway).at("network.gateway"))
            }
            _ => Ok(()),
        }
    }
}

/// Address of a host and prefix length of its network, such as `192.0.2.7/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceAddress {
    /// Address of the host.
    pub ip: Ipv4Addr,
    prefix_bits: u8,
}

impl InterfaceAddress {
    /// Returns the network mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix_bits)))
    }

    fn network_contains(self, other: Ipv4Addr) -> bool {
        (self.ip.to_bits() ^ other.to_bits()) & self.mask().to_bits() == 0
    }
}

impl TryFrom<String> for InterfaceAddress {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let reject = |reason: &'static str| {
            InvalidValue::text("the address of a host with its prefix, such as 192.0.2.7/24", &text)
                .because(reason)
        };
        let (ip, prefix) = text.split_once('/').ok_or_else(|| reject("no prefix"))?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| reject("no IPv4 address"))?;
        let prefix = prefix.parse().ok().filter(|p| (1..=30).contains(p));
        let prefix_bits = prefix.ok_or_else(|| reject("the prefix has 1 to 30 bits"))?;
        let address = Self { ip, prefix_bits };
        let host_mask = !address.mask().to_bits();
        let host_part = ip.to_bits() & host_mask;
        if host_part == 0
            || host_part == host_mask
            || ip.is_loopback()
            || ip.is_multicast()
            || ip.octets()[0] == 0
        {
            return Err(reject("no host address"));
        }
        Ok(address)
    }
}

impl From<InterfaceAddress> for String {
    fn from(address: InterfaceAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_bits)
    }
}
