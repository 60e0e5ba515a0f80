//! The control socket, on which trustd sends requests to init. Each request is one datagram:
//! `reboot`, `poweroff`, `restart NAME`, `kill NAME`, `kill-group GROUP` or `watching NAME`.
//!
//! The socket is in a folder that only root and trustd can enter.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;

use crate::error::InitError;
use crate::service;

const SOCKET: &str = "/run/control/init.sock";

/// Longest request in bytes: a verb and a path of PATH_MAX (4096) bytes.
const MAX_REQUEST_BYTES: usize = 4200;

/// A request of trustd.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ControlRequest {
    /// Stops all services and reboots the node.
    Reboot,
    /// Stops all services and powers the node off.
    PowerOff,
    /// Sends SIGTERM to a service, which init then restarts.
    Restart(String),
    /// Sends SIGKILL to a service, as in a crash. Init then restarts it.
    Kill(String),
    /// Kills all processes in a control group that is not a service's.
    KillGroup(String),
    /// Reports that a service watches its control groups.
    Watching(String),
}

/// Error of parsing a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected reboot, poweroff, restart NAME, kill NAME, kill-group GROUP or watching NAME, found \
     {found:?}"
)]
pub(crate) struct InvalidRequest {
    found: String,
}

/// Creates the socket.
pub(crate) fn open() -> Result<UnixDatagram, InitError> {
    let socket =
        UnixDatagram::bind(SOCKET).map_err(InitError::io(format!("listen on {SOCKET}")))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(SOCKET, private)
        .and_then(|()| {
            std::os::unix::fs::chown(SOCKET, Some(service::TRUSTD), Some(service::TRUSTD))
        })
        .and_then(|()| socket.set_nonblocking(true))
        .map_err(InitError::io(format!("prepare {SOCKET}")))?;
    Ok(socket)
}

/// Receives the next request; returns `None` if there is none.
pub(crate) fn receive(socket: &UnixDatagram) -> Option<Result<ControlRequest, InvalidRequest>> {
    let mut buffer = [0; MAX_REQUEST_BYTES];
    let n = socket.recv(&mut buffer).ok()?;
    Some(parse(&buffer[..n]))
}

fn parse(message: &[u8]) -> Result<ControlRequest, InvalidRequest> {
    let reject = || InvalidRequest { found: String::from_utf8_lossy(message).into_owned() };
    let text = std::str::from_utf8(message).map_err(|_| reject())?;
    match text.split_once(' ') {
        None if text == "reboot" => Ok(ControlRequest::Reboot),
        None if text == "poweroff" => Ok(ControlRequest::PowerOff),
        Some(("restart", name)) => Ok(ControlRequest::Restart(name.to_owned())),
        Some(("kill", name)) => Ok(ControlRequest::Kill(name.to_owned())),
        Some(("kill-group", group)) => Ok(ControlRequest::KillGroup(group.to_owned())),
        Some(("watching", name)) => Ok(ControlRequest::Watching(name.to_owned())),
        _ => Err(reject()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_six_requests_are_accepted() {
        assert_eq!(parse(b"reboot"), Ok(ControlRequest::Reboot));
        assert_eq!(parse(b"poweroff"), Ok(ControlRequest::PowerOff));
        assert_eq!(parse(b"restart netd"), Ok(ControlRequest::Restart("netd".into())));
        assert_eq!(parse(b"kill dockerd"), Ok(ControlRequest::Kill("dockerd".into())));
        let group = parse(b"kill-group default/x");
        assert_eq!(group, Ok(ControlRequest::KillGroup("default/x".into())));
        assert_eq!(parse(b"watching trustd"), Ok(ControlRequest::Watching("trustd".into())));
        for junk in [&b""[..], b"\xff", b"kill-group a\xff", b"halt", b"reboot now", b"kill"] {
            assert!(parse(junk).is_err());
        }
        assert!(parse(b"watching").is_err());
    }
}
