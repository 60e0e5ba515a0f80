use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::log::{Record, compare};
use crate::{Digest, Event, MODULES_PCR, PLATFORM_PCR, Pcr, hex};

/// What is true of a boot, either predicted from an image or found on a machine.
pub struct BootFacts<'a> {
    pub variant: &'a str,
    pub machine: &'a str,
    /// As /proc/cmdline shows it; see [`own_words`].
    pub command_line: &'a str,
    pub device_tree: Digest,
    /// Digest of the list of files on the boot partition: firmware, its settings, kernel, device
    /// trees. Without [`SETTINGS`], [`LEDGER`] and [`POLICIES`].
    pub boot_partition: Digest,
    /// Digest of [`SETTINGS`], or of nothing where there is no such file.
    pub node_settings: Digest,
    /// Root hash of the dm-verity tree, in hex as on the kernel command line.
    pub verity_root: &'a str,
    pub init: Digest,
    pub trustd: Digest,
    /// Digest of the list of the engine's binaries.
    pub engine: Digest,
    /// Digest of the list of files below /etc.
    pub configuration: Digest,
}

/// What the owner may put on the boot partition; an event of its own, so that all others stay those
/// of the image.
pub const SETTINGS: &str = "/boot/node.toml";
pub const NODE_SETTINGS: &str = "node-settings";
/// In bytes. Settings are a few lines; what is larger is something else.
pub const LARGEST_SETTINGS: u64 = 1 << 16;

/// A log of approvals on the boot partition. Not measured: it holds by its own signatures or not at
/// all.
pub const LEDGER: &str = "/boot/ledger.jsonl";
/// In bytes; init keeps it in memory.
pub const LARGEST_LEDGER: u64 = 16 << 20;

/// Whether Windows or macOS puts this on a FAT partition that it sees, without being asked; as a
/// path inside of the partition.
///
/// It is not measured: nobody could predict it. The board's firmware reads none of these names by
/// itself, and config.txt, which could point to one, is measured.
pub fn left_by_a_computer(path: &Path) -> bool {
    const FOLDERS: [&str; 6] = [
        "system volume information",
        "$recycle.bin",
        ".fseventsd",
        ".spotlight-v100",
        ".trashes",
        ".temporaryitems",
    ];
    let names: Vec<String> =
        path.iter().map(|name| name.to_string_lossy().to_ascii_lowercase()).collect();
    match names.as_slice() {
        [file] => {
            file.starts_with("._")
                || [".ds_store", ".metadata_never_index"].contains(&file.as_str())
        }
        [folder, ..] => FOLDERS.contains(&folder.as_str()),
        [] => false,
    }
}

/// Policies that let boots unseal (lib/policy). Not measured, for the same reason.
pub const POLICIES: &str = "/boot/policies.json";
/// In bytes.
pub const LARGEST_POLICIES: u64 = 1 << 16;

/// What is measured where the owner put nothing there.
pub fn no_settings() -> Digest {
    Sha256::digest([]).into()
}

/// The one list of boot events, in the order in which they are extended.
pub fn boot_events(facts: &BootFacts<'_>) -> Vec<Event> {
    let p = PLATFORM_PCR;
    vec![
        Event::new(p, "variant", format!("{} {}", facts.variant, facts.machine)),
        Event::new(p, "kernel-command-line", own_words(facts.command_line)),
        Event::of_digest(p, "device-tree", &facts.device_tree),
        Event::of_digest(p, "boot-partition", &facts.boot_partition),
        Event::of_digest(p, NODE_SETTINGS, &facts.node_settings),
        Event::new(p, "verity-root", facts.verity_root),
        Event::of_digest(p, "init", &facts.init),
        Event::of_digest(p, "trustd", &facts.trustd),
        Event::of_digest(p, "engine", &facts.engine),
        Event::of_digest(p, "configuration", &facts.configuration),
        // Closes what the platform may say, in both registers: what follows in PCR 15 is trustd's.
        Event::new(p, "handover", ""),
        Event::new(MODULES_PCR, "handover", ""),
    ]
}

