//! Copies files sparsely: blocks of zeros become holes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::Result;

/// A block of zeros, which blocks are compared with. A comparison byte by byte takes seconds in a
/// build without optimisation.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Copies a file; blocks of zeros become holes.
///
/// # Errors
///
/// Fails if a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut target = File::create(to)?;
    let length = copy_to_offset(from, &mut target, 0)?;
    target.set_len(length)?;
    Ok(())
}

/// Copies a file into an open file at the offset `at`; blocks of zeros become holes. Returns the
/// number of bytes of the copied file.
///
/// # Errors
///
/// Fails if a file cannot be read or written.
pub fn copy_to_offset(from: &Path, to: &mut File, at: u64) -> Result<u64> {
    let mut source = File::open(from)?;
    let mut buffer = vec![0; ZEROS.len()];
    let mut length = 0;
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return Ok(length);
        }
        if buffer[..n] != ZEROS[..n] {
            to.seek(SeekFrom::Start(at + length))?;
            to.write_all(&buffer[..n])?;
        }
        length += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_length() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut data = vec![0; 3 * ZEROS.len() + 100];
        data[ZEROS.len() + 5] = 1;
        std::fs::write(&from, &data).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&to).unwrap() == data);
        let mut target = File::options().write(true).open(&to).unwrap();
        assert_eq!(copy_to_offset(&from, &mut target, 7).unwrap(), data.len() as u64);
        assert_eq!(std::fs::read(&to).unwrap()[ZEROS.len() + 12], 1);
    }
}
