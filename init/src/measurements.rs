//! Measurements of the machine, which the boot events are made of.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use measure::{Digest, FileList};
use sha2::{Digest as _, Sha256};

use crate::error::InitError;

/// Path of the program trustd.
pub(crate) const TRUSTD: &str = "/usr/bin/trustd";

/// Reads the kernel command line.
pub(crate) fn command_line() -> Result<String, InitError> {
    std::fs::read_to_string("/proc/cmdline").map_err(InitError::io("read /proc/cmdline"))
}

/// Returns the digest of the device tree that the kernel got from the firmware.
pub(crate) fn device_tree_digest() -> Result<Digest, InitError> {
    let path = "/sys/firmware/fdt";
    let blob = std::fs::read(path).map_err(InitError::io(format!("read {path}")))?;
    Ok(measure::device_tree_digest(&blob)?)
}

/// Returns the dm-verity root hash of the kernel command line, after checking that the root is the
/// verity device which it describes.
pub(crate) fn verity_root(command_line: &str) -> Result<String, InitError> {
    let device =
        std::fs::metadata("/").map_err(InitError::io("read the device number of /"))?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let name = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name"));
    if !name.as_deref().is_ok_and(|n| n.trim() == "root") {
        return Err(InitError::State(format!(
            "expected the verity device named \"root\" as root, found device {major}:{minor}"
        )));
    }
    measure::verity_root(command_line)
        .map(str::to_owned)
        .ok_or_else(|| InitError::State("the kernel command line has no verity root hash".into()))
}

/// Returns the digest of a file.
pub(crate) fn file_digest(path: &str) -> Result<Digest, InitError> {
    digest(Path::new(path)).map_err(InitError::io(format!("read {path}")))
}

/// Hashes a file in chunks. Reading it at once would make the kernel allocate a page for every 4096
/// bytes.
fn digest(path: &Path) -> std::io::Result<Digest> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 17];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&chunk[..n]),
        }
    }
}

/// Returns the digest of the list of all regular files below /etc.
pub(crate) fn configuration_digest() -> Result<Digest, InitError> {
    let mut list = FileList::default();
    add_files(Path::new("/etc"), &mut list).map_err(InitError::io("read the files below /etc"))?;
    Ok(list.digest())
}

/// Checks that the disk has exactly the partitions of the build, and that the firmware started from
/// the first one, if it reports that. Otherwise, other files could have run than those that are
/// measured.
pub(crate) fn check_partition_table(disk: &str) -> Result<(), InitError> {
    let mut table = [0; 512];
    let read = std::fs::File::open(disk).and_then(|mut file| file.read_exact(&mut table));
    read.map_err(InitError::io(format!("read the partition table of {disk}")))?;
    if !has_layout_of_build(&table) {
        return Err(InitError::State(format!(
            "the partition table of {disk} is not that of the image; flash the card again"
        )));
    }
    match std::fs::read("/proc/device-tree/chosen/bootloader/partition") {
        Ok(number) if number != [0, 0, 0, 1] && number != [0, 0, 0, 0] => Err(InitError::State(
            format!("expected the firmware to start from partition 1, found {number:?}"),
        )),
        _ => Ok(()),
    }
}

/// Reports whether a partition table has a FAT partition at 1 MiB, two Linux partitions, and no
/// fourth one.
fn has_layout_of_build(table: &[u8; 512]) -> bool {
    let kind = |n: usize| table[446 + 16 * n + 4];
    let start = |n: usize| &table[446 + 16 * n + 8..][..4];
    table[510..] == [0x55, 0xaa]
        && (kind(0), kind(1), kind(2)) == (0x0c, 0x83, 0x83)
        && *start(0) == 2048u32.to_le_bytes()
        && table[494..510] == [0; 16]
}

/// Files of the boot partition.
pub(crate) struct BootFiles {
    /// Digest of the list of all files, except those below.
    pub(crate) files_digest: Digest,
    /// Settings of the node. The file is read once, so that the measured bytes are those that
    /// apply.
    pub(crate) settings: Option<Vec<u8>>,
    /// Log of approvals. trustd verifies its signatures.
    pub(crate) ledger: Option<Vec<u8>>,
    /// Policies for the root key. trustd verifies their signatures.
    pub(crate) policies: Option<Vec<u8>>,
}

/// Mounts the boot partition, reads its files, and unmounts it.
///
/// Firmware and kernel ran before init and could forge this measurement. It proves that the files
/// on the card are those of the image, not that they ran.
pub(crate) fn read_boot_partition(device: &str) -> Result<BootFiles, InitError> {
    let partition = crate::mounts::BootPartition::mount(device)?;
    let files = read_boot_files(Path::new(partition.path()))
        .map_err(InitError::io(format!("read the files of the boot partition {device}")))?;
    partition.unmount()?;
    Ok(files)
}

