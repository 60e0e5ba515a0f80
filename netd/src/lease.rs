//! Gets an address from a DHCP server and keeps it: RFC 2131, section 4.4, without the states that
//! a reboot would need.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::address;
use crate::dhcp::{self, Ask, Kind, Lease};
use crate::sys::{self, Interface};

const ANYONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::BROADCAST), 67);
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(32);

struct Client {
    socket: UdpSocket,
    hardware: [u8; 6],
    hostname: String,
}

pub(crate) fn keep(hostname: &str) -> Result<()> {
    let name = address::wait_for_interface()?;
    let interface = Interface::new(&name)?;
    interface.up().with_context(|| format!("bringing {name} up"))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68)).context("port 68")?;
    sys::bind_to_device(&socket, &name)?;
    let client = Client { socket, hardware: hardware(&name)?, hostname: hostname.to_owned() };
    loop {
        let lease = client.obtain()?;
        address::apply(&interface, lease.address, lease.mask, lease.router, &lease.resolvers)?;
        println!("{name}: {} for {} s from {}", lease.address, lease.time.as_secs(), lease.server);
        client.hold(lease)?;
        println!("{name}: the lease ran out and nobody renewed it");
        interface.set_address(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED)?;
    }
}

fn hardware(name: &str) -> Result<[u8; 6]> {
    let path = format!("/sys/class/net/{name}/address");
    let text = std::fs::read_to_string(&path)?;
    let bytes: Vec<u8> =
        text.trim().split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("{path}: expected six bytes, found {text:?}"))
}

impl Client {
    /// Asks until there is a lease.
    fn obtain(&self) -> Result<Lease> {
        let mut patience = FIRST_PATIENCE;
        loop {
            if let Some((Kind::Offer, Some(offer))) = self.ask(&Ask::Discover, ANYONE, patience)?
                && let Some((Kind::Ack, Some(lease))) =
                    self.ask(&Ask::Take(&offer), ANYONE, patience)?
            {
                return Ok(lease);
            }
            patience = (patience * 2).min(LONGEST_PATIENCE);
        }
    }

    /// Returns when the lease has run out, or the server took it back.
    fn hold(&self, mut lease: Lease) -> Result<()> {
        let mut since = Instant::now();
        while since.elapsed() < lease.time {
            let (next, server) = if since.elapsed() < lease.rebind_after() {
                (lease.renew_after(), SocketAddr::new(lease.server.into(), 67))
            } else {
                (lease.rebind_after(), ANYONE)
            };
            std::thread::sleep(next.saturating_sub(since.elapsed()));
            let asked = Instant::now();
            match self.ask(&Ask::Renew(&lease), server, FIRST_PATIENCE * 4) {
                Ok(Some((Kind::Ack, Some(fresh)))) if fresh.address == lease.address => {
                    lease = fresh;
                    since = asked;
                }
                Ok(Some((Kind::Nak, _))) => return Ok(()),
                // Half of what remains, as RFC 2131 section 4.4.5 has it.
                _ => std::thread::sleep(
                    (lease.time.saturating_sub(since.elapsed()) / 2)
                        .clamp(FIRST_PATIENCE, Duration::from_secs(60)),
                ),
            }
        }
        Ok(())
    }

    fn ask(
        &self,
        ask: &Ask<'_>,
        to: SocketAddr,
        patience: Duration,
    ) -> Result<Option<(Kind, Option<Lease>)>> {
        let mut transaction = [0; 4];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut transaction)?;
        let transaction = u32::from_be_bytes(transaction);
        if let Err(error) =
            self.socket.send_to(&dhcp::request(ask, transaction, self.hardware, &self.hostname), to)
        {
            println!("asking for an address: {error}");
            std::thread::sleep(patience);
            return Ok(None);
        }
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 1500];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let Ok(n) = self.socket.recv(&mut buffer) else { return Ok(None) };
            if let Some(answer) = dhcp::parse(&buffer[..n], transaction, self.hardware) {
                return Ok(Some(answer));
            }
        }
    }
}
