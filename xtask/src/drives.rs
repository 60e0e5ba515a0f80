//! The host's drives, as sysfs shows them (kernel: Documentation/ABI/stable/sysfs-block).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const CLASS: &str = "/sys/class/block";

/// A drive or one of its partitions.
pub struct Drive {
    pub name: String,
    /// Its folder in sysfs.
    place: PathBuf,
}

fn named(name: &str) -> Drive {
    Drive { name: name.to_owned(), place: Path::new(CLASS).join(name) }
}

/// All whole drives.
pub fn all() -> Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for entry in std::fs::read_dir(CLASS).with_context(|| format!("cannot list {CLASS}"))? {
        let drive = named(&entry?.file_name().to_string_lossy());
        if drive.whole().is_none() {
            drives.push(drive);
        }
    }
    drives.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(drives)
}

pub fn of_number(number: u64) -> Result<Drive> {
    let place = format!("/sys/dev/block/{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let real = Path::new(&place).canonicalize().with_context(|| format!("the kernel does not list this device ({place})"))?;
    Ok(named(&real.file_name().unwrap_or_default().to_string_lossy()))
}

impl Drive {
    fn attribute(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.place.join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// For a partition, the drive that it is of.
    pub fn whole(&self) -> Option<String> {
        self.place.join("partition").exists().then(|| {
            let real = self.place.canonicalize().unwrap_or_default();
            real.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
        })
    }

    /// In bytes.
    pub fn size(&self) -> Result<u64> {
        let sectors: u64 = self.attribute("size").with_context(|| format!("{} has no size", self.name))?.parse()?;
        Ok(sectors * 512)
    }

    pub fn model(&self) -> String {
        self.attribute("device/model").or_else(|| self.attribute("device/name")).unwrap_or_default()
    }

    /// Cards, USB drives, and loop devices that somebody set up.
    pub fn removable(&self) -> bool {
        let bus = self.place.canonicalize().unwrap_or_default();
        let card = self.attribute("device/type").as_deref() == Some("SD");
        let usb = bus.components().any(|c| c.as_os_str().to_string_lossy().starts_with("usb"));
        let set_up = self.place.join("loop/backing_file").exists();
        self.attribute("size").as_deref() != Some("0") && (self.attribute("removable").as_deref() == Some("1") || card || usb || set_up)
    }

    /// What holds the drive or one of its partitions: mounts, swap, other devices made of it.
    pub fn uses(&self) -> Result<Vec<String>> {
        let mut parts = vec![self.name.clone()];
        for entry in std::fs::read_dir(&self.place).into_iter().flatten().flatten() {
            if entry.path().join("partition").exists() {
                parts.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        let mut uses = Vec::new();
        for part in parts {
            let number = named(&part).attribute("dev").unwrap_or_default();
            for line in mounts.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                if words.get(2) == Some(&number.as_str()) {
                    uses.push(format!("{part} is mounted at {}", words.get(4).unwrap_or(&"?")));
                }
            }
            if swaps.lines().any(|l| l.split_whitespace().next() == Some(&format!("/dev/{part}"))) {
                uses.push(format!("{part} is swap"));
            }
            for holder in std::fs::read_dir(Path::new(CLASS).join(&part).join("holders")).into_iter().flatten().flatten() {
                uses.push(format!("{part} is part of {}", holder.file_name().to_string_lossy()));
            }
        }
        Ok(uses)
    }
}
