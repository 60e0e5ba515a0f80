//! Reads a boot partition like the Raspberry Pi's firmware: autoboot.txt, config.txt, cmdline.txt.
//!
//! The build verifies with it that each board finds its files, and the emulator boots the files
//! that it selects. Source: Raspberry Pi documentation, "config.txt" (boot options, conditional
//! filters) and "autoboot.txt".

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::image::machine::Board;

/// Length of autoboot.txt that the firmware reads.
const MAX_AUTOBOOT_BYTES: usize = 512;

/// The files that the firmware of a board loads, and the kernel command line.
#[derive(Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// File name of the kernel.
    pub kernel: String,
    /// File name of the device tree.
    pub device_tree: String,
    /// Kernel command line.
    pub command_line: String,
}

/// Returns the boot configuration that the files of the boot partition in `dir` give this board.
///
/// # Errors
///
/// Fails if a file is missing, or if cmdline.txt has more than one line.
pub fn load(dir: &Path, board: &Board) -> Result<BootConfig> {
    let read = |name: &str| {
        std::fs::read_to_string(dir.join(name))
            .with_context(|| format!("cannot read {name} of the boot partition of {}", board.name))
    };
    let settings = settings(&read("config.txt")?, &board.sections);
    let setting = |name: &str, default: &str| {
        settings.get(name).cloned().unwrap_or_else(|| default.to_owned())
    };
    let config = BootConfig {
        kernel: setting("kernel", "kernel8.img"),
        device_tree: setting("device_tree", &board.dtb),
        command_line: read(&setting("cmdline", "cmdline.txt"))?.trim_end().to_owned(),
    };
    ensure!(
        !config.command_line.contains('\n'),
        "cmdline.txt has more than one line; the firmware reads only the first"
    );
    for name in [&config.kernel, &config.device_tree] {
        ensure!(
            dir.join(name).is_file(),
            "the boot partition of {} has no {name}, which config.txt requires",
            board.name
        );
    }
    Ok(config)
}

/// Returns the number of the partition that autoboot.txt selects; 1 if there is no such file.
///
/// # Errors
///
/// Fails if autoboot.txt cannot be read, is longer than 512 bytes or has an invalid partition.
pub fn boot_partition(dir: &Path) -> Result<u32> {
    let path = dir.join("autoboot.txt");
    if !path.exists() {
        return Ok(1);
    }
    let text = std::fs::read_to_string(&path)?;
    ensure!(
        text.len() <= MAX_AUTOBOOT_BYTES,
        "autoboot.txt has {} bytes; the firmware reads at most {MAX_AUTOBOOT_BYTES}",
        text.len()
    );
    match settings(&text, &[]).get("boot_partition") {
        None => Ok(1),
        Some(number) => match number.parse() {
            Ok(n @ 1..=4) => Ok(n),
            _ => bail!("autoboot.txt: boot_partition: expected 1 to 4, found {number}"),
        },
    }
}

/// Returns the settings `key=value` of the section `[all]` and of `sections`. A later line
/// overrides an earlier one.
fn settings(text: &str, sections: &[String]) -> BTreeMap<String, String> {
    let (mut applies, mut found) = (true, BTreeMap::new());
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            applies = section == "all" || sections.iter().any(|s| s == section);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| applies) {
            found.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        Board { name: "4B".into(), dtb: "board.dtb".into(), sections: vec!["pi4".into()] }
    }

    #[test]
    fn sections_of_other_boards_are_ignored() {
        let text = "kernel=a # comment\n[pi3]\nkernel=b\n[pi4]\ncmdline=line.txt\n[tryboot]\n\
                    kernel=c\n[all]\n\ngpu_mem = 16\n";
        let found = settings(text, &["pi4".into()]);
        assert_eq!(
            found.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            ["cmdline=line.txt", "gpu_mem=16", "kernel=a"]
        );
    }

    #[test]
    fn errors_name_missing_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let message = || format!("{:#}", load(dir.path(), &board()).unwrap_err());
        assert!(message().contains("config.txt"));
        write("config.txt", "kernel=k\n");
        assert!(message().contains("cmdline.txt"));
        write("cmdline.txt", "quiet\n");
        assert!(message().contains("no k,"));
        write("k", "");
        assert!(message().contains("board.dtb"));
        write("board.dtb", "");
        let found = load(dir.path(), &board()).unwrap();
        assert_eq!(
            found,
            BootConfig {
                kernel: "k".into(),
                device_tree: "board.dtb".into(),
                command_line: "quiet".into()
            }
        );
        write("cmdline.txt", "quiet\ninit=/bin/sh\n");
        assert!(message().contains("more than one line"));
    }

    #[test]
    fn autoboot_selects_the_partition() {
        let dir = tempfile::tempdir().unwrap();
        let with = |text: &str| {
            std::fs::write(dir.path().join("autoboot.txt"), text).unwrap();
            boot_partition(dir.path())
        };
        assert_eq!(
            with("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n").unwrap(),
            2
        );
        assert_eq!(with("").unwrap(), 1);
        assert!(with("boot_partition=9").is_err());
        assert!(with(&"#".repeat(513)).is_err());
    }
}
