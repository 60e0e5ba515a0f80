//! Verification of blobs while they are read.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::OciError;

/// Reader that reports the end only if it read exactly `size` bytes with this SHA-256 digest.
///
/// Otherwise, the last read fails with an error of the kind `InvalidData` that contains
/// [`OciError::Mismatch`].
pub struct Checked<R> {
    from: R,
    digest: String,
    size: u64,
    read: u64,
    hasher: Option<Sha256>,
}

impl<R: Read> Checked<R> {
    /// Creates a reader for a blob with this digest (`sha256:` and hex) and size.
    pub fn new(from: R, digest: &str, size: u64) -> Self {
        Self { from, digest: digest.to_owned(), size, read: 0, hasher: Some(Sha256::new()) }
    }

    fn mismatch(&self, expected: String, found: String) -> io::Error {
        OciError::Mismatch { what: "the blob", digest: self.digest.clone(), expected, found }.into()
    }

    fn end(&mut self) -> io::Result<usize> {
        if self.read != self.size {
            return Err(
                self.mismatch(format!("{} bytes", self.size), format!("{} bytes", self.read))
            );
        }
        // The digest was verified by an earlier call.
        let Some(hasher) = self.hasher.take() else { return Ok(0) };
        let found = format!("sha256:{}", measure::hex(&hasher.finalize()));
        if found != self.digest { Err(self.mismatch(self.digest.clone(), found)) } else { Ok(0) }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.read == self.size {
            // A further byte would make it another blob.
            return if self.hasher.is_some() && self.from.read(&mut [0])? != 0 {
                Err(self.mismatch(format!("{} bytes", self.size), "more".into()))
            } else {
                self.end()
            };
        }
        let len = usize::try_from(self.size - self.read).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.from.read(&mut buffer[..len])?;
        if n == 0 {
            return self.end();
        }
        self.read += n as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..n]);
        }
        Ok(n)
    }
}
