//! What a Linux system and a Docker Engine expect to be mounted.

use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::{Fatal, service, sys};

/// Before measuring: only what measuring needs.
pub(crate) fn early() -> Result<(), Fatal> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    on("proc", "/proc", "proc", quiet, "")?;
    on("sysfs", "/sys", "sysfs", quiet, "")?;
    on("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755,size=20%")
}

/// The firmware's partition, to be looked at.
pub(crate) struct BootPartition;

impl BootPartition {
    const PLACE: &str = "/boot";

    pub(crate) fn mount(device: &str) -> Result<Self, Fatal> {
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        on(device, Self::PLACE, "vfat", flags, "")?;
        Ok(Self)
    }

    pub(crate) fn path(&self) -> &str {
        Self::PLACE
    }

    pub(crate) fn unmount(self) -> Result<(), Fatal> {
        nix::mount::umount(Self::PLACE)
            .map_err(|e| Fatal::io("unmount the boot partition")(e.into()))
    }
}

/// After the handover.
pub(crate) fn late(hostname: &str) -> Result<(), Fatal> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    on("tmpfs", "/tmp", "tmpfs", quiet, "mode=1777,size=10%")?;
    for dir in ["/dev/pts", "/dev/shm"] {
        make_dir(dir, 0o755, None)?;
    }
    on(
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "ptmxmode=0666,mode=620",
    )?;
    on("tmpfs", "/dev/shm", "tmpfs", quiet, "mode=1777,size=10%")?;
    on("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate")?;
    // Where services meet. The engine's socket is trustd's alone; so is the way to init.
    make_dir("/run/log", 0o700, None)?;
    make_dir("/run/engine", 0o700, Some((service::TRUSTD, service::TRUSTD)))?;
    make_dir("/run/containerd", 0o700, None)?;
    make_dir("/run/control", 0o750, Some((0, service::TRUSTD)))?;
    make_dir("/run/trustd", 0o750, Some((service::TRUSTD, service::TRUSTD)))?;
    make_dir("/run/modules", 0o711, Some((service::TRUSTD, service::TRUSTD)))?;
    make_dir("/run/net", 0o755, None)?;
    std::fs::write("/run/resolv.conf", "# netd writes this file when it has an address\n")
        .map_err(Fatal::io("write /run/resolv.conf"))?;
    nix::unistd::sethostname(hostname).map_err(|e| Fatal::io("set the host name")(e.into()))?;
    sys::loopback_up().map_err(Fatal::io("bring lo up"))?;
    for name in ["tpm0", "tpmrm0"] {
        chown(Path::new("/dev").join(name), Some(service::TRUSTD), Some(service::TRUSTD))
            .map_err(Fatal::io(format!("give /dev/{name} to trustd")))?;
    }
    Ok(())
}

pub(crate) fn make_dir(path: &str, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Fatal> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(Fatal::io(format!("make {path}")))?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid))
            .map_err(Fatal::io(format!("give {path} to {uid}:{gid}")))?;
    }
    Ok(())
}

fn on(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), Fatal> {
    mount(Some(source), target, Some(kind), flags, Some(options))
        .map_err(|e| Fatal::io(format!("mount {target}"))(e.into()))
}