fn read_boot_files(dir: &Path) -> std::io::Result<BootFiles> {
    let (mut list, mut settings, mut ledger, mut policies) =
        (FileList::default(), None, None, None);
    walk_files(dir, &mut |path| {
        let relative = path.strip_prefix(dir).unwrap_or(path);
        if measure::is_desktop_metadata(relative) {
            return Ok(());
        }
        // FAT ignores the case of names. The list has the names of the build, wherever the
        // partition is mounted.
        let name = format!("/boot/{}", relative.display()).to_ascii_lowercase();
        let (slot, max_bytes) = match name.as_str() {
            measure::SETTINGS_PATH => (&mut settings, measure::MAX_SETTINGS_BYTES),
            measure::LEDGER_PATH => (&mut ledger, measure::MAX_LEDGER_BYTES),
            measure::POLICIES_PATH => (&mut policies, measure::MAX_POLICIES_BYTES),
            _ => return list.add_digest(&name, digest(path)?).map_err(std::io::Error::other),
        };
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max_bytes && name != measure::SETTINGS_PATH {
            // These files are not measured, so any writer of the card could stop the node with
            // them.
            logging::warn!("{name} is ignored: expected at most {max_bytes} bytes, found more");
            return Ok(());
        }
        if bytes.len() as u64 > max_bytes {
            return Err(std::io::Error::other(format!(
                "{name}: expected at most {max_bytes} bytes, found more"
            )));
        }
        match slot.replace(bytes) {
            None => Ok(()),
            Some(_) => Err(std::io::Error::other(format!("two files have the name {name}"))),
        }
    })?;
    Ok(BootFiles { files_digest: list.digest(), settings, ledger, policies })
}

fn add_files(dir: &Path, list: &mut FileList) -> std::io::Result<()> {
    walk_files(dir, &mut |path| {
        list.add_digest(&path.to_string_lossy(), digest(path)?).map_err(std::io::Error::other)
    })
}

/// Calls `visit` for all regular files below a folder.
fn walk_files(
    dir: &Path,
    visit: &mut dyn FnMut(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk_files(&entry.path(), visit)?;
        } else if kind.is_file() {
            visit(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{has_layout_of_build, read_boot_files};

    #[test]
    fn settings_ledger_and_policies_are_not_in_the_list_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        let read = || read_boot_files(dir.path());
        write("config.txt", b"kernel=a");
        let bare = read().unwrap();
        assert_eq!(bare.settings, None);
        write("Node.TOML", b"hostname = \"a\"");
        let with = read().unwrap();
        assert_eq!(
            (with.files_digest, with.settings.as_deref()),
            (bare.files_digest, Some(&b"hostname = \"a\""[..]))
        );
        write("ledger.jsonl", b"{}\n");
        let ledger = read().unwrap();
        assert_eq!(
            (ledger.files_digest, ledger.ledger.as_deref()),
            (bare.files_digest, Some(&b"{}\n"[..])),
            "not measured"
        );
        std::fs::remove_file(dir.path().join("ledger.jsonl")).unwrap();
        write("policies.json", b"{}");
        let policies = read().unwrap();
        assert_eq!(
            (policies.files_digest, policies.policies.as_deref()),
            (bare.files_digest, Some(&b"{}"[..])),
            "not measured"
        );
        write("policies.json", &vec![b' '; (1 << 16) + 1]);
        assert_eq!(read().unwrap().policies, None, "too large, so ignored");
        std::fs::remove_file(dir.path().join("policies.json")).unwrap();
        // A file system that was written by hand can have both names.
        write("node.toml", b"");
        assert!(read().is_err_and(|e| e.to_string().contains("two files")));
        std::fs::remove_file(dir.path().join("Node.TOML")).unwrap();
        write("node.toml", &vec![b'#'; (1 << 16) + 1]);
        assert!(read().is_err_and(|e| e.to_string().contains("at most")));
        std::fs::remove_file(dir.path().join("node.toml")).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        write("sub/node.toml", b"");
        // Metadata of Windows and macOS is not in the list.
        std::fs::create_dir(dir.path().join("System Volume Information")).unwrap();
        write("System Volume Information/WPSettings.dat", b"x");
        write("._node.toml", b"x");
        let deeper = read().unwrap();
        assert!(
            deeper.settings.is_none() && deeper.files_digest != bare.files_digest,
            "only the file at the top is the settings"
        );
        std::fs::remove_dir_all(dir.path().join("sub")).unwrap();
        assert_eq!(read().unwrap().files_digest, bare.files_digest);
    }

    fn table() -> [u8; 512] {
        let mut table = [0; 512];
        for (n, kind) in [0x0c, 0x83, 0x83].into_iter().enumerate() {
            table[446 + 16 * n + 4] = kind;
        }
        table[446 + 8..][..4].copy_from_slice(&2048u32.to_le_bytes());
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        table
    }

    #[test]
    fn only_the_partition_table_of_the_build_is_accepted() {
        assert!(has_layout_of_build(&table()));
        // A protective entry, another start, another type, a fourth partition, no signature.
        for (at, value) in [(450, 0xee), (455, 1), (466, 0x0c), (498, 0x0c), (502, 1), (510, 0)] {
            let mut other = table();
            other[at] = value;
            assert_eq!(has_layout_of_build(&other), other == table(), "byte {at}");
        }
    }
}