/// Words that the Raspberry Pi's firmware puts on the kernel command line before those of
/// cmdline.txt.
///
/// They differ from board to board (an address, memory sizes) or set what this kernel does not
/// have.
const FIRMWARE_WORDS: [&str; 11] = [
    "8250.nr_uarts=",
    "bcm2708_fb.",
    "coherent_pool=",
    "iommu_dma_numa_policy=",
    "numa=",
    "numa_policy=",
    "smsc95xx.macaddr=",
    "snd_bcm2835.",
    "system_heap.max_order=",
    "vc_mem.mem_base=",
    "vc_mem.mem_size=",
];

/// The command line without what firmware puts in front of it, and without white space at its ends.
///
/// Only in front: behind the image's own first word nothing is left out. A word is left out only if
/// it is plain: the kernel takes more for the end of a word than a space (byte a0, a quote), and
/// nothing may hide there.
pub fn own_words(command_line: &str) -> &str {
    let mut rest = command_line.trim_matches([' ', '\n']);
    loop {
        let (word, behind) = rest.split_once(' ').unwrap_or((rest, ""));
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=:,-".contains(&b));
        if !plain || !FIRMWARE_WORDS.iter().any(|prefix| word.starts_with(prefix)) {
            return rest;
        }
        rest = behind.trim_start_matches(' ');
    }
}

/// `measurements.json`: what an image will measure when it boots untouched.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    pub machine: String,
    pub variant: String,
    pub version: String,
    /// One for each board that the image is for: their device trees differ.
    pub boards: Vec<Board>,
}

/// What one board will measure.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Board {
    pub board: String,
    pub events: Vec<Record>,
    /// Values after the last event; PCR 15 then goes on with what trustd does.
    pub pcrs: BTreeMap<String, String>,
}

impl Board {
    pub fn predict(board: &str, events: &[Event]) -> Self {
        let mut pcrs: BTreeMap<u32, Pcr> = BTreeMap::new();
        for event in events {
            pcrs.entry(event.pcr).or_default().extend(&event.digest());
        }
        Self {
            board: board.to_owned(),
            events: events.iter().enumerate().map(|(n, e)| Record::new(n as u64, e)).collect(),
            pcrs: pcrs.into_iter().map(|(n, pcr)| (n.to_string(), hex(&pcr.0))).collect(),
        }
    }

    /// The same image started with another device tree, as emulated boards are.
    pub fn with_device_tree(&self, digest: &Digest) -> Self {
        self.with("device-tree", digest)
    }

    /// The same image with settings of the node's own: the bytes of [`SETTINGS`].
    pub fn with_settings(&self, file: &[u8]) -> Self {
        self.with(NODE_SETTINGS, &Sha256::digest(file).into())
    }

    /// PCR 14 at the end of the boot, from the events.
    pub fn platform(&self) -> Pcr {
        let mut register = Pcr::default();
        for event in self.events.iter().map(Record::event).filter(|event| event.pcr == PLATFORM_PCR)
        {
            register.extend(&event.digest());
        }
        register
    }

    fn with(&self, kind: &str, digest: &Digest) -> Self {
        let events: Vec<Event> = self.events.iter().map(Record::event).collect();
        let replaced =
            |e: Event| if e.kind == kind { Event::of_digest(e.pcr, kind, digest) } else { e };
        Self::predict(&self.board, &events.into_iter().map(replaced).collect::<Vec<_>>())
    }
}

impl Measurements {
    /// The board that this log is of: the one that it agrees with longest.
    pub fn board_of(&self, log: &[Record]) -> Option<&Board> {
        // The first of equals: the board that the machine's file names first.
        self.boards
            .iter()
            .rev()
            .max_by_key(|board| compare(&board.events, log).map_or(u64::MAX, |d| d.recnum))
    }
}

