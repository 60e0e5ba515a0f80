//! Who is on the other end of a socket: the container that its process runs in.
//!
//! Invariant: decided by what the kernel says of the process that connected, never by a number that
//! another process can get meanwhile nor by a user id, which is root's in many containers.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};

/// Length of a container's id: SHA-256 in hex.
const ID: usize = 64;

/// Why a process has no container.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoContainer {
    /// It has ended.
    Gone,
    Other(String),
}

/// The container of the process that connected.
///
/// # Errors
/// Why there is none.
pub(super) fn container(connection: &impl AsFd) -> Result<String, NoContainer> {
    let other = |problem: String| NoContainer::Other(problem);
    let peer = getsockopt(connection, PeerPidfd).map_err(|e| {
        other(format!("the kernel does not say which process it is (SO_PEERPIDFD): {e}"))
    })?;
    let pid = process(&peer)?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    // It still lives, so nobody else had its number in between.
    if process(&peer)? != pid {
        return Err(NoContainer::Gone);
    }
    let groups = groups.map_err(|e| other(format!("its control groups cannot be read: {e}")))?;
    id(&groups).ok_or_else(|| other("the process runs in no container".into()))
}

/// The number of a process now (pidfd_open(2); proc_pid_fdinfo(5)).
fn process(peer: &OwnedFd) -> Result<u32, NoContainer> {
    let path = format!("/proc/self/fdinfo/{}", peer.as_raw_fd());
    let text =
        std::fs::read_to_string(&path).map_err(|e| NoContainer::Other(format!("{path}: {e}")))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    // 0: not in this namespace; -1: it has ended.
    u32::try_from(pid.unwrap_or(-1)).ok().filter(|pid| *pid > 0).ok_or(NoContainer::Gone)
}

/// The one container whose groups these are (cgroups(7), "/proc/pid/cgroup"). The engine names a
/// container's group after its id, and what is above that is no container's to choose: the first
/// name that is an id counts.
fn id(groups: &str) -> Option<String> {
    let is_id = |name: &&str| {
        name.len() == ID && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let ids: BTreeSet<&str> = paths.filter_map(|path| path.split('/').find(is_id)).collect();
    match ids.into_iter().collect::<Vec<_>>()[..] {
        [one] => Some(one.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_its_group() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(id(&format!("0::/node/modules/{a}\n")), Some(a.clone()));
        assert_eq!(
            id(&format!("0::/node/modules/{a}/{b}\n")),
            Some(a.clone()),
            "what it makes below its own"
        );
        assert_eq!(id(&format!("12:pids:/x/{a}\n1:name=systemd:/\n0::/x/{a}\n")), Some(a.clone()));
        assert_eq!(id(&format!("12:pids:/x/{a}\n11:cpu:/x/{b}\n")), None, "two at once");
        for none in [
            "",
            "0::/",
            "0::/node/trustd\n",
            &format!("0::/{}\n", &a[1..]),
            &format!("0::/{}\n", a.to_uppercase()),
        ] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn this_process_is_in_no_container_of_ours() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(process(&getsockopt(&ours, PeerPidfd).unwrap()) == Ok(std::process::id()));
    }
}
