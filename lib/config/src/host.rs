//! Hosts as configuration files name them: `HOST[:PORT]`, a DNS name, an IPv4 address, or an IPv6
//! address in brackets (RFC 3986, section 3.2).

use std::net::Ipv6Addr;

/// Host of Docker Hub's registry. The names in [`HUB_ALIASES`] are names of images, not of a
/// registry that answers.
const HUB: &str = "registry-1.docker.io";
const HUB_ALIASES: [&str; 2] = ["docker.io", "index.docker.io"];

/// Checks that a text is `HOST[:PORT]` without any other part of a URL. Returns the reason
/// otherwise.
pub(crate) fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = split_port(host);
    if port.is_some_and(|p| !is_port(p)) {
        return Err("no port");
    }
    if let Some(address) = name.strip_prefix('[') {
        let address = address.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok());
        return address.map(drop).ok_or("no host");
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let good = (1..=253).contains(&name.len())
        && name.split('.').all(is_label)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    if good { Ok(()) } else { Err("no host") }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Splits `HOST[:PORT]`. The colons in the brackets of an IPv6 address separate no port.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Returns the one form of all names of a host: in lower case (RFC 3986, section 6.2.2.1), an IPv6
/// address in its short form, and Docker Hub's registry for the names that images on it have.
///
/// `host` is `HOST[:PORT]`. The port stays, because only the scheme says which one is the default.
#[must_use]
pub fn canonical_host(host: &str) -> String {
    let (name, port) = split_port(host);
    let name = name.to_ascii_lowercase();
    let is_default_port = port.is_none_or(|port| port == "443");
    if is_default_port && HUB_ALIASES.contains(&name.as_str()) {
        return HUB.to_owned();
    }
    let address = name.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let name = match address.and_then(|text| text.parse::<Ipv6Addr>().ok()) {
        Some(address) => format!("[{address}]"),
        None => name,
    };
    match port {
        // A port with leading zeros is the same port.
        Some(port) => format!("{name}:{}", port.trim_start_matches('0')),
        None => name,
    }
}

/// Returns the path of a repository on a canonical host. Docker Hub's official images have a name
/// of one component, and are in the namespace `library`.
pub(crate) fn repository_on(host: &str, repository: &str) -> String {
    if host == HUB && !repository.contains('/') {
        return format!("library/{repository}");
    }
    repository.to_owned()
}

/// Returns the host that issues tokens for a canonical host and is another one by design.
pub(crate) fn known_token_host(host: &str) -> Option<&'static str> {
    (host == HUB).then_some("auth.docker.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_with_an_optional_port() {
        for good in ["h", "h.example.org:5000", "192.0.2.1:80", "[::1]", "[2001:DB8::1]:5000"] {
            assert_eq!(check_host(good), Ok(()), "{good}");
        }
        for (bad, reason) in [
            ("", "no host"),
            ("h:", "no port"),
            ("h:0", "no port"),
            ("h:+5", "no port"),
            ("h:65536", "no port"),
            ("u@h", "no host"),
            ("h/x", "no host"),
            ("a..b", "no host"),
            ("-a", "no host"),
            ("::1", "no host"),
            ("[::1", "no host"),
            ("[::1]x:1", "no host"),
            ("[fe80::1%eth0]", "no host"),
            ("h?x", "no host"),
        ] {
            assert_eq!(check_host(bad), Err(reason), "{bad}");
        }
        assert!(check_host(&"a".repeat(64)).is_err());
    }

    #[test]
    fn every_name_of_a_host_has_one_form() {
        for (name, expected) in [
            ("Registry.Example.ORG:5000", "registry.example.org:5000"),
            ("[2001:DB8:0::1]:5000", "[2001:db8::1]:5000"),
            ("h:0443", "h:443"),
            ("docker.io", "registry-1.docker.io"),
            ("Index.Docker.io:443", "registry-1.docker.io"),
            // Another port is another server.
            ("docker.io:5000", "docker.io:5000"),
        ] {
            assert_eq!(canonical_host(name), expected);
        }
    }
}
