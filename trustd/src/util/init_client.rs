//! Wishes to init: one datagram each.

use std::io::Result;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

pub fn send(socket: &Path, request: &str) -> Result<()> {
    UnixDatagram::unbound()?.send_to(request.as_bytes(), socket).map(|_| ())
}
