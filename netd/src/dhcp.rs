//! DHCP messages (RFC 2131, with options of RFC 2132). The module builds and parses them, and does
//! no I/O.
//!
//! It is used instead of a crate, because the maintained crate depends on a DNS library, which
//! would run as root.

use std::net::Ipv4Addr;
use std::time::Duration;

/// Magic cookie before the options (RFC 2131, section 3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
/// Shortest duration of a lease. Shorter ones are extended to it, because the client would renew
/// them all the time.
const MIN_LEASE_S: u32 = 60;

/// Length of the fixed-size part of a message, before the options.
const HEADER_BYTES: usize = 240;
/// Length that some servers require of a message.
const MIN_MESSAGE_BYTES: usize = 300;

const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_RESOLVERS: u8 = 6;
const OPTION_HOSTNAME: u8 = 12;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_LEASE_TIME: u8 = 51;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_REQUESTED_OPTIONS: u8 = 55;
const OPTION_PAD: u8 = 0;
const OPTION_END: u8 = 255;

/// Type of a message (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
}

/// An offered or granted lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub address: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub resolvers: Vec<Ipv4Addr>,
    pub server: Ipv4Addr,
    pub duration: Duration,
}

impl Lease {
    /// Returns the time after which the client asks the same server to renew the lease (T1).
    pub(crate) fn renew_after(&self) -> Duration {
        self.duration / 2
    }

    /// Returns the time after which the client asks any server to renew the lease (T2).
    pub(crate) fn rebind_after(&self) -> Duration {
        self.duration * 7 / 8
    }
}

/// Request of the client.
pub(crate) enum Request<'a> {
    /// Asks servers for offers.
    Discover,
    /// Accepts an offer.
    Select(&'a Lease),
    /// Asks for the extension of a lease.
    Renew(&'a Lease),
}

/// Builds a message. The host name has at most 255 bytes.
pub(crate) fn build(
    request: &Request<'_>,
    transaction: u32,
    hardware_address: [u8; 6],
    hostname: &str,
) -> Vec<u8> {
    let mut m = vec![BOOTREQUEST, 1, 6, 0];
    m.extend(transaction.to_be_bytes());
    m.extend([0, 0]);
    // Without an address, the client can receive answers only by broadcast, and sets the flag for
    // it.
    m.extend(if matches!(request, Request::Renew(_)) { [0, 0] } else { [0x80, 0] });
    m.extend(if let Request::Renew(lease) = request { lease.address.octets() } else { [0; 4] });
    m.extend([0; 12]);
    m.extend(hardware_address);
    m.resize(HEADER_BYTES - COOKIE.len(), 0);
    m.extend(COOKIE);
    let message_type = match request {
        Request::Discover => MessageType::Discover,
        Request::Select(_) | Request::Renew(_) => MessageType::Request,
    };
    m.extend([OPTION_MESSAGE_TYPE, 1, message_type as u8]);
    if let Request::Select(offer) = request {
        m.extend([OPTION_REQUESTED_ADDRESS, 4]);
        m.extend(offer.address.octets());
        m.extend([OPTION_SERVER, 4]);
        m.extend(offer.server.octets());
    }
    let requested = [OPTION_MASK, OPTION_ROUTER, OPTION_RESOLVERS, OPTION_LEASE_TIME];
    m.extend([OPTION_REQUESTED_OPTIONS, requested.len() as u8]);
    m.extend(requested);
    m.extend([OPTION_HOSTNAME, hostname.len() as u8]);
    m.extend(hostname.as_bytes());
    m.push(OPTION_END);
    m.resize(m.len().max(MIN_MESSAGE_BYTES), 0);
    m
}

/// Parses the answer of a server to this transaction. Returns `None` for all other messages.
pub(crate) fn parse(
    m: &[u8],
    transaction: u32,
    hardware_address: [u8; 6],
) -> Option<(MessageType, Option<Lease>)> {
    if m.len() < HEADER_BYTES
        || m[0] != BOOTREPLY
        || m[4..8] != transaction.to_be_bytes()
        || m[28..34] != hardware_address
        || m[236..HEADER_BYTES] != COOKIE
    {
        return None;
    }
    let message_type = match option(m, OPTION_MESSAGE_TYPE)? {
        [2] => MessageType::Offer,
        [5] => MessageType::Ack,
        [6] => return Some((MessageType::Nak, None)),
        _ => return None,
    };
    let address = Ipv4Addr::new(m[16], m[17], m[18], m[19]);
    let mask = parse_address(option(m, OPTION_MASK)?)?;
    let seconds = u32::from_be_bytes(option(m, OPTION_LEASE_TIME)?.try_into().ok()?);
    let usable = !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && !address.is_broadcast();
    // A valid mask is a sequence of ones and then zeros.
    let bits = u32::from(mask);
    if !usable || bits == 0 || bits.leading_ones() + bits.trailing_zeros() != 32 {
        return None;
    }
    let lease = Lease {
        address,
        mask,
        router: option(m, OPTION_ROUTER).and_then(|o| parse_address(o.get(..4)?)),
        resolvers: option(m, OPTION_RESOLVERS)
            .map(|o| o.chunks_exact(4).filter_map(parse_address).take(3).collect())
            .unwrap_or_default(),
        server: parse_address(option(m, OPTION_SERVER)?)?,
        duration: Duration::from_secs(seconds.max(MIN_LEASE_S).into()),
    };
    Some((message_type, Some(lease)))
}

fn parse_address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// Returns the value of an option.
fn option(m: &[u8], requested: u8) -> Option<&[u8]> {
    let mut rest = m.get(HEADER_BYTES..)?;
    loop {
        match rest {
            [OPTION_PAD, tail @ ..] => rest = tail,
            [OPTION_END, ..] | [] | [_] => return None,
            [code, length, tail @ ..] => {
                let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                if *code == requested {
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

    fn offer() -> Vec<u8> {
        let mut m = build(&Request::Discover, 7, MAC, "n");
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
    fn an_offer_is_parsed() {
        let (message_type, lease) = parse(&offer(), 7, MAC).unwrap();
        let lease = lease.unwrap();
        assert_eq!(message_type, MessageType::Offer);
        assert_eq!(
            (lease.address, lease.router),
            (Ipv4Addr::new(10, 0, 2, 15), Some(Ipv4Addr::new(10, 0, 2, 2)))
        );
        assert_eq!((lease.renew_after().as_secs(), lease.rebind_after().as_secs()), (43200, 75600));
    }

    #[test]
    fn malformed_answers_and_those_for_other_clients_are_ignored() {
        assert!(parse(&offer(), 8, MAC).is_none());
        assert!(parse(&offer(), 7, [9; 6]).is_none());
        for end in 0..offer().len() {
            let _ = parse(&offer()[..end], 7, MAC);
        }
        for (at, value) in [(16, 224), (248, 1), (246, 1)] {
            let mut bad = offer();
            bad[at] = value;
            assert!(parse(&bad, 7, MAC).is_none(), "{at}");
        }
        let mut long = offer();
        long[241] = 255;
        assert!(parse(&long, 7, MAC).is_none());
    }
}
