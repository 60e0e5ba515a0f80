//! What init finds on the machine: the raw material of the boot events.

use std::io::Read as _;
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

/// The root hash that the kernel was told, once it is sure that the root is that very verity
/// device.
pub(crate) fn verity_root(command_line: &str) -> Result<String, Fatal> {
    let device = std::fs::metadata("/").map_err(Fatal::io("look at /"))?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let name = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name"));
    if !name.as_deref().is_ok_and(|n| n.trim() == "root") {
        return Err(Fatal::State(format!(
            "the root (device {major}:{minor}) is not the verity device named \"root\""
        )));
    }
    measure::verity_root(command_line)
        .map(str::to_owned)
        .ok_or_else(|| Fatal::State("the kernel command line names no verity root hash".into()))
}

pub(crate) fn file(path: &str) -> Result<Digest, Fatal> {
    digest(Path::new(path)).map_err(Fatal::io(format!("read {path}")))
}

/// Piece by piece: a file read whole costs the kernel a fresh page for every 4096 bytes of it.
fn digest(path: &Path) -> std::io::Result<Digest> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 17];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&piece[..n]),
        }
    }
}

/// All regular files below /etc.
pub(crate) fn configuration() -> Result<Digest, Fatal> {
    let mut list = FileList::default();
    add_files(Path::new("/etc"), &mut list).map_err(Fatal::io("read the files below /etc"))?;
    Ok(list.digest())
}

/// The disk has the partitions that the build wrote and no other, and the firmware started from the
/// first, where it says so: what is measured there is then what ran.
pub(crate) fn partitions(disk: &str) -> Result<(), Fatal> {
    let mut table = [0; 512];
    let read = std::fs::File::open(disk).and_then(|mut file| file.read_exact(&mut table));
    read.map_err(Fatal::io(format!("read the partition table of {disk}")))?;
    if !as_built(&table) {
        return Err(Fatal::State(format!(
            "the partition table of {disk} is not the one that the image came with; flash the card again"
        )));
    }
    match std::fs::read("/proc/device-tree/chosen/bootloader/partition") {
        Ok(number) if number != [0, 0, 0, 1] && number != [0, 0, 0, 0] => Err(Fatal::State(
            format!("the firmware started from another partition than the first: {number:?}"),
        )),
        _ => Ok(()),
    }
}

/// A FAT partition that begins at 1 MiB, two for Linux, no fourth.
fn as_built(table: &[u8; 512]) -> bool {
    let kind = |n: usize| table[446 + 16 * n + 4];
    let start = |n: usize| &table[446 + 16 * n + 8..][..4];
    table[510..] == [0x55, 0xaa]
        && (kind(0), kind(1), kind(2)) == (0x0c, 0x83, 0x83)
        && *start(0) == 2048u32.to_le_bytes()
        && table[494..510] == [0; 16]
}

/// What the boot partition holds.
pub(crate) struct BootPartition {
    /// Of the list of all files but those below.
    pub(crate) files: Digest,
    /// The bytes that are measured are those that are gone by: the file is read once.
    pub(crate) settings: Option<Vec<u8>>,
    /// For trustd, which believes none of it unsigned.
    pub(crate) ledger: Option<Vec<u8>>,
    pub(crate) policies: Option<Vec<u8>>,
}

/// Looks at the boot partition, which is there only meanwhile.
///
/// Firmware, kernel and their settings ran before init and could lie to it; what this shows is that
/// the card is the published one.
pub(crate) fn boot_partition(device: &str) -> Result<BootPartition, Fatal> {
    let mounted = crate::mounts::BootPartition::mount(device)?;
    let found = files_apart(Path::new(mounted.path()));
    let found =
        found.map_err(Fatal::io(format!("read the files of the boot partition {device}")))?;
    mounted.unmount()?;
    Ok(found)
}

