//! Drives of the host, read from sysfs (kernel: Documentation/ABI/stable/sysfs-block).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Mount points of sysfs and procfs; tests use other folders.
#[derive(Clone)]
pub(super) struct Host {
    sys: PathBuf,
    proc: PathBuf,
}

/// A drive or one of its partitions.
pub(super) struct Drive {
    /// Name of the device, without /dev/.
    pub(super) name: String,
    /// Folder in sysfs.
    place: PathBuf,
    host: Host,
}

impl Host {
    /// Returns the host that this program runs on.
    pub(super) fn this() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }

    fn class(&self) -> PathBuf {
        self.sys.join("class/block")
    }

    fn named(&self, name: &str) -> Drive {
        Drive { name: name.to_owned(), place: self.class().join(name), host: self.clone() }
    }

    /// Returns all drives, sorted by name, without partitions.
    pub(super) fn drives(&self) -> Result<Vec<Drive>> {
        let class = self.class();
        let mut drives = Vec::new();
        for entry in
            std::fs::read_dir(&class).with_context(|| format!("cannot list {}", class.display()))?
        {
            let drive = self.named(&entry?.file_name().to_string_lossy());
            if drive.whole().is_none() {
                drives.push(drive);
            }
        }
        drives.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(drives)
    }

    /// Returns the drive or partition with this device number.
    pub(super) fn drive_of_number(&self, number: u64) -> Result<Drive> {
        let place = self.sys.join(format!(
            "dev/block/{}:{}",
            nix::sys::stat::major(number),
            nix::sys::stat::minor(number)
        ));
        let real = place.canonicalize().with_context(|| {
            format!("the kernel does not list this device ({})", place.display())
        })?;
        Ok(self.named(&real.file_name().unwrap_or_default().to_string_lossy()))
    }
}

