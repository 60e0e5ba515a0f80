//! Boot events, and their prediction for the boards of an image.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::log::{Record, compare};
use crate::{Digest, Event, MODULES_PCR, PLATFORM_PCR, Pcr, hex};

/// Components of a boot that are measured, predicted from an image or read from a machine.
pub struct BootComponents<'a> {
    /// Variant of the image.
    pub variant: &'a str,
    /// Name of the machine.
    pub machine: &'a str,
    /// Kernel command line in the form of /proc/cmdline; see [`strip_firmware_parameters`].
    pub command_line: &'a str,
    /// Digest of the device tree; see [`crate::device_tree_digest`].
    pub device_tree: Digest,
    /// Digest of the list of files on the boot partition: firmware, its settings, kernel, device
    /// trees. [`SETTINGS_PATH`], [`LEDGER_PATH`] and [`POLICIES_PATH`] are not in the list.
    pub boot_partition: Digest,
    /// Digest of the file [`SETTINGS_PATH`]; [`empty_settings_digest`] if there is none.
    pub node_settings: Digest,
    /// Root hash of the dm-verity tree, in hex as on the kernel command line.
    pub verity_root: &'a str,
    /// Digest of the program init.
    pub init: Digest,
    /// Digest of the program trustd.
    pub trustd: Digest,
    /// Digest of the list of the engine's binaries.
    pub engine: Digest,
    /// Digest of the list of files below /etc.
    pub configuration: Digest,
}

/// Settings of one node on the boot partition. They have an event of their own, so that the other
/// events are the same on all nodes with the image.
pub const SETTINGS_PATH: &str = "/boot/node.toml";
/// Kind of the event for the settings of the node.
pub const NODE_SETTINGS: &str = "node-settings";
/// Greatest size of the file [`SETTINGS_PATH`], which has a few lines.
pub const MAX_SETTINGS_BYTES: u64 = 1 << 16;

/// Log of approvals on the boot partition. It is not measured, because its signatures protect it.
pub const LEDGER_PATH: &str = "/boot/ledger.jsonl";
/// Greatest size of the file [`LEDGER_PATH`], which init holds in memory.
pub const MAX_LEDGER_BYTES: u64 = 16 << 20;

/// Policies that authorise boots to unseal the root key (lib/policy). They are not measured,
/// because their signatures protect them.
pub const POLICIES_PATH: &str = "/boot/policies.json";
/// Greatest size of the file [`POLICIES_PATH`].
pub const MAX_POLICIES_BYTES: u64 = 1 << 16;

/// Reports whether a path, relative to the boot partition, is metadata that Windows or macOS writes
/// to every FAT partition.
///
/// Such files are not measured, because they cannot be predicted. The firmware of the boards does
/// not read them by itself, and config.txt, which could refer to one, is measured.
pub fn is_desktop_metadata(path: &Path) -> bool {
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

/// Returns the digest that is measured for a boot partition without [`SETTINGS_PATH`].
pub fn empty_settings_digest() -> Digest {
    Sha256::digest([]).into()
}

/// Returns all boot events in the order in which they are extended.
pub fn boot_events(components: &BootComponents<'_>) -> Vec<Event> {
    let p = PLATFORM_PCR;
    vec![
        Event::new(p, "variant", format!("{} {}", components.variant, components.machine)),
        Event::new(p, "kernel-command-line", strip_firmware_parameters(components.command_line)),
        Event::from_digest(p, "device-tree", &components.device_tree),
        Event::from_digest(p, "boot-partition", &components.boot_partition),
        Event::from_digest(p, NODE_SETTINGS, &components.node_settings),
        Event::new(p, "verity-root", components.verity_root),
        Event::from_digest(p, "init", &components.init),
        Event::from_digest(p, "trustd", &components.trustd),
        Event::from_digest(p, "engine", &components.engine),
        Event::from_digest(p, "configuration", &components.configuration),
        // The handover ends the events of init in both PCRs. All later events of PCR 15 are
        // trustd's.
        Event::new(p, "handover", ""),
        Event::new(MODULES_PCR, "handover", ""),
    ]
}

/// Kernel parameters that the firmware of the Raspberry Pi inserts before those of cmdline.txt.
///
/// They differ from board to board (a MAC address, memory sizes), or belong to drivers that this
/// kernel lacks.
const FIRMWARE_PARAMETERS: [&str; 11] = [
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

/// Strips the parameters that the firmware inserts at the start of a kernel command line, and white
/// space at both ends.
///
/// Nothing after the first parameter of the image is stripped. A parameter is stripped only if it
/// consists of plain characters, because the kernel also splits parameters at other characters than
/// a space (byte a0, a quote) and an attacker could hide a parameter there.
pub fn strip_firmware_parameters(command_line: &str) -> &str {
    let mut rest = command_line.trim_matches([' ', '\n']);
    loop {
        let (word, behind) = rest.split_once(' ').unwrap_or((rest, ""));
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=:,-".contains(&b));
        if !plain || !FIRMWARE_PARAMETERS.iter().any(|prefix| word.starts_with(prefix)) {
            return rest;
        }
        rest = behind.trim_start_matches(' ');
    }
}

/// `measurements.json`: the measurements of an unmodified image.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Name of the machine.
    pub machine: String,
    /// Variant of the image.
    pub variant: String,
    /// Version of the release.
    pub version: String,
    /// Measurements of each board that the image supports. Their device trees differ.
    pub boards: Vec<Board>,
}

/// Measurements of one board.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// Name of the board.
    pub board: String,
    /// Boot events.
    pub events: Vec<Record>,
    /// Values of the PCRs after the last boot event, as hex, by number. PCR 15 continues with the
    /// events of trustd.
    pub pcrs: BTreeMap<String, String>,
}

