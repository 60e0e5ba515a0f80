//! Hosts that requests go to, and who may send the node where.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConfig;

/// Host and the TLS settings that it is accessed with.
#[derive(Clone)]
pub(super) struct Host {
    /// `HOST[:PORT]` in the form of [`config::canonical_host`], without the scheme's default port.
    pub(super) name: String,
    /// TLS settings; `None` for a host that is accessed without TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// Origin of a host (RFC 6454): its name with the port, and whether it is accessed with TLS.
pub(super) type Origin = (String, bool);

impl Host {
    /// Creates a host from any of its names.
    pub(super) fn new(name: &str, tls: Option<Arc<ClientConfig>>) -> Self {
        let name = origin_name(name, tls.is_some());
        Self { name, tls }
    }

    pub(super) fn origin(&self) -> Origin {
        (self.name.clone(), self.tls.is_some())
    }

    /// Splits the name into host and port. The brackets of an IPv6 address are removed.
    pub(super) fn host_and_port(&self) -> (&str, Option<u16>) {
        let default = if self.tls.is_some() { 443 } else { 80 };
        let (host, port) = match self.name.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
            _ => (self.name.as_str(), Some(default)),
        };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        (host, port)
    }
}

/// Returns the name of an origin: in canonical form, without the default port.
pub(super) fn origin_name(name: &str, tls: bool) -> String {
    let name = config::canonical_host(name);
    let default = if tls { ":443" } else { ":80" };
    match name.strip_suffix(default) {
        Some(host) => host.to_owned(),
        None => name,
    }
}

/// From where an address can be reached. A host may send the node only to hosts that can be reached
/// from at least as far: a registry in the Internet names no service of the node itself and no
/// device of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// From the node only.
    Loopback,
    /// From the local network.
    Local,
    /// From the Internet.
    Public,
}

impl Reach {
    /// Returns the reach of an address, by the special-purpose registries of RFC 6890.
    pub(super) fn of(address: IpAddr) -> Self {
        let address = match address {
            IpAddr::V6(v6) => match v6.segments() {
                // IPv4 addresses as IPv6 ones: mapped, and translated (RFC 6052).
                [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
                    let [.., a, b, c, d] = v6.octets();
                    IpAddr::from([a, b, c, d])
                }
                _ => address,
            },
            IpAddr::V4(_) => address,
        };
        match address {
            // A connection to the unspecified address leads to the node itself.
            _ if address.is_loopback() || address.is_unspecified() => Self::Loopback,
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                let is_shared = a == 100 && (64..128).contains(&b);
                let is_local = v4.is_private() || v4.is_link_local() || v4.is_multicast();
                if is_local || is_shared || a == 0 || a >= 240 { Self::Local } else { Self::Public }
            }
            IpAddr::V6(v6) => {
                let is_local =
                    v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_multicast();
                if is_local { Self::Local } else { Self::Public }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_name_for_each_origin() {
        for (name, tls, expected) in [
            ("H.example:443", true, "h.example"),
            ("h.example:443", false, "h.example:443"),
            ("h.example:80", false, "h.example"),
            ("[2001:DB8::1]:443", true, "[2001:db8::1]"),
            ("docker.io", true, "registry-1.docker.io"),
        ] {
            assert_eq!(origin_name(name, tls), expected);
        }
    }

    #[test]
    fn names_are_split_into_host_and_port() {
        for (name, expected) in [
            ("h", ("h", Some(80))),
            ("h:5000", ("h", Some(5000))),
            ("[::1]", ("::1", Some(80))),
            ("[::1]:5000", ("::1", Some(5000))),
            ("h:99999", ("h", None)),
        ] {
            assert_eq!(Host::new(name, None).host_and_port(), expected);
        }
    }

    #[test]
    fn addresses_of_the_node_and_its_network_are_not_public() {
        for (address, expected) in [
            ("127.0.0.1", Reach::Loopback),
            ("0.0.0.0", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("10.1.2.3", Reach::Local),
            ("192.168.0.1", Reach::Local),
            ("169.254.169.254", Reach::Local),
            ("100.64.0.1", Reach::Local),
            ("fd00::1", Reach::Local),
            ("fe80::1", Reach::Local),
            ("64:ff9b::a00:1", Reach::Local),
            ("8.8.8.8", Reach::Public),
            ("100.128.0.1", Reach::Public),
            ("2606:4700::1", Reach::Public),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), expected, "{address}");
        }
        assert!(Reach::Loopback < Reach::Local && Reach::Local < Reach::Public);
    }
}
