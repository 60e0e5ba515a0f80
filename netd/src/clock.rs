//! The clock: never before its floor, and synchronised with a time server.
//!
//! Invariant: the clock is never set to a time before the floor. The floor is the later of the
//! build time of the image and the modification time of /data/clock, the last time that this node
//! knew. A Raspberry Pi before the 5 has no real-time clock. Plain SNTP is not authenticated: an
//! attacker can move the clock forwards, but not back.

use std::net::{ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use config::Boot;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

const BOOT_FILE: &str = "/etc/basalt/boot.toml";
/// File whose modification time is the last known time.
const LAST_TIME_FILE: &str = "/data/clock";

/// Interval between two synchronisations.
const SYNC_INTERVAL: Duration = Duration::from_secs(3600);
/// Interval between two attempts if no server answers.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Sets the clock to its floor if it is earlier.
pub(crate) fn raise_to_floor() -> Result<()> {
    let floor = floor()?;
    if SystemTime::now() < floor {
        set(floor)?;
        logging::info!("the clock was earlier than its floor and starts at the floor");
    }
    Ok(())
}

fn floor() -> Result<SystemTime> {
    let text =
        std::fs::read_to_string(BOOT_FILE).with_context(|| format!("cannot read {BOOT_FILE}"))?;
    let boot: Boot = config::parse(BOOT_FILE, &text)?;
    let built = UNIX_EPOCH + Duration::from_secs(boot.built);
    Ok(Path::new(LAST_TIME_FILE)
        .metadata()
        .and_then(|m| m.modified())
        .map_or(built, |last| last.max(built)))
}

/// Synchronises the clock with the first server that answers, again and again.
pub(crate) fn synchronise_forever(servers: &[String]) {
    // The floor stays that of the start. If a wrong time were to raise it, the right time would be
    // rejected from then on.
    let floor = floor().unwrap_or(UNIX_EPOCH);
    loop {
        let answer = servers.iter().find_map(|server| match request_time(server, floor) {
            Ok(time) => Some((server, time)),
            Err(error) => {
                logging::warn!("time server {server}: {error:#}");
                None
            }
        });
        if let Some((server, time)) = answer {
            match set(time) {
                Ok(()) => logging::info!("the clock was set from {server}"),
                Err(error) => logging::error!("cannot set the clock: {error:#}"),
            }
        }
        // The next boot uses this time if it has no network.
        let _ = std::fs::write(LAST_TIME_FILE, "");
        let done = answer.is_some() || servers.is_empty();
        std::thread::sleep(if done { SYNC_INTERVAL } else { RETRY_INTERVAL });
    }
}

/// Asks a server for the time. Rejects times before the floor.
fn request_time(server: &str, floor: SystemTime) -> Result<SystemTime> {
    let address = (server, 123)
        .to_socket_addrs()
        .context("cannot resolve the name")?
        .find(|a| a.is_ipv4())
        .context("the name has no IPv4 address")?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
    socket.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    socket.connect(address).context("no route")?;
    let mut nonce = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut nonce)?;
    let nonce = u64::from_be_bytes(nonce);
    socket.send(&crate::sntp::request(nonce)).context("cannot send the request")?;
    let mut answer = [0; 128];
    let n = socket.recv(&mut answer).context("no answer")?;
    let time = UNIX_EPOCH + crate::sntp::parse(&answer[..n], nonce).context("invalid answer")?;
    if time < floor {
        bail!("the answer is earlier than the floor of the clock");
    }
    Ok(time)
}

fn set(time: SystemTime) -> Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(time.duration_since(UNIX_EPOCH)?))?;
    Ok(())
}
