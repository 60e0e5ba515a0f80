//! Client of init's control socket.

use std::io::Result;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Sends one request to init as a datagram, such as `restart dockerd`. init does not answer.
///
/// # Errors
/// The datagram cannot be sent.
pub fn send(socket: &Path, request: &str) -> Result<()> {
    UnixDatagram::unbound()?.send_to(request.as_bytes(), socket).map(|_| ())
}
