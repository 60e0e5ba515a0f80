//! Client of init's control socket.

use std::io::Result;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Sends one request to init as a datagram, such as `restart dockerd`. init does not answer. Does
/// not wait for init to read earlier requests.
///
/// # Errors
/// The datagram cannot be sent, or too many earlier ones wait.
pub fn send(socket: &Path, request: &str) -> Result<()> {
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to(request.as_bytes(), socket).map(|_| ())
}
