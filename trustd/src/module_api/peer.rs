//! Identification of the process at the other end of a socket by its container.
//!
//! Invariant: the kernel names the process that connected (SO_PEERPIDFD). A process ID, which
//! another process can get meanwhile, and the user ID, which is root's in many containers, decide
//! nothing.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};

/// Length of a container's ID: SHA-256 in hex.
const CONTAINER_ID_LEN: usize = 64;

/// Reason why a process is not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// The kernel does not identify the process.
    #[error("the kernel does not identify the process (SO_PEERPIDFD)")]
    Unidentified(#[source] Errno),
    /// A file about the process cannot be read. The message names no process ID or descriptor, so
    /// that the denial of each process is the same one and is recorded once.
    #[error("cannot read {file} of the process")]
    Proc {
        /// File below `/proc`.
        file: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// The process is in no container.
    #[error("the process runs in no container")]
    NoContainer,
    /// The container is not one of trustd's.
    #[error("trustd did not start the container {0}")]
    UnknownContainer(String),
    /// The container is another module's.
    #[error("the container {container} is of the module {module}")]
    OtherModule {
        /// ID of the container.
        container: String,
        /// Name of its module.
        module: String,
    },
}

/// Returns the ID of the container in which the process that connected runs.
///
/// # Errors
/// [`PeerError`] if the process has ended or is in no container.
pub(super) fn container_of(connection: &impl AsFd) -> Result<String, PeerError> {
    let pidfd = getsockopt(connection, PeerPidfd).map_err(PeerError::Unidentified)?;
    let pid = process_id(&pidfd)?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    // The process still lives, so no other process had its ID when the file was read.
    if process_id(&pidfd)? != pid {
        return Err(PeerError::Ended);
    }
    let cgroups = cgroups.map_err(|source| PeerError::Proc { file: "cgroup", source })?;
    container_id(&cgroups).ok_or(PeerError::NoContainer)
}

/// Returns the current ID of a process (pidfd_open(2), proc_pid_fdinfo(5)).
fn process_id(pidfd: &OwnedFd) -> Result<u32, PeerError> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path)
        .map_err(|source| PeerError::Proc { file: "fdinfo", source })?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    // 0 means that the process is not in this namespace, -1 that it has ended.
    u32::try_from(pid.unwrap_or(-1)).ok().filter(|pid| *pid > 0).ok_or(PeerError::Ended)
}

/// Returns the container that the control groups of a process belong to (cgroups(7),
/// "/proc/pid/cgroup").
///
/// The engine names a container's group after the container's ID. The container cannot choose the
/// names above that group, so the first name that is an ID counts.
fn container_id(cgroups: &str) -> Option<String> {
    let is_id = |name: &&str| {
        name.len() == CONTAINER_ID_LEN
            && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
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
    fn a_container_is_identified_by_its_control_group() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(container_id(&format!("0::/node/modules/{a}\n")), Some(a.clone()));
        assert_eq!(
            container_id(&format!("0::/node/modules/{a}/{b}\n")),
            Some(a.clone()),
            "a group that the container made below its own"
        );
        let version_1 = format!("12:pids:/x/{a}\n1:name=systemd:/\n0::/x/{a}\n");
        assert_eq!(container_id(&version_1), Some(a.clone()));
        assert_eq!(container_id(&format!("12:pids:/x/{a}\n11:cpu:/x/{b}\n")), None, "two IDs");
        for none in [
            "",
            "0::/",
            "0::/node/trustd\n",
            &format!("0::/{}\n", &a[1..]),
            &format!("0::/{}\n", a.to_uppercase()),
        ] {
            assert_eq!(container_id(none), None, "{none}");
        }
    }

    #[test]
    fn the_process_at_the_other_end_is_identified() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let pidfd = getsockopt(&ours, PeerPidfd).unwrap();
        assert_eq!(process_id(&pidfd).unwrap(), std::process::id());
    }
}