impl Board {
    /// Computes the records and PCR values of these events.
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

    /// Returns the measurements of the image with another device tree, as on an emulated board.
    pub fn with_device_tree(&self, digest: &Digest) -> Self {
        self.with("device-tree", digest)
    }

    /// Returns the measurements of the image with this content of [`SETTINGS_PATH`].
    pub fn with_settings(&self, file: &[u8]) -> Self {
        self.with(NODE_SETTINGS, &Sha256::digest(file).into())
    }

    /// Computes the value of PCR 14 at the end of the boot from the events.
    pub fn platform_pcr(&self) -> Pcr {
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
            |e: Event| if e.kind == kind { Event::from_digest(e.pcr, kind, digest) } else { e };
        Self::predict(&self.board, &events.into_iter().map(replaced).collect::<Vec<_>>())
    }
}

impl Measurements {
    /// Returns the board whose events match the most records at the start of the log.
    pub fn closest_board(&self, log: &[Record]) -> Option<&Board> {
        // If several boards match equally, the one that the machine's file lists first wins.
        self.boards
            .iter()
            .rev()
            .max_by_key(|board| compare(&board.events, log).map_or(u64::MAX, |d| d.recnum))
    }
}

/// Returns the dm-verity root hash in the parameter `dm-mod.create=` of a kernel command line
/// (kernel: Documentation/admin-guide/device-mapper/dm-init.rst). Returns `None` unless the line
/// creates exactly one device, with a verity table and SHA-256.
///
/// The fields of the verity table are: version, data device, hash device, two block sizes, two
/// block numbers, algorithm, root hash, salt.
pub fn verity_root(command_line: &str) -> Option<&str> {
    // A second table could replace the first. In names of parameters, `_` and `-` are the same to
    // the kernel.
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

    use super::{is_desktop_metadata, strip_firmware_parameters, verity_root};

    #[test]
    fn only_firmware_parameters_at_the_start_are_stripped() {
        let own = "console=ttyAMA0,115200 quiet root=/dev/dm-0";
        let firmware = "coherent_pool=1M 8250.nr_uarts=0 snd_bcm2835.enable_hdmi=0 \
                        smsc95xx.macaddr=DC:A6:32:00:00:01 vc_mem.mem_base=0x3ec00000  ";
        assert_eq!(strip_firmware_parameters(&format!("{own} \n")), own);
        assert_eq!(strip_firmware_parameters(&format!("{firmware}{own}\n")), own);
        for added in [
            format!("init=/bin/sh {own}"),
            format!("{firmware}init=/bin/sh {own}"),
            format!("{own} coherent_pool=1M"),
        ] {
            assert_eq!(
                strip_firmware_parameters(&added),
                added.trim_start_matches(firmware),
                "kept"
            );
        }
        // The kernel splits these into more than one parameter.
        for hidden in [
            "vc_mem.mem_base=\u{e0}mitigations=off",
            "vc_mem.mem_base=\"",
            "coherent_pool=1M\tinit=/x",
            "coherent_pool=1M\u{a0}init=/x",
        ] {
            let line = format!("{hidden} {own}");
            assert_eq!(strip_firmware_parameters(&line), line, "kept");
        }
        assert_eq!(strip_firmware_parameters("coherent_pool=1M"), "");
        assert_eq!(strip_firmware_parameters(""), "");
    }

    #[test]
    fn desktop_metadata_is_recognised_by_path() {
        for metadata in [
            "System Volume Information/WPSettings.dat",
            "._node.toml",
            ".fseventsd/0000",
            ".DS_Store",
            "$RECYCLE.BIN/a/b",
        ] {
            assert!(is_desktop_metadata(Path::new(metadata)), "{metadata}");
        }
        for other in [
            "config.txt",
            "System Volume Information",
            "overlays/._x",
            "sub/.fseventsd/x",
            ".fseventsdx/y",
            "node.toml",
        ] {
            assert!(!is_desktop_metadata(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn the_root_hash_is_read_only_from_a_single_verity_table() {
        let hash = "a".repeat(64);
        let line = format!(
            "quiet dm-mod.create=\"root,,,ro,0 80 verity 1 /dev/vda2 /dev/vda2 4096 4096 10 11 \
             sha256 {hash} 00 1 panic_on_corruption\" root=/dev/dm-0"
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
