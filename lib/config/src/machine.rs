//! Kernel parameters that describe the machine.

use std::collections::BTreeMap;

use crate::{ConfigError, ConfigProblem, InvalidValue};

/// Machine that the image runs on, as kernel parameters `basalt.KEY=VALUE`.
///
/// They are on the kernel command line instead of the root, so that one root serves all machines.
/// The command line is measured like the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Name of the machine, such as `rpi4`.
    pub name: String,
    /// Device of the disk, such as `/dev/mmcblk0`.
    pub disk: String,
    /// Device of a partition without its number, such as `/dev/mmcblk0p`.
    pub partitions: String,
    /// Longest time in seconds until the TPM appears.
    pub tpm_wait_s: u64,
}

const PREFIX: &str = "basalt.";
const KEYS: &str = "machine, disk, partitions or tpm-wait-s";
const MAX_TPM_WAIT_S: u64 = 600;

impl Machine {
    /// Formats the kernel parameters, separated by spaces.
    pub fn kernel_parameters(&self) -> String {
        let Self { name, disk, partitions, tpm_wait_s } = self;
        format!(
            "{PREFIX}machine={name} {PREFIX}disk={disk} {PREFIX}partitions={partitions} \
             {PREFIX}tpm-wait-s={tpm_wait_s}"
        )
    }

    /// Returns the device of a partition.
    pub fn partition(&self, number: u8) -> String {
        format!("{}{number}", self.partitions)
    }

    /// Parses the kernel parameters out of a kernel command line. Other words of the line are
    /// ignored.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Setting`] if a parameter is missing, repeated, unknown or invalid, or
    /// if the line has bytes that are not printable ASCII: the kernel splits only at some of the
    /// characters that count as white space in Unicode.
    pub fn from_command_line(line: &str) -> Result<Self, ConfigError> {
        Self::parse(line).map_err(|problem| ConfigError::setting("kernel command line", problem))
    }

    fn parse(line: &str) -> Result<Self, ConfigProblem> {
        let printable = |b: u8| (b' '..=b'~').contains(&b);
        if let Some(other) = line.trim_end_matches('\n').bytes().find(|b| !printable(*b)) {
            let found = format!("byte {other:#04x}");
            return Err(InvalidValue::new("printable ASCII", found).at("all words"));
        }
        let mut values = BTreeMap::new();
        for word in line.split_whitespace().filter_map(|word| word.strip_prefix(PREFIX)) {
            let (key, value) = word.split_once('=').ok_or_else(|| {
                InvalidValue::new("a value", "none").at(format!("{PREFIX}{word}"))
            })?;
            if values.insert(key, value).is_some() {
                return Err(InvalidValue::new("one value", "two").at(format!("{PREFIX}{key}")));
            }
        }
        let mut take = |key: &str| {
            values
                .remove(key)
                .ok_or_else(|| InvalidValue::new("a value", "none").at(format!("{PREFIX}{key}")))
        };
        let (name, disk, partitions, wait) =
            (take("machine")?, take("disk")?, take("partitions")?, take("tpm-wait-s")?);
        if let Some(key) = values.keys().next() {
            return Err(InvalidValue::new(KEYS, "an unknown key").at(format!("{PREFIX}{key}")));
        }
        crate::check_name(name).map_err(|e| e.at(format!("{PREFIX}machine")))?;
        check_device("disk", disk)?;
        check_device("partitions", partitions)?;
        let tpm_wait_s = wait.parse().ok().filter(|s| (1..=MAX_TPM_WAIT_S).contains(s));
        let tpm_wait_s = tpm_wait_s.ok_or_else(|| {
            let expected = format!("1 to {MAX_TPM_WAIT_S} seconds");
            InvalidValue::text(expected, wait).at(format!("{PREFIX}tpm-wait-s"))
        })?;
        Ok(Self { name: name.into(), disk: disk.into(), partitions: partitions.into(), tpm_wait_s })
    }
}

fn check_device(key: &str, path: &str) -> Result<(), ConfigProblem> {
    let name = path.strip_prefix("/dev/").unwrap_or_default();
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(());
    }
    let expected = "a device, /dev/ and letters or digits";
    Err(InvalidValue::text(expected, path).at(format!("{PREFIX}{key}")))
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn kernel_parameters_are_parsed_anywhere_in_the_line() {
        let machine = Machine {
            name: "rpi4".into(),
            disk: "/dev/mmcblk0".into(),
            partitions: "/dev/mmcblk0p".into(),
            tpm_wait_s: 20,
        };
        let line = format!("quiet {} root=/dev/dm-0\n", machine.kernel_parameters());
        assert_eq!(Machine::from_command_line(&line).unwrap(), machine);
        assert_eq!(machine.partition(3), "/dev/mmcblk0p3");
    }

    #[test]
    fn other_parameters_and_values_are_rejected() {
        let good = "basalt.machine=virt basalt.disk=/dev/vda basalt.partitions=/dev/vda \
                    basalt.tpm-wait-s=10";
        Machine::from_command_line(good).unwrap();
        for (bad, message) in [
            (good.replace("basalt.machine=virt ", ""), "basalt.machine: expected a value"),
            (format!("{good} basalt.disk=/dev/vdb"), "basalt.disk: expected one value, found two"),
            (format!("{good} basalt.tpm=none"), "basalt.tpm: expected machine, disk"),
            (format!("{good} basalt.x"), "basalt.x: expected a value"),
            (good.replace("=10", "=0"), "expected 1 to 600 seconds, found \"0\""),
            (good.replace("=10", "=ten"), "expected 1 to 600 seconds, found \"ten\""),
            (format!("\u{a0}{good}"), "printable ASCII"),
            (format!("{good}\tquiet"), "printable ASCII, found byte 0x09"),
            (good.replace("disk=/dev/vda", "disk=/dev/../etc"), "basalt.disk: expected a device"),
            (good.replace("disk=/dev/vda", "disk=/dev/"), "basalt.disk: expected a device"),
            (good.replace("=virt", "=../x"), "expected a name"),
        ] {
            let error = Machine::from_command_line(&bad).unwrap_err().to_string();
            assert!(error.contains(message), "{bad}: {error}");
        }
    }
}
