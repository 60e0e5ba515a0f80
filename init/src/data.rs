//! The data partition: init extends it to the end of the disk at the first boot, and mounts it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use config::Machine;
use nix::mount::MsFlags;

use crate::error::InitError;
use crate::{mounts, service, sys};

const SECTOR_BYTES: u64 = 512;
/// Block size of the file system.
const BLOCK_BYTES: u64 = 4096;
/// Number of the data partition.
const DATA_PARTITION: u8 = 3;
/// Alignment of the partition's end: 1 MiB.
const ALIGNMENT_SECTORS: u64 = 2048;
/// Folder for state of the engine that is about to be deleted.
const DISCARD_DIR: &str = "/data/attic";

/// Extends and mounts the data partition, and creates its folders.
pub(crate) fn mount(machine: &Machine) -> Result<(), InitError> {
    grow_partition(machine)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let partition = machine.partition(DATA_PARTITION);
    nix::mount::mount(
        Some(partition.as_str()),
        "/data",
        Some("ext4"),
        flags,
        Some("errors=remount-ro"),
    )
    .map_err(InitError::io(format!(
        "mount {partition} at /data; if the card is damaged, flash it again"
    )))?;
    let size = partition_size(&partition)?;
    let data = File::open("/data").map_err(InitError::io("open /data"))?;
    sys::ext4_grow(&data, size / BLOCK_BYTES)
        .map_err(InitError::io("grow the file system of the data partition"))?;
    discard_engine_state()?;
    mounts::make_dir("/data/engine", 0o710, None)?;
    mounts::make_dir("/data/containerd", 0o710, None)?;
    mounts::make_dir("/data/trustd", 0o700, Some((service::TRUSTD, service::TRUSTD)))?;
    Ok(())
}

/// Deletes the state of the engine, which is restored from verified archives. Files that were
/// altered or planted there between two boots can therefore not run. The folders are renamed first,
/// so that a power cut leaves either all of the state or none.
fn discard_engine_state() -> Result<(), InitError> {
    let discarded = std::path::Path::new(DISCARD_DIR);
    for name in ["engine", "containerd"] {
        let from = std::path::Path::new("/data").join(name);
        if from.symlink_metadata().is_ok() {
            std::fs::create_dir_all(discarded)
                .map_err(InitError::io(format!("create {DISCARD_DIR}")))?;
            let to = (0u32..)
                .map(|n| discarded.join(n.to_string()))
                .find(|p| p.symlink_metadata().is_err());
            let to = to.ok_or_else(|| InitError::State(format!("{DISCARD_DIR} is full")))?;
            std::fs::rename(&from, to)
                .map_err(InitError::io(format!("move {} to {DISCARD_DIR}", from.display())))?;
        }
    }
    match std::fs::remove_dir_all(discarded) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(InitError::io(format!("remove {DISCARD_DIR}"))(error))
        }
        _ => Ok(()),
    }
}

fn partition_size(partition: &str) -> Result<u64, InitError> {
    let device = File::open(partition).map_err(InitError::io(format!("open {partition}")))?;
    sys::block_size(&device).map_err(InitError::io(format!("read the size of {partition}")))
}

/// Extends the last partition to the end of the disk. The partition table is one sector, so a power
/// cut leaves either the old or the new table.
fn grow_partition(machine: &Machine) -> Result<(), InitError> {
    let disk = File::options()
        .read(true)
        .write(true)
        .open(&machine.disk)
        .map_err(InitError::io(format!("open {}", machine.disk)))?;
    let sectors = sys::block_size(&disk)
        .map_err(InitError::io(format!("read the size of {}", machine.disk)))?
        / SECTOR_BYTES;
    let mut table = [0; 512];
    disk.read_exact_at(&mut table, 0)
        .map_err(InitError::io(format!("read the partition table of {}", machine.disk)))?;
    let Some((start, length)) =
        extended_partition(&table, DATA_PARTITION, sectors).map_err(InitError::State)?
    else {
        return Ok(());
    };
    let entry = 446 + 16 * usize::from(DATA_PARTITION - 1);
    table[entry + 12..entry + 16].copy_from_slice(&length.to_le_bytes());
    disk.write_all_at(&table, 0)
        .and_then(|()| disk.sync_all())
        .map_err(InitError::io(format!("write the partition table of {}", machine.disk)))?;
    let (from, size) = (u64::from(start) * SECTOR_BYTES, u64::from(length) * SECTOR_BYTES);
    sys::resize_partition(&disk, DATA_PARTITION, from, size)
        .map_err(InitError::io("set the size of the data partition in the kernel"))?;
    logging::info!("the data partition now has {} MiB", size >> 20);
    Ok(())
}

/// Returns start and new length in sectors of a partition that can grow, and `None` if it reaches
/// the end of the disk already.
fn extended_partition(
    table: &[u8; 512],
    number: u8,
    disk_sectors: u64,
) -> Result<Option<(u32, u32)>, String> {
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
        return Err(format!("partition {number} cannot grow: it is not the last one of the disk"));
    }
    if u64::from(start) + u64::from(length) > disk_sectors {
        return Err(format!(
            "the disk is too small: the image needs {} MiB, the disk has {}; use a larger card",
            (u64::from(start) + u64::from(length)).div_ceil(ALIGNMENT_SECTORS),
            disk_sectors / ALIGNMENT_SECTORS
        ));
    }
    let end = (disk_sectors / ALIGNMENT_SECTORS * ALIGNMENT_SECTORS).min(u64::from(u32::MAX));
    let new = end.saturating_sub(u64::from(start)) as u32;
    Ok((new > length).then_some((start, new)))
}

#[cfg(test)]
mod tests {
    use super::extended_partition;

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
    fn only_the_last_partition_grows() {
        let t = table([(2048, 100), (4096, 100), (8192, 2048), (0, 0)]);
        assert_eq!(extended_partition(&t, 3, 8192 + 2048), Ok(None));
        assert_eq!(extended_partition(&t, 3, 8192 + 4096 + 7), Ok(Some((8192, 4096))));
        assert!(extended_partition(&t, 2, 1 << 20).unwrap_err().contains("last"));
        assert!(extended_partition(&t, 4, 1 << 20).unwrap_err().contains("no partition"));
        assert!(extended_partition(&t, 3, 9000).unwrap_err().contains("larger card"));
        assert!(extended_partition(&[0; 512], 3, 1 << 20).is_err());
        // An MBR has 32-bit sector numbers, so the partition ends there on a larger disk.
        assert_eq!(extended_partition(&t, 3, 1 << 40), Ok(Some((8192, u32::MAX - 8192))));
    }
}