impl Drive {
    fn attribute(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.place.join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// Returns the name of the drive that contains this partition; `None` for a whole drive.
    pub(super) fn whole(&self) -> Option<String> {
        self.place.join("partition").exists().then(|| {
            let real = self.place.canonicalize().unwrap_or_default();
            real.parent()
                .and_then(Path::file_name)
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        })
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> Result<u64> {
        let sectors: u64 = self
            .attribute("size")
            .with_context(|| format!("{} has no size", self.name))?
            .parse()?;
        Ok(sectors * 512)
    }

    /// Returns the model as the device reports it.
    pub(super) fn model(&self) -> String {
        self.attribute("device/model").or_else(|| self.attribute("device/name")).unwrap_or_default()
    }

    /// Returns whether this is a memory card, a USB drive or a loop device in use.
    pub(super) fn removable(&self) -> bool {
        let bus = self.place.canonicalize().unwrap_or_default();
        let card = self.attribute("device/type").as_deref() == Some("SD");
        let usb = bus.components().any(|c| c.as_os_str().to_string_lossy().starts_with("usb"));
        let loop_device = self.place.join("loop/backing_file").exists();
        self.attribute("size").as_deref() != Some("0")
            && (self.attribute("removable").as_deref() == Some("1") || card || usb || loop_device)
    }

    /// Returns the uses of the drive and its partitions: mounts, swap, and devices built on them.
    pub(super) fn uses(&self) -> Result<Vec<String>> {
        let mut parts = vec![self.name.clone()];
        for entry in std::fs::read_dir(&self.place).into_iter().flatten().flatten() {
            if entry.path().join("partition").exists() {
                parts.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        let mounts = self.host.proc.join("self/mountinfo");
        let mounts = std::fs::read_to_string(&mounts)
            .with_context(|| format!("cannot read {}", mounts.display()))?;
        let swaps = std::fs::read_to_string(self.host.proc.join("swaps")).unwrap_or_default();
        let mut uses = Vec::new();
        for part in parts {
            let number = self.host.named(&part).attribute("dev").unwrap_or_default();
            for line in mounts.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                if words.get(2) == Some(&number.as_str()) {
                    uses.push(format!("{part} is mounted at {}", words.get(4).unwrap_or(&"?")));
                }
            }
            if swaps.lines().any(|l| l.split_whitespace().next() == Some(&format!("/dev/{part}"))) {
                uses.push(format!("{part} is swap"));
            }
            for holder in std::fs::read_dir(self.host.class().join(&part).join("holders"))
                .into_iter()
                .flatten()
                .flatten()
            {
                uses.push(format!("{part} is part of {}", holder.file_name().to_string_lossy()));
            }
        }
        Ok(uses)
    }

    /// Returns why this device must not be overwritten; `None` if it may be.
    pub(super) fn rejection(&self) -> Result<Option<String>> {
        if let Some(whole) = self.whole() {
            return Ok(Some(format!("is a partition; specify the whole device, /dev/{whole}")));
        }
        let uses = self.uses()?;
        if !uses.is_empty() {
            return Ok(Some(format!("is in use: {}", uses.join(", "))));
        }
        Ok((!self.removable()).then(|| "is a built-in drive, not a removable one".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with a built-in disk (8:0), a USB drive (8:16) with a partition (8:17), a card
    /// (179:0) and an empty reader (8:32).
    fn host(dir: &Path, mounts: &str, swaps: &str) -> Host {
        let host = Host { sys: dir.join("sys"), proc: dir.join("proc") };
        let _ = std::fs::remove_dir_all(dir.join("sys"));
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (bus, name, number, size, more) in [
            ("pci0", "sda", "8:0", "1000", ("removable", "0")),
            ("usb1", "sdb", "8:16", "2000", ("removable", "0")),
            ("usb1/sdb", "sdb1", "8:17", "1000", ("partition", "1")),
            ("platform", "mmcblk0", "179:0", "3000", ("device/type", "SD")),
            ("usb2", "sdc", "8:32", "0", ("removable", "1")),
        ] {
            let place = dir.join("sys/devices").join(bus).join(name);
            for (attribute, text) in [("dev", number), ("size", size), more] {
                write(place.join(attribute), text);
            }
            for link in
                [dir.join("sys/class/block").join(name), dir.join("sys/dev/block").join(number)]
            {
                std::fs::create_dir_all(link.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(&place, link).unwrap();
            }
        }
        write(dir.join("proc/self/mountinfo"), mounts);
        write(dir.join("proc/swaps"), swaps);
        host
    }

    #[test]
    fn only_a_removable_device_that_is_not_in_use_may_be_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let rejection = |host: &Host, major, minor| {
            host.drive_of_number(nix::sys::stat::makedev(major, minor))
                .unwrap()
                .rejection()
                .unwrap()
                .unwrap_or_default()
        };
        let free = host(dir.path(), "", "");
        assert_eq!(
            free.drives().unwrap().iter().map(|d| d.name.as_str()).collect::<Vec<_>>(),
            ["mmcblk0", "sda", "sdb", "sdc"]
        );
        assert_eq!(
            (rejection(&free, 8, 16), rejection(&free, 179, 0)),
            (String::new(), String::new())
        );
        assert!(rejection(&free, 8, 0).contains("built-in"));
        assert!(rejection(&free, 8, 17).contains("specify the whole device, /dev/sdb"));
        assert!(rejection(&free, 8, 32).contains("built-in"), "a reader without a card");
        assert!(free.drive_of_number(nix::sys::stat::makedev(9, 9)).is_err());
        assert_eq!(
            free.drive_of_number(nix::sys::stat::makedev(8, 16)).unwrap().size().unwrap(),
            2000 * 512
        );

        let mounted = host(dir.path(), "36 35 8:17 / /mnt rw - ext4 /dev/sdb1 rw\n", "");
        assert!(rejection(&mounted, 8, 16).contains("sdb1 is mounted at /mnt"));
        let swap =
            host(dir.path(), "", "Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2\n");
        assert!(rejection(&swap, 8, 16).contains("sdb1 is swap"));
        let stacked = host(dir.path(), "", "");
        std::fs::create_dir_all(dir.path().join("sys/devices/platform/mmcblk0/holders/dm-0"))
            .unwrap();
        assert!(rejection(&stacked, 179, 0).contains("mmcblk0 is part of dm-0"));
    }
}