fn files_apart(dir: &Path) -> std::io::Result<BootPartition> {
    let (mut list, mut settings, mut ledger, mut policies) =
        (FileList::default(), None, None, None);
    visit(dir, &mut |path| {
        // FAT does not tell capitals from small letters. Names are as the build sees them, wherever
        // the partition is mounted.
        let inside = path.strip_prefix(dir).unwrap_or(path);
        if measure::left_by_a_computer(inside) {
            return Ok(());
        }
        let name = format!("/boot/{}", inside.display()).to_ascii_lowercase();
        let (kept, largest) = match name.as_str() {
            measure::SETTINGS => (&mut settings, measure::LARGEST_SETTINGS),
            measure::LEDGER => (&mut ledger, measure::LARGEST_LEDGER),
            measure::POLICIES => (&mut policies, measure::LARGEST_POLICIES),
            _ => return list.add_digest(&name, digest(path)?).map_err(std::io::Error::other),
        };
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(largest + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > largest && name != measure::SETTINGS {
            // Nobody has to vouch for these, so they must not stop a node either.
            crate::console::say(&format!(
                "{name} has more than {largest} bytes and is passed over"
            ));
            return Ok(());
        }
        if bytes.len() as u64 > largest {
            return Err(std::io::Error::other(format!("{name} has more than {largest} bytes")));
        }
        match kept.replace(bytes) {
            None => Ok(()),
            Some(_) => Err(std::io::Error::other(format!("two files have the name {name}"))),
        }
    })?;
    Ok(BootPartition { files: list.digest(), settings, ledger, policies })
}

fn add_files(dir: &Path, list: &mut FileList) -> std::io::Result<()> {
    visit(dir, &mut |path| {
        list.add_digest(&path.to_string_lossy(), digest(path)?).map_err(std::io::Error::other)
    })
}

/// All regular files below a folder.
fn visit(dir: &Path, look: &mut dyn FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            visit(&entry.path(), look)?;
        } else if kind.is_file() {
            look(&entry.path())?;
        }
    }
    Ok(())
}

fn read(path: &str) -> Result<Vec<u8>, Fatal> {
    std::fs::read(path).map_err(Fatal::io(format!("read {path}")))
}

#[cfg(test)]
mod tests {
    use super::{as_built, files_apart};

    #[test]
    fn the_nodes_settings_are_apart_from_the_images_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        let found = || files_apart(dir.path());
        write("config.txt", b"kernel=a");
        let bare = found().unwrap();
        assert_eq!(bare.settings, None);
        write("Node.TOML", b"hostname = \"a\"");
        let with = found().unwrap();
        assert_eq!(
            (with.files, with.settings.as_deref()),
            (bare.files, Some(&b"hostname = \"a\""[..]))
        );
        write("ledger.jsonl", b"{}\n");
        let ledger = found().unwrap();
        assert_eq!(
            (ledger.files, ledger.ledger.as_deref()),
            (bare.files, Some(&b"{}\n"[..])),
            "not measured"
        );
        std::fs::remove_file(dir.path().join("ledger.jsonl")).unwrap();
        write("policies.json", b"{}");
        let policies = found().unwrap();
        assert_eq!(
            (policies.files, policies.policies.as_deref()),
            (bare.files, Some(&b"{}"[..])),
            "not measured"
        );
        write("policies.json", &vec![b' '; (1 << 16) + 1]);
        assert_eq!(found().unwrap().policies, None, "passed over");
        std::fs::remove_file(dir.path().join("policies.json")).unwrap();
        // A card that was made by hand can hold both.
        write("node.toml", b"");
        assert!(found().is_err_and(|e| e.to_string().contains("two files")));
        std::fs::remove_file(dir.path().join("Node.TOML")).unwrap();
        write("node.toml", &vec![b'#'; (1 << 16) + 1]);
        assert!(found().is_err_and(|e| e.to_string().contains("more than")));
        std::fs::remove_file(dir.path().join("node.toml")).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        write("sub/node.toml", b"");
        // What Windows and macOS put on every drive that they see.
        std::fs::create_dir(dir.path().join("System Volume Information")).unwrap();
        write("System Volume Information/WPSettings.dat", b"x");
        write("._node.toml", b"x");
        let deeper = found().unwrap();
        assert!(deeper.settings.is_none() && deeper.files != bare.files, "only at the top");
        std::fs::remove_dir_all(dir.path().join("sub")).unwrap();
        assert_eq!(found().unwrap().files, bare.files);
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
    fn only_the_table_of_the_build_will_do() {
        assert!(as_built(&table()));
        // A protective entry, another start, a fourth partition, no mark.
        for (at, value) in [(450, 0xee), (455, 1), (466, 0x0c), (498, 0x0c), (502, 1), (510, 0)] {
            let mut other = table();
            other[at] = value;
            assert_eq!(as_built(&other), other == table(), "byte {at}");
        }
    }
}
