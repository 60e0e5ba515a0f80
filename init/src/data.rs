//! The data partition: grown to the card at first boot, then mounted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use config::Machine;
use nix::mount::MsFlags;

use crate::{Fatal, console, mounts, service, sys};

const SECTOR: u64 = 512;
/// The partition's number.
const DATA: u8 = 3;
/// Partitions end on a multiple of 1 MiB.
const ALIGN: u64 = 2048;

pub(crate) fn mount(machine: &Machine) -> Result<(), Fatal> {
    grow_partition(machine)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let partition = machine.partition(DATA);
    nix::mount::mount(
        Some(partition.as_str()),
        "/data",
        Some("ext4"),
        flags,
        Some("errors=remount-ro"),
    )
    .map_err(|e| {
        Fatal::io(format!("mount {partition} at /data; if the card is damaged, flash it again"))(
            e.into(),
        )
    })?;
    let size = partition_size(&partition)?;
    let data = File::open("/data").map_err(Fatal::io("open /data"))?;
    sys::ext4_grow(&data, size / 4096).map_err(Fatal::io("grow the data file system"))?;
    empty_engine()?;
    mounts::make_dir("/data/engine", 0o710, None)?;
    mounts::make_dir("/data/containerd", 0o710, None)?;
    mounts::make_dir("/data/trustd", 0o700, Some((service::TRUSTD, service::TRUSTD)))?;
    Ok(())
}

/// Takes away what the engine kept: it is rebuilt from verified archives, so nothing that was
/// altered or planted there between boots can run. Renamed first: after a power cut the next boot
/// finds only leftovers.
fn empty_engine() -> Result<(), Fatal> {
    let attic = std::path::Path::new("/data/attic");
    for name in ["engine", "containerd"] {
        let from = std::path::Path::new("/data").join(name);
        if from.symlink_metadata().is_ok() {
            std::fs::create_dir_all(attic).map_err(Fatal::io("make /data/attic"))?;
            let to =
                (0u32..).map(|n| attic.join(n.to_string())).find(|p| p.symlink_metadata().is_err());
            let to = to.ok_or_else(|| Fatal::State("/data/attic is full".into()))?;
            std::fs::rename(&from, to)
                .map_err(Fatal::io(format!("put {} away", from.display())))?;
        }
    }
    match std::fs::remove_dir_all(attic) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Fatal::io("empty /data/attic")(error))
        }
        _ => Ok(()),
    }
}

fn partition_size(partition: &str) -> Result<u64, Fatal> {
    let device = File::open(partition).map_err(Fatal::io(format!("open {partition}")))?;
    sys::block_size(&device).map_err(Fatal::io(format!("read the size of {partition}")))
}

/// Lets the last partition reach the end of the disk: one sector is written, so a power cut leaves
/// the old or the new table.
fn grow_partition(machine: &Machine) -> Result<(), Fatal> {
    let disk = File::options()
        .read(true)
        .write(true)
        .open(&machine.disk)
        .map_err(Fatal::io(format!("open {}", machine.disk)))?;
    let sectors = sys::block_size(&disk)
        .map_err(Fatal::io(format!("read the size of {}", machine.disk)))?
        / SECTOR;
    let mut table = [0; 512];
    disk.read_exact_at(&mut table, 0)
        .map_err(Fatal::io(format!("read the partition table of {}", machine.disk)))?;
    let Some((start, length)) = grown(&table, DATA, sectors).map_err(Fatal::State)? else {
        return Ok(());
    };
    let entry = 446 + 16 * usize::from(DATA - 1);
    table[entry + 12..entry + 16].copy_from_slice(&length.to_le_bytes());
    disk.write_all_at(&table, 0)
        .and_then(|()| disk.sync_all())
        .map_err(Fatal::io(format!("write the partition table of {}", machine.disk)))?;
    let (from, size) = (u64::from(start) * SECTOR, u64::from(length) * SECTOR);
    sys::resize_partition(&disk, DATA, from, size)
        .map_err(Fatal::io("tell the kernel the new size of the data partition"))?;
    console::say(&format!("the data partition now has {} MiB", size >> 20));
    Ok(())
}

/// Start and new length (in sectors) of a partition that can grow; `None` if it reaches the end
/// already.
fn grown(table: &[u8; 512], number: u8, disk_sectors: u64) -> Result<Option<(u32, u32)>, String> {
    if table[510..] != [0x55, 0xaa] || !(1..=4).contains(&number) {
        return Err("the disk has no MBR partition table".into());
    }
    let entries = |n: usize| {
        let e = &table[446 + 16 * n..][..16];
        let word = |at: usize| u32::from_le_bytes([e[at], e[at + 1], e[at + 2], e[at + 3]]);
        (word(8), word(12))
    };
    let (start, length) = entries(usize::from(number) - 1);
    if start == 0 || length == 0 {
        return Err(format!("the disk has no partition {number}"));
    }
    if (0..4).any(|n| entries(n).0 > start) {
        return Err(format!("partition {number} is not the last one of the disk and cannot grow"));
    }
    if u64::from(start) + u64::from(length) > disk_sectors {
        return Err(format!(
            "the disk ends before its data partition: it has {} MiB, the image needs {}; take a larger card",
            disk_sectors / 2048,
            (u64::from(start) + u64::from(length)).div_ceil(2048)
        ));
    }
    let end = (disk_sectors / ALIGN * ALIGN).min(u64::from(u32::MAX));
    let new = end.saturating_sub(u64::from(start)) as u32;
    Ok((new > length).then_some((start, new)))
}

#[cfg(test)]
mod tests {
    use super::grown;

    fn table(entries: [(u32, u32); 4]) -> [u8; 512] {
        let mut t = [0; 512];
        for (n, (start, length)) in entries.into_iter().enumerate() {
            t[446 + 16 * n + 8..][..4].copy_from_slice(&start.to_le_bytes());
            t[446 + 16 * n + 12..][..4].copy_from_slice(&length.to_le_bytes());
        }
        t[510..].copy_from_slice(&[0x55, 0xaa]);
        t
    }

    #[test]
    fn the_last_partition_grows_and_only_that() {
        let t = table([(2048, 100), (4096, 100), (8192, 2048), (0, 0)]);
        assert_eq!(grown(&t, 3, 8192 + 2048), Ok(None));
        assert_eq!(grown(&t, 3, 8192 + 4096 + 7), Ok(Some((8192, 4096))));
        assert!(grown(&t, 2, 1 << 20).unwrap_err().contains("last"));
        assert!(grown(&t, 4, 1 << 20).unwrap_err().contains("no partition"));
        assert!(grown(&t, 3, 9000).unwrap_err().contains("larger card"));
        assert!(grown(&[0; 512], 3, 1 << 20).is_err());
        // A disk beyond what an MBR can say.
        assert_eq!(grown(&t, 3, 1 << 40), Ok(Some((8192, u32::MAX - 8192))));
    }
}
