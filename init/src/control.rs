//! What trustd may ask of init, one datagram a wish: `reboot`, `poweroff`, `restart NAME`, `kill
//! NAME`, `end GROUP`.
//!
//! The socket lies in a folder that only root and trustd can enter.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;

use crate::{Fatal, service};

const SOCKET: &str = "/run/control/init.sock";

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Reboot,
    PowerOff,
    /// Ends a service with SIGTERM; it is started again.
    Restart(String),
    /// Ends a service with SIGKILL, as a crash would; it is started again.
    Kill(String),
    /// Kills everything in a control group that is no service's.
    End(String),
}

pub(crate) fn open() -> Result<UnixDatagram, Fatal> {
    let socket = UnixDatagram::bind(SOCKET).map_err(Fatal::io(format!("listen on {SOCKET}")))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(SOCKET, private)
        .and_then(|()| {
            std::os::unix::fs::chown(SOCKET, Some(service::TRUSTD), Some(service::TRUSTD))
        })
        .and_then(|()| socket.set_nonblocking(true))
        .map_err(Fatal::io(format!("prepare {SOCKET}")))?;
    Ok(socket)
}

pub(crate) fn receive(socket: &UnixDatagram) -> Option<Result<Wish, String>> {
    // As long as a path can be.
    let mut buffer = [0; 4200];
    let n = socket.recv(&mut buffer).ok()?;
    Some(parse(&buffer[..n]))
}

fn parse(message: &[u8]) -> Result<Wish, String> {
    let text = std::str::from_utf8(message).map_err(|_| "not text".to_owned())?;
    match text.split_once(' ') {
        None if text == "reboot" => Ok(Wish::Reboot),
        None if text == "poweroff" => Ok(Wish::PowerOff),
        Some(("restart", name)) => Ok(Wish::Restart(name.to_owned())),
        Some(("kill", name)) => Ok(Wish::Kill(name.to_owned())),
        Some(("end", group)) => Ok(Wish::End(group.to_owned())),
        _ => {
            Err(format!("{text:?} is none of reboot, poweroff, restart NAME, kill NAME, end GROUP"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_five_wishes_are_understood() {
        assert_eq!(parse(b"reboot"), Ok(Wish::Reboot));
        assert_eq!(parse(b"kill dockerd"), Ok(Wish::Kill("dockerd".into())));
        assert_eq!(parse(b"end default/x"), Ok(Wish::End("default/x".into())));
        for junk in [&b""[..], b"\xff", b"halt", b"reboot now", b"kill"] {
            assert!(parse(junk).is_err());
        }
    }
}
