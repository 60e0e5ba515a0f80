use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Event, MODULES_PCR, PLATFORM_PCR, Pcr, hex, log::Record};

/// What is true of a boot, either predicted from an image or found on a machine.
pub struct BootFacts<'a> {
    pub variant: &'a str,
    pub machine: &'a str,
    /// As /proc/cmdline shows it; white space at the end does not count.
    pub command_line: &'a str,
    pub device_tree: Digest,
    /// Root hash of the dm-verity tree, in hex as on the kernel command line.
    pub verity_root: &'a str,
    pub init: Digest,
    pub trustd: Digest,
    /// Digest of the list of the engine's binaries.
    pub engine: Digest,
    /// Digest of the list of files below /etc.
    pub configuration: Digest,
}

/// The one list of boot events, in the order in which they are extended.
pub fn boot_events(facts: &BootFacts<'_>) -> Vec<Event> {
    let p = PLATFORM_PCR;
    vec![
        Event::new(p, "variant", format!("{} {}", facts.variant, facts.machine)),
        Event::new(p, "kernel-command-line", facts.command_line.trim_end()),
        Event::of_digest(p, "device-tree", &facts.device_tree),
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

/// `measurements.json`: what an image will measure when it boots untouched.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    pub machine: String,
    pub variant: String,
    pub version: String,
    pub events: Vec<Record>,
    /// Values after the last event; PCR 15 then goes on with what trustd does.
    pub pcrs: BTreeMap<String, String>,
}

impl Measurements {
    pub fn predict(machine: &str, variant: &str, version: &str, events: &[Event]) -> Self {
        let mut pcrs: BTreeMap<u32, Pcr> = BTreeMap::new();
        for event in events {
            pcrs.entry(event.pcr).or_default().extend(&event.digest());
        }
        Self {
            machine: machine.to_owned(),
            variant: variant.to_owned(),
            version: version.to_owned(),
            events: events.iter().enumerate().map(|(n, e)| Record::new(n as u64, e)).collect(),
            pcrs: pcrs.into_iter().map(|(n, pcr)| (n.to_string(), hex(&pcr.0))).collect(),
        }
    }
}

/// The root hash in a kernel command line's `dm-mod.create=` (kernel: Documentation/admin-guide/device-mapper/dm-init.rst).
///
/// The verity target's table is: version, data device, hash device, two block sizes, two block numbers, algorithm, root hash, salt.
pub fn verity_root(command_line: &str) -> Option<&str> {
    // A second table could replace the first.
    if command_line.matches("dm-mod.create=").count() != 1 {
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
    use super::verity_root;

    #[test]
    fn the_root_hash_is_found_only_in_one_verity_table() {
        let hash = "a".repeat(64);
        let line = format!(
            "quiet dm-mod.create=\"root,,,ro,0 80 verity 1 /dev/vda2 /dev/vda2 4096 4096 10 11 sha256 {hash} 00 1 panic_on_corruption\" root=/dev/dm-0"
        );
        assert_eq!(verity_root(&line), Some(hash.as_str()));
        assert_eq!(verity_root(&line.replace("verity", "linear")), None);
        assert_eq!(verity_root(&line.replace("sha256", "sha1")), None);
        assert_eq!(verity_root(&format!("{line} dm-mod.create=\"root,,,ro,0 1 linear /dev/vda 0\"")), None);
        assert_eq!(verity_root("root=/dev/vda2"), None);
    }
}
