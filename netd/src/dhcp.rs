//! DHCP messages (RFC 2131, options of RFC 2132): built and parsed here, sent elsewhere.
//!
//! Own code instead of a crate: the maintained one brings a whole DNS library into a program that
//! runs as root.

use std::net::Ipv4Addr;
use std::time::Duration;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
/// Leases shorter than this are refused: they would mean renewing without end.
const SHORTEST_LEASE: u32 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub address: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub resolvers: Vec<Ipv4Addr>,
    pub server: Ipv4Addr,
    pub time: Duration,
}

impl Lease {
    /// When to ask the same server again (T1), and when to ask anyone (T2).
    pub(crate) fn renew_after(&self) -> Duration {
        self.time / 2
    }

    pub(crate) fn rebind_after(&self) -> Duration {
        self.time * 7 / 8
    }
}

/// What the client asks for.
pub(crate) enum Ask<'a> {
    Discover,
    /// Takes an offer.
    Take(&'a Lease),
    /// Prolongs the lease that is in use.
    Renew(&'a Lease),
}

pub(crate) fn request(
    ask: &Ask<'_>,
    transaction: u32,
    hardware: [u8; 6],
    hostname: &str,
) -> Vec<u8> {
    let mut m = vec![BOOTREQUEST, 1, 6, 0];
    m.extend(transaction.to_be_bytes());
    m.extend([0, 0]);
    // The broadcast flag: without an address, unicast answers would not arrive.
    m.extend(if matches!(ask, Ask::Renew(_)) { [0, 0] } else { [0x80, 0] });
    m.extend(if let Ask::Renew(lease) = ask { lease.address.octets() } else { [0; 4] });
    m.extend([0; 12]);
    m.extend(hardware);
    m.resize(236, 0);
    m.extend(COOKIE);
    let kind = if matches!(ask, Ask::Discover) { Kind::Discover } else { Kind::Request };
    m.extend([53, 1, kind as u8]);
    if let Ask::Take(offer) = ask {
        m.extend([50, 4]);
        m.extend(offer.address.octets());
        m.extend([54, 4]);
        m.extend(offer.server.octets());
    }
    m.extend([55, 4, 1, 3, 6, 51]);
    m.extend([12, hostname.len() as u8]);
    m.extend(hostname.as_bytes());
    m.push(255);
    m.resize(m.len().max(300), 0);
    m
}

/// Understands a server's answer to this client's transaction; anything else is `None`.
pub(crate) fn parse(
    m: &[u8],
    transaction: u32,
    hardware: [u8; 6],
) -> Option<(Kind, Option<Lease>)> {
    if m.len() < 240
        || m[0] != BOOTREPLY
        || m[4..8] != transaction.to_be_bytes()
        || m[28..34] != hardware
        || m[236..240] != COOKIE
    {
        return None;
    }
    let kind = match option(m, 53)? {
        [2] => Kind::Offer,
        [5] => Kind::Ack,
        [6] => return Some((Kind::Nak, None)),
        _ => return None,
    };
    let address = Ipv4Addr::new(m[16], m[17], m[18], m[19]);
    let mask = ip(option(m, 1)?)?;
    let time = u32::from_be_bytes(option(m, 51)?.try_into().ok()?).max(SHORTEST_LEASE);
    let usable = !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && !address.is_broadcast();
    // A mask is ones, then zeros.
    let bits = u32::from(mask);
    if !usable || bits == 0 || bits.leading_ones() + bits.trailing_zeros() != 32 {
        return None;
    }
    let lease = Lease {
        address,
        mask,
        router: option(m, 3).and_then(|o| ip(o.get(..4)?)),
        resolvers: option(m, 6)
            .map(|o| o.chunks_exact(4).filter_map(ip).take(3).collect())
            .unwrap_or_default(),
        server: ip(option(m, 54)?)?,
        time: Duration::from_secs(time.into()),
    };
    Some((kind, Some(lease)))
}

fn ip(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn option(m: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = m.get(240..)?;
    loop {
        match rest {
            [0, tail @ ..] => rest = tail,
            [255, ..] | [] | [_] => return None,
            [code, length, tail @ ..] => {
                let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                if *code == wanted {
                    return Some(value);
                }
                rest = tail;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn answer() -> Vec<u8> {
        let mut m = request(&Ask::Discover, 7, MAC, "n");
        m[0] = BOOTREPLY;
        m[16..20].copy_from_slice(&[10, 0, 2, 15]);
        m.truncate(240);
        m.extend([
            53, 1, 2, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2, 6, 4, 10, 0, 2, 3, 51, 4, 0, 1,
            0x51, 0x80, 54, 4, 10, 0, 2, 2, 255,
        ]);
        m
    }

    #[test]
    fn an_offer_is_understood() {
        let (kind, lease) = parse(&answer(), 7, MAC).unwrap();
        let lease = lease.unwrap();
        assert_eq!(kind, Kind::Offer);
        assert_eq!(
            (lease.address, lease.router),
            (Ipv4Addr::new(10, 0, 2, 15), Some(Ipv4Addr::new(10, 0, 2, 2)))
        );
        assert_eq!((lease.renew_after().as_secs(), lease.rebind_after().as_secs()), (43200, 75600));
    }

    #[test]
    fn answers_for_others_and_broken_ones_are_ignored() {
        assert!(parse(&answer(), 8, MAC).is_none());
        assert!(parse(&answer(), 7, [9; 6]).is_none());
        for end in 0..answer().len() {
            let _ = parse(&answer()[..end], 7, MAC);
        }
        for (at, value) in [(16, 224), (248, 1), (246, 1)] {
            let mut bad = answer();
            bad[at] = value;
            assert!(parse(&bad, 7, MAC).is_none(), "{at}");
        }
        let mut long = answer();
        long[241] = 255;
        assert!(parse(&long, 7, MAC).is_none());
    }
}
