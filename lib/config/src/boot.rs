use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// `/etc/basalt/boot.toml`: what init must know of release and variant. Written by the build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Boot {
    pub variant: String,
    pub version: String,
    /// Seconds since 1970; no clock on this node may be earlier.
    pub built: u64,
    pub tpm: Tpm,
    /// Whose policies may unseal: the image's builder (P-256, SEC 1 uncompressed, hex).
    pub signer: String,
}

/// What init does when it cannot measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tpm {
    /// It stops with one line on the console.
    Required,
}

/// What the kernel command line says of the machine, in words `basalt.KEY=VALUE`: there and not in
/// the root, so that one root serves all machines. The command line is measured like the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub name: String,
    /// The disk as the kernel names it.
    pub disk: String,
    /// What a partition's number is put behind.
    pub partitions: String,
    /// How long the TPM may take to appear.
    pub tpm_wait_s: u64,
}

const PREFIX: &str = "basalt.";
const LONGEST_WAIT_S: u64 = 600;

impl Machine {
    pub fn words(&self) -> String {
        let Self { name, disk, partitions, tpm_wait_s } = self;
        format!(
            "{PREFIX}machine={name} {PREFIX}disk={disk} {PREFIX}partitions={partitions} {PREFIX}tpm-wait-s={tpm_wait_s}"
        )
    }

    pub fn partition(&self, number: u8) -> String {
        format!("{}{number}", self.partitions)
    }

    /// Each word is there once, and no other word begins like them.
    pub fn from_command_line(line: &str) -> Result<Self, ConfigError> {
        let fail =
            |problem: String| ConfigError { file: "the kernel command line".into(), problem };
        if !line.trim_end_matches('\n').bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(fail("it has bytes that are not printable ASCII, at which the kernel may see other words than others do".into()));
        }
        let mut found = std::collections::BTreeMap::new();
        for word in line.split_whitespace().filter_map(|word| word.strip_prefix(PREFIX)) {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| fail(format!("expected {PREFIX}{word}=VALUE")))?;
            if found.insert(key, value).is_some() {
                return Err(fail(format!("{PREFIX}{key} is there twice")));
            }
        }
        let mut take =
            |key: &str| found.remove(key).ok_or_else(|| fail(format!("{PREFIX}{key} is missing")));
        let (name, disk, partitions, wait) =
            (take("machine")?, take("disk")?, take("partitions")?, take("tpm-wait-s")?);
        if let Some(key) = found.keys().next() {
            return Err(fail(format!(
                "{PREFIX}{key} is unknown; known are machine, disk, partitions, tpm-wait-s"
            )));
        }
        crate::valid_name(name).map_err(fail)?;
        for path in [disk, partitions] {
            let inside = path.strip_prefix("/dev/").is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric())
            });
            if !inside {
                return Err(fail(format!(
                    "{path:?} is not a device: expected /dev/ and letters or digits"
                )));
            }
        }
        let tpm_wait_s = wait.parse().ok().filter(|s| (1..=LONGEST_WAIT_S).contains(s));
        let tpm_wait_s = tpm_wait_s.ok_or_else(|| {
            fail(format!("{PREFIX}tpm-wait-s={wait}: expected 1 to {LONGEST_WAIT_S} seconds"))
        })?;
        Ok(Self { name: name.into(), disk: disk.into(), partitions: partitions.into(), tpm_wait_s })
    }
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn words_are_read_again_wherever_they_stand() {
        let machine = Machine {
            name: "rpi4".into(),
            disk: "/dev/mmcblk0".into(),
            partitions: "/dev/mmcblk0p".into(),
            tpm_wait_s: 20,
        };
        let line = format!("quiet {} root=/dev/dm-0\n", machine.words());
        assert_eq!(Machine::from_command_line(&line).unwrap(), machine);
        assert_eq!(machine.partition(3), "/dev/mmcblk0p3");
    }

    #[test]
    fn anything_else_is_refused() {
        let good = "basalt.machine=virt basalt.disk=/dev/vda basalt.partitions=/dev/vda basalt.tpm-wait-s=10";
        Machine::from_command_line(good).unwrap();
        for (bad, says) in [
            (good.replace("basalt.machine=virt ", ""), "basalt.machine is missing"),
            (format!("{good} basalt.disk=/dev/vdb"), "twice"),
            (format!("{good} basalt.tpm=none"), "unknown"),
            (format!("{good} basalt.x"), "expected"),
            (good.replace("=10", "=0"), "1 to 600"),
            (good.replace("=10", "=ten"), "1 to 600"),
            (format!("\u{a0}{good}"), "printable ASCII"),
            (format!("{good}\tquiet"), "printable ASCII"),
            (good.replace("disk=/dev/vda", "disk=/dev/../etc"), "not a device"),
            (good.replace("disk=/dev/vda", "disk=/dev/"), "not a device"),
            (good.replace("=virt", "=../x"), "not a name"),
        ] {
            let error = Machine::from_command_line(&bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
