//! Writes an image to a memory card and reads it back.
//!
//! Invariant: the partition table is written last, after everything else has been read back. An
//! interrupted card therefore has no partition table and does not boot.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::engine::progress::{self, Task};
use crate::image::bmap::{BLOCK_BYTES, Bmap, Range};

/// A memory card, or its replacement in a test.
trait Card {
    /// Writes bytes at an offset.
    fn put(&self, data: &[u8], at: u64) -> std::io::Result<()>;
    /// Fills `data` with the bytes at an offset.
    fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()>;
    /// Writes cached data to the medium and drops it from the cache, so that reads use the medium.
    fn sync(&self) -> std::io::Result<()>;
}

impl Card for File {
    fn put(&self, data: &[u8], at: u64) -> std::io::Result<()> {
        self.write_all_at(data, at)
    }

    fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()> {
        self.read_exact_at(data, at)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.sync_all()?;
        Ok(nix::fcntl::posix_fadvise(
            self,
            0,
            0,
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )?)
    }
}

const INCOMPLETE: &str =
    "the card is incomplete and will not boot; check the card and run the command again";

/// Returns the bytes of a range of the image after verifying them against the block map.
pub(super) fn read_verified(source: &File, map: &Bmap, range: &Range) -> Result<Vec<u8>> {
    let mut data = vec![0; range.length(map.image_size) as usize];
    source.read_exact_at(&mut data, range.start())?;
    let found = measure::hex(&Sha256::digest(&data));
    ensure!(
        found == range.sha256,
        "the image changed while it was read: blocks {} to {}, expected SHA-256 {}, found {found}",
        range.first,
        range.last,
        range.sha256
    );
    Ok(data)
}

/// Writes the blocks of the map to a card, reads them back and compares.
///
/// # Errors
///
/// Fails if the image or the card cannot be read or written, or their contents differ.
pub(super) fn write(image: &Path, map: &Bmap, card: &File, name: &str) -> Result<()> {
    write_to(image, map, card, name)
}

