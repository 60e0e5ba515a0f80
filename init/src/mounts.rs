//! File systems and folders that a Linux system and a Docker Engine expect.

use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::error::InitError;
use crate::{service, sys};

/// Mounts the file systems that measuring needs, and no more.
pub(crate) fn mount_for_measuring() -> Result<(), InitError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("proc", "/proc", "proc", flags, "")?;
    mount_at("sysfs", "/sys", "sysfs", flags, "")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at("tmpfs", "/run", "tmpfs", flags, "mode=755,size=20%")
}

/// The mounted boot partition.
pub(crate) struct BootPartition;

impl BootPartition {
    const MOUNT_POINT: &str = "/boot";

    /// Mounts the boot partition read-only.
    pub(crate) fn mount(device: &str) -> Result<Self, InitError> {
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount_at(device, Self::MOUNT_POINT, "vfat", flags, "")?;
        Ok(Self)
    }

    pub(crate) fn path(&self) -> &str {
        Self::MOUNT_POINT
    }

    pub(crate) fn unmount(self) -> Result<(), InitError> {
        nix::mount::umount(Self::MOUNT_POINT).map_err(InitError::io("unmount the boot partition"))
    }
}

/// Mounts the remaining file systems and creates the folders of the services.
pub(crate) fn mount_for_services(hostname: &str) -> Result<(), InitError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("tmpfs", "/tmp", "tmpfs", flags, "mode=1777,size=10%")?;
    for dir in ["/dev/pts", "/dev/shm"] {
        make_dir(dir, 0o755, None)?;
    }
    let pts_flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at("devpts", "/dev/pts", "devpts", pts_flags, "ptmxmode=0666,mode=620")?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", flags, "mode=1777,size=10%")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", flags, "nsdelegate")?;
    // Only trustd can reach the engine's socket and the control socket of init.
    make_dir("/run/log", 0o700, None)?;
    make_dir("/run/engine", 0o700, Some((service::TRUSTD, service::TRUSTD)))?;
    make_dir("/run/containerd", 0o700, None)?;
    make_dir("/run/control", 0o750, Some((0, service::TRUSTD)))?;
    make_dir("/run/trustd", 0o750, Some((service::TRUSTD, service::TRUSTD)))?;
    make_dir("/run/modules", 0o711, Some((service::TRUSTD, service::TRUSTD)))?;
    make_dir("/run/net", 0o755, None)?;
    std::fs::write("/run/resolv.conf", "# netd writes this file when it has an address\n")
        .map_err(InitError::io("write /run/resolv.conf"))?;
    nix::unistd::sethostname(hostname).map_err(InitError::io("set the host name"))?;
    sys::loopback_up().map_err(InitError::io("bring the interface lo up"))?;
    for name in ["tpm0", "tpmrm0"] {
        chown(Path::new("/dev").join(name), Some(service::TRUSTD), Some(service::TRUSTD))
            .map_err(InitError::io(format!("change the owner of /dev/{name} to trustd")))?;
    }
    Ok(())
}

/// Creates a folder and its parents with this mode, and sets its owner.
pub(crate) fn make_dir(path: &str, mode: u32, owner: Option<(u32, u32)>) -> Result<(), InitError> {
    let created = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    created.map_err(InitError::io(format!("create {path}")))?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid))
            .map_err(InitError::io(format!("change the owner of {path} to {uid}:{gid}")))?;
    }
    Ok(())
}

fn mount_at(
    source: &str,
    target: &str,
    file_system: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), InitError> {
    mount(Some(source), target, Some(file_system), flags, Some(options))
        .map_err(InitError::io(format!("mount {target}")))
}
