//! Wishes to init: one datagram each.

use std::io::Result;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

pub fn ask(socket: &Path, wish: &str) -> Result<()> {
    UnixDatagram::unbound()?.send_to(wish.as_bytes(), socket).map(|_| ())
}
