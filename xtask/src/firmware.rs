//! Reads a boot partition as the Raspberry Pi's firmware does: autoboot.txt, config.txt,
//! cmdline.txt.
//!
//! Used twice: the build asks whether each board would find its files, and whoever starts QEMU
//! starts what is found. Source: Raspberry Pi documentation, "config.txt" (boot options,
//! conditional filters) and "autoboot.txt".

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::machine::Board;

/// What a board would start.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    pub kernel: String,
    pub device_tree: String,
    pub command_line: String,
}

/// What the files in `dir` make this board start.
pub fn load(dir: &Path, board: &Board) -> Result<Loaded> {
    let read = |name: &str| {
        std::fs::read_to_string(dir.join(name))
            .with_context(|| format!("the boot partition of {} has no readable {name}", board.name))
    };
    let settings = settings(&read("config.txt")?, &board.sections);
    let setting = |name: &str, default: &str| {
        settings.get(name).cloned().unwrap_or_else(|| default.to_owned())
    };
    let loaded = Loaded {
        kernel: setting("kernel", "kernel8.img"),
        device_tree: setting("device_tree", &board.dtb),
        command_line: read(&setting("cmdline", "cmdline.txt"))?.trim_end().to_owned(),
    };
    ensure!(
        !loaded.command_line.contains('\n'),
        "cmdline.txt has more than one line; the firmware reads the first only"
    );
    for name in [&loaded.kernel, &loaded.device_tree] {
        ensure!(
            dir.join(name).is_file(),
            "the boot partition of {} has no {name}, which config.txt asks for",
            board.name
        );
    }
    Ok(loaded)
}

/// The partition that autoboot.txt sends the firmware to; without that file it stays where it is.
pub fn boot_partition(dir: &Path) -> Result<u32> {
    let path = dir.join("autoboot.txt");
    if !path.exists() {
        return Ok(1);
    }
    let text = std::fs::read_to_string(&path)?;
    ensure!(
        text.len() <= 512,
        "autoboot.txt has {} bytes; the firmware reads at most 512",
        text.len()
    );
    match settings(&text, &[]).get("boot_partition") {
        None => Ok(1),
        Some(number) => match number.parse() {
            Ok(n @ 1..=4) => Ok(n),
            _ => bail!("autoboot.txt: boot_partition={number}: expected 1 to 4"),
        },
    }
}

/// `key=value` of all sections that count; a later line wins.
fn settings(text: &str, sections: &[String]) -> BTreeMap<String, String> {
    let (mut counts, mut found) = (true, BTreeMap::new());
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            counts = section == "all" || sections.iter().any(|s| s == section);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| counts) {
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
    fn sections_of_other_boards_do_not_count() {
        let text = "kernel=a # comment\n[pi3]\nkernel=b\n[pi4]\ncmdline=line.txt\n[tryboot]\nkernel=c\n[all]\n\ngpu_mem = 16\n";
        let found = settings(text, &["pi4".into()]);
        assert_eq!(
            found.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            ["cmdline=line.txt", "gpu_mem=16", "kernel=a"]
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let says = || format!("{:#}", load(dir.path(), &board()).unwrap_err());
        assert!(says().contains("config.txt"));
        write("config.txt", "kernel=k\n");
        assert!(says().contains("cmdline.txt"));
        write("cmdline.txt", "quiet\n");
        assert!(says().contains("no k,"));
        write("k", "");
        assert!(says().contains("board.dtb"));
        write("board.dtb", "");
        let loaded = load(dir.path(), &board()).unwrap();
        assert_eq!(
            loaded,
            Loaded {
                kernel: "k".into(),
                device_tree: "board.dtb".into(),
                command_line: "quiet".into()
            }
        );
        write("cmdline.txt", "quiet\ninit=/bin/sh\n");
        assert!(says().contains("more than one line"));
    }

    #[test]
    fn autoboot_names_a_partition() {
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
