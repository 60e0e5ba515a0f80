//! The partition table (MBR) of a disk image: four entries of 16 bytes from byte 446 on.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Returns the offset of a primary partition in bytes. Partitions are numbered from 1; byte 8 of an
/// entry is the start of its first sector's number (32 bits, little-endian; sectors of 512 bytes).
///
/// # Errors
///
/// Fails if the file cannot be read or has no such partition.
pub fn partition_start(disk: &Path, number: u32) -> Result<u64> {
    ensure!((1..=4).contains(&number), "partition number: expected 1 to 4, found {number}");
    let mut sector = [0; 4];
    let at = 446 + 16 * u64::from(number - 1) + 8;
    std::fs::File::open(disk)?
        .read_exact_at(&mut sector, at)
        .with_context(|| format!("{} is not a disk image: no partition table", disk.display()))?;
    let start = u64::from(u32::from_le_bytes(sector)) * 512;
    ensure!(start > 0, "{} has no partition {number}", disk.display());
    Ok(start)
}
