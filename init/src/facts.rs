//! What init finds on the machine: the raw material of the boot events.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use measure::{Digest, FileList};
use sha2::{Digest as _, Sha256};

use crate::Fatal;

pub(crate) const TRUSTD: &str = "/usr/bin/trustd";

pub(crate) fn command_line() -> Result<String, Fatal> {
    std::fs::read_to_string("/proc/cmdline").map_err(Fatal::io("read /proc/cmdline"))
}

pub(crate) fn device_tree() -> Result<Digest, Fatal> {
    let blob = read("/sys/firmware/fdt")?;
    measure::device_tree_digest(&blob).map_err(|e| Fatal::State(format!("/sys/firmware/fdt: {e}")))
}

/// The root hash that the kernel was told, once it is sure that the root is that very verity device.
pub(crate) fn verity_root(command_line: &str) -> Result<String, Fatal> {
    let device = std::fs::metadata("/").map_err(Fatal::io("look at /"))?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let name = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name"));
    if !name.as_deref().is_ok_and(|n| n.trim() == "root") {
        return Err(Fatal::State(format!("the root (device {major}:{minor}) is not the verity device named \"root\"")));
    }
    measure::verity_root(command_line)
        .map(str::to_owned)
        .ok_or_else(|| Fatal::State("the kernel command line names no verity root hash".into()))
}

pub(crate) fn file(path: &str) -> Result<Digest, Fatal> {
    Ok(Sha256::digest(read(path)?).into())
}

/// All regular files below /etc.
pub(crate) fn configuration() -> Result<Digest, Fatal> {
    fn visit(dir: &Path, list: &mut FileList) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                visit(&entry.path(), list)?;
            } else if kind.is_file() {
                list.add(&entry.path().to_string_lossy(), &std::fs::read(entry.path())?);
            }
        }
        Ok(())
    }
    let mut list = FileList::default();
    visit(Path::new("/etc"), &mut list).map_err(Fatal::io("read the files below /etc"))?;
    Ok(list.digest())
}

fn read(path: &str) -> Result<Vec<u8>, Fatal> {
    std::fs::read(path).map_err(Fatal::io(format!("read {path}")))
}
