//! The DHCP client: it obtains a lease and renews it (RFC 2131, section 4.4). It has no state
//! INIT-REBOOT, because it does not persist its lease.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::dhcp::{self, Lease, MessageType, Request};
use crate::interface;
use crate::sys::{self, Interface};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
const BROADCAST: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::BROADCAST), SERVER_PORT);

/// Time to wait for an offer at first. It doubles with each attempt.
const BACKOFF_INITIAL: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(32);
/// Time to wait for the answer to a renewal.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds of the time between two renewals without an answer.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

struct Client {
    socket: UdpSocket,
    hardware_address: [u8; 6],
    hostname: String,
}

/// Keeps a lease for the first interface. Returns only on an error.
pub(crate) fn maintain(hostname: &str) -> Result<Infallible> {
    let name = interface::wait_for_interface()?;
    let interface = Interface::new(&name)?;
    interface.bring_up().with_context(|| format!("cannot bring {name} up"))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))
        .with_context(|| format!("cannot listen on UDP port {CLIENT_PORT}"))?;
    sys::bind_to_device(&socket, &name)
        .with_context(|| format!("cannot bind the socket to {name}"))?;
    let client = Client {
        socket,
        hardware_address: hardware_address(&name)?,
        hostname: hostname.to_owned(),
    };
    loop {
        let lease = client.obtain()?;
        interface::apply(&interface, lease.address, lease.mask, lease.router, &lease.resolvers)?;
        logging::info!(
            "{name}: address {} for {} s from {}",
            lease.address,
            lease.duration.as_secs(),
            lease.server
        );
        client.renew_until_lost(lease)?;
        logging::warn!("{name}: lost the lease, no server renewed it");
        interface
            .set_address(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED)
            .context("cannot remove the address")?;
    }
}

fn hardware_address(name: &str) -> Result<[u8; 6]> {
    let path = format!("/sys/class/net/{name}/address");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let bytes: Vec<u8> =
        text.trim().split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("{path}: expected six bytes, found {text:?}"))
}

impl Client {
    /// Requests a lease until a server grants one.
    fn obtain(&self) -> Result<Lease> {
        let mut timeout = BACKOFF_INITIAL;
        loop {
            if let Some((MessageType::Offer, Some(offer))) =
                self.exchange(&Request::Discover, BROADCAST, timeout)?
                && let Some((MessageType::Ack, Some(lease))) =
                    self.exchange(&Request::Select(&offer), BROADCAST, timeout)?
            {
                return Ok(lease);
            }
            timeout = (timeout * 2).min(BACKOFF_MAX);
        }
    }

    /// Renews the lease. Returns when it has expired or the server revoked it.
    fn renew_until_lost(&self, mut lease: Lease) -> Result<()> {
        let mut since = Instant::now();
        while since.elapsed() < lease.duration {
            let (next, server) = if since.elapsed() < lease.rebind_after() {
                (lease.renew_after(), SocketAddr::new(lease.server.into(), SERVER_PORT))
            } else {
                (lease.rebind_after(), BROADCAST)
            };
            std::thread::sleep(next.saturating_sub(since.elapsed()));
            let requested = Instant::now();
            match self.exchange(&Request::Renew(&lease), server, RENEWAL_TIMEOUT) {
                Ok(Some((MessageType::Ack, Some(fresh)))) if fresh.address == lease.address => {
                    lease = fresh;
                    since = requested;
                }
                Ok(Some((MessageType::Nak, _))) => return Ok(()),
                // Without an answer, half of the remaining time passes before the next attempt
                // (RFC 2131, section 4.4.5).
                _ => std::thread::sleep(
                    (lease.duration.saturating_sub(since.elapsed()) / 2)
                        .clamp(MIN_RENEWAL_INTERVAL, MAX_RENEWAL_INTERVAL),
                ),
            }
        }
        Ok(())
    }

    /// Sends a request and waits for an answer to it; returns `None` if there is none in time.
    fn exchange(
        &self,
        request: &Request<'_>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Option<(MessageType, Option<Lease>)>> {
        let mut transaction = [0; 4];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut transaction)?;
        let transaction = u32::from_be_bytes(transaction);
        let message = dhcp::build(request, transaction, self.hardware_address, &self.hostname);
        if let Err(error) = self.socket.send_to(&message, to) {
            logging::warn!("cannot send a DHCP request to {to}: {error}");
            std::thread::sleep(timeout);
            return Ok(None);
        }
        let deadline = Instant::now() + timeout;
        let mut buffer = [0; 1500];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let Ok(n) = self.socket.recv(&mut buffer) else { return Ok(None) };
            if let Some(answer) = dhcp::parse(&buffer[..n], transaction, self.hardware_address) {
                return Ok(Some(answer));
            }
        }
    }
}