fn write_to(image: &Path, map: &Bmap, card: &dyn Card, name: &str) -> Result<()> {
    let source = File::open(image)?;
    let failed = |action: &str, at: u64| {
        format!(
            "{action} {name} failed at {} of {}: {INCOMPLETE}",
            progress::size(at),
            progress::size(map.image_size)
        )
    };
    // The old partition table is erased first, so that an interrupted card does not boot.
    card.put(&[0; BLOCK_BYTES as usize], 0).with_context(|| failed("writing", 0))?;
    card.sync().with_context(|| failed("writing", 0))?;

    let task = Task::begin("write", &format!("{} to {name}", progress::size(map.mapped_bytes())));
    task.bytes(map.mapped_bytes());
    let mut table = Vec::new();
    for range in &map.ranges {
        let mut data = read_verified(&source, map, range)?;
        if range.first == 0 {
            let rest = data.split_off(BLOCK_BYTES as usize);
            table = std::mem::replace(&mut data, rest);
            card.put(&data, BLOCK_BYTES)
        } else {
            card.put(&data, range.start())
        }
        .with_context(|| failed("writing", range.start()))?;
        task.advance(range.length(map.image_size));
    }
    card.sync().with_context(|| failed("writing", map.image_size))?;
    task.done(&progress::size(map.mapped_bytes()));

    let task = Task::begin("read back", name);
    task.bytes(map.mapped_bytes());
    for range in &map.ranges {
        let mut data = vec![0; range.length(map.image_size) as usize];
        card.get(&mut data, range.start())
            .with_context(|| failed("reading back", range.start()))?;
        if range.first == 0 {
            data[..BLOCK_BYTES as usize].copy_from_slice(&table);
        }
        let found = measure::hex(&Sha256::digest(&data));
        ensure!(
            found == range.sha256,
            "{name} returns other data than was written: blocks {} to {}, expected SHA-256 {}, \
             found {found}; {INCOMPLETE}",
            range.first,
            range.last,
            range.sha256
        );
        task.advance(data.len() as u64);
    }
    // Everything else is verified, so the partition table is written now.
    card.put(&table, 0).and_then(|()| card.sync()).with_context(|| failed("writing", 0))?;
    let mut first = vec![0; BLOCK_BYTES as usize];
    card.get(&mut first, 0).with_context(|| failed("reading back", 0))?;
    ensure!(
        first == table,
        "{name} returns another partition table than was written; {INCOMPLETE}"
    );
    task.done("equal to the image");
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::path::PathBuf;

    /// A card in memory.
    struct Memory {
        data: RefCell<Vec<u8>>,
        /// Bytes that can be written before the card is removed.
        writable_bytes: Cell<usize>,
        /// Offset of a byte that is read back with one bit flipped.
        faulty_byte: Option<usize>,
    }

    impl Card for Memory {
        fn put(&self, data: &[u8], at: u64) -> std::io::Result<()> {
            let left = self
                .writable_bytes
                .get()
                .checked_sub(data.len())
                .ok_or(std::io::Error::from_raw_os_error(nix::libc::EIO))?;
            self.writable_bytes.set(left);
            self.data.borrow_mut()[at as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }

        fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()> {
            data.copy_from_slice(&self.data.borrow()[at as usize..][..data.len()]);
            if let Some(byte) = self
                .faulty_byte
                .and_then(|n| n.checked_sub(at as usize))
                .and_then(|n| data.get_mut(n))
            {
                *byte ^= 1;
            }
            Ok(())
        }

        fn sync(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    pub(in super::super) const SIZE: usize = 64 * BLOCK_BYTES as usize;

    /// Creates an image of which the blocks 0 to 7 and 32 to 63 are mapped.
    pub(in super::super) fn image(dir: &Path) -> (PathBuf, Bmap) {
        let path = dir.join("x.img");
        let data: Vec<u8> = (0..SIZE).map(|n| (n / 7 + 1) as u8).collect();
        std::fs::write(&path, data).unwrap();
        let map = Bmap::from_image(&path, &[(0, 8 * BLOCK_BYTES), (32 * BLOCK_BYTES, SIZE as u64)])
            .unwrap();
        (path, map)
    }

    fn memory(writable_bytes: usize, faulty_byte: Option<usize>) -> Memory {
        Memory {
            data: RefCell::new(vec![0xee; SIZE]),
            writable_bytes: Cell::new(writable_bytes),
            faulty_byte,
        }
    }

    #[test]
    fn only_mapped_blocks_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        let card = memory(usize::MAX, None);
        write_to(&path, &map, &card, "card").unwrap();
        let (is, was) = (card.data.borrow(), std::fs::read(&path).unwrap());
        let (a, b) = (8 * BLOCK_BYTES as usize, 32 * BLOCK_BYTES as usize);
        assert!(is[..a] == was[..a] && is[b..] == was[b..] && is[a..b].iter().all(|x| *x == 0xee));
    }

    #[test]
    fn a_card_removed_at_any_moment_has_no_partition_table() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        let all = (map.mapped_bytes() + BLOCK_BYTES) as usize;
        for writable_bytes in (BLOCK_BYTES as usize..all).step_by(BLOCK_BYTES as usize) {
            let card = memory(writable_bytes, None);
            let error = format!("{:#}", write_to(&path, &map, &card, "card").unwrap_err());
            assert!(
                error.contains("will not boot") && error.contains("Input/output error"),
                "{error}"
            );
            assert!(
                card.data.borrow()[..BLOCK_BYTES as usize].iter().all(|x| *x == 0),
                "no partition table after {writable_bytes} bytes"
            );
        }
    }

    #[test]
    fn a_flipped_bit_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        for faulty_byte in [0, 5000, 40 * BLOCK_BYTES as usize, SIZE - 1] {
            let error = write_to(&path, &map, &memory(usize::MAX, Some(faulty_byte)), "card")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("returns other data") || error.contains("returns another"),
                "{error}"
            );
        }
    }
}
