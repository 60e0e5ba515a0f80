//! The clock: never before the floor, then what a time server says.
//!
//! Invariant: the clock is not set to a moment before the floor, which is the latest of the image's
//! build time and the last moment that this node knew (the modification time of /data/clock). A
//! Raspberry Pi before the 5 has no clock of its own. Plain SNTP is not authenticated: a liar can
//! move the clock forwards, never back.

use std::net::{ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use config::Boot;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

const KNOWN: &str = "/data/clock";
const AGAIN_AFTER_SUCCESS: Duration = Duration::from_secs(3600);
const AGAIN_AFTER_FAILURE: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(crate) fn never_before_floor() -> Result<()> {
    let floor = floor()?;
    if SystemTime::now() < floor {
        set(floor)?;
        println!("the clock was before the image's time and starts at its floor");
    }
    Ok(())
}

fn floor() -> Result<SystemTime> {
    let text = std::fs::read_to_string("/etc/basalt/boot.toml")
        .context("reading /etc/basalt/boot.toml")?;
    let boot: Boot = config::parse("/etc/basalt/boot.toml", &text)?;
    let built = UNIX_EPOCH + Duration::from_secs(boot.built);
    Ok(Path::new(KNOWN)
        .metadata()
        .and_then(|m| m.modified())
        .map_or(built, |known| known.max(built)))
}

pub(crate) fn keep(servers: &[String]) {
    // As it was at the start: a wrong clock of our own must not become the floor that keeps the
    // right time out.
    let floor = floor().unwrap_or(UNIX_EPOCH);
    loop {
        let synchronised = servers.iter().find_map(|server| match ask(server, floor) {
            Ok(offset) => Some((server, offset)),
            Err(error) => {
                println!("time server {server}: {error:#}");
                None
            }
        });
        if let Some((server, time)) = synchronised {
            match set(time) {
                Ok(()) => println!("the time is from {server}"),
                Err(error) => println!("the clock cannot be set: {error}"),
            }
        }
        // Remembers how late it is, for a boot without network.
        let _ = std::fs::write(KNOWN, "");
        std::thread::sleep(if synchronised.is_some() || servers.is_empty() {
            AGAIN_AFTER_SUCCESS
        } else {
            AGAIN_AFTER_FAILURE
        });
    }
}

fn ask(server: &str, floor: SystemTime) -> Result<SystemTime> {
    let address = (server, 123)
        .to_socket_addrs()
        .context("its name is not known")?
        .find(|a| a.is_ipv4())
        .context("it has no IPv4 address")?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.connect(address)?;
    let mut nonce = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut nonce)?;
    let nonce = u64::from_be_bytes(nonce);
    socket.send(&crate::sntp::request(nonce))?;
    let mut answer = [0; 128];
    let n = socket.recv(&mut answer).context("no answer")?;
    let time =
        UNIX_EPOCH + crate::sntp::parse(&answer[..n], nonce).context("the answer is not usable")?;
    if time < floor {
        bail!("its time is before the floor of this node");
    }
    Ok(time)
}

fn set(time: SystemTime) -> Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(time.duration_since(UNIX_EPOCH)?))?;
    Ok(())
}