/// The root hash in a kernel command line's `dm-mod.create=` (kernel:
/// Documentation/admin-guide/device-mapper/dm-init.rst).
///
/// The verity target's table is: version, data device, hash device, two block sizes, two block
/// numbers, algorithm, root hash, salt.
pub fn verity_root(command_line: &str) -> Option<&str> {
    // A second table could replace the first; the kernel takes `_` for `-` in a parameter's name.
    if command_line.replace('_', "-").matches("dm-mod.create=").count() != 1 {
        return None;
    }
    let (_, table) = command_line.split_once("dm-mod.create=\"root,,,ro,")?;
    let (table, _) = table.split_once('"')?;
    if table.contains(';') {
        return None;
    }
    let words: Vec<&str> = table.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "verity")?;
    let root = words.get(at + 9)?;
    (words.get(at + 8) == Some(&"sha256") && root.len() == 64).then_some(*root)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{left_by_a_computer, own_words, verity_root};

    #[test]
    fn only_words_of_the_firmware_in_front_are_left_out() {
        let own = "console=ttyAMA0,115200 quiet root=/dev/dm-0";
        let firmware = "coherent_pool=1M 8250.nr_uarts=0 snd_bcm2835.enable_hdmi=0 smsc95xx.macaddr=DC:A6:32:00:00:01 vc_mem.mem_base=0x3ec00000  ";
        assert_eq!(own_words(&format!("{own} \n")), own);
        assert_eq!(own_words(&format!("{firmware}{own}\n")), own);
        for added in [
            format!("init=/bin/sh {own}"),
            format!("{firmware}init=/bin/sh {own}"),
            format!("{own} coherent_pool=1M"),
        ] {
            assert_eq!(own_words(&added), added.trim_start_matches(firmware), "seen");
        }
        // What the kernel would read as more than one word.
        for hidden in [
            "vc_mem.mem_base=\u{e0}mitigations=off",
            "vc_mem.mem_base=\"",
            "coherent_pool=1M\tinit=/x",
            "coherent_pool=1M\u{a0}init=/x",
        ] {
            let line = format!("{hidden} {own}");
            assert_eq!(own_words(&line), line, "seen");
        }
        assert_eq!(own_words("coherent_pool=1M"), "");
        assert_eq!(own_words(""), "");
    }

    #[test]
    fn what_computers_leave_is_known_by_name_only() {
        for left in [
            "System Volume Information/WPSettings.dat",
            "._node.toml",
            ".fseventsd/0000",
            ".DS_Store",
            "$RECYCLE.BIN/a/b",
        ] {
            assert!(left_by_a_computer(Path::new(left)), "{left}");
        }
        for kept in [
            "config.txt",
            "System Volume Information",
            "overlays/._x",
            "sub/.fseventsd/x",
            ".fseventsdx/y",
            "node.toml",
        ] {
            assert!(!left_by_a_computer(Path::new(kept)), "{kept}");
        }
    }

    #[test]
    fn the_root_hash_is_found_only_in_one_verity_table() {
        let hash = "a".repeat(64);
        let line = format!(
            "quiet dm-mod.create=\"root,,,ro,0 80 verity 1 /dev/vda2 /dev/vda2 4096 4096 10 11 sha256 {hash} 00 1 panic_on_corruption\" root=/dev/dm-0"
        );
        assert_eq!(verity_root(&line), Some(hash.as_str()));
        assert_eq!(verity_root(&line.replace("verity", "linear")), None);
        assert_eq!(verity_root(&line.replace("sha256", "sha1")), None);
        assert_eq!(
            verity_root(&format!("{line} dm-mod.create=\"root,,,ro,0 1 linear /dev/vda 0\"")),
            None
        );
        assert_eq!(
            verity_root(&format!("{line} dm_mod.create=\"root,,,ro,0 1 linear /dev/vda 0\"")),
            None
        );
        assert_eq!(verity_root("root=/dev/vda2"), None);
    }
}
