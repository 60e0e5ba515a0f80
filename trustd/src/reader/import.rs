//! Import of an archive through a reader.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use oci::{Limits, OciError};

use super::process::{Process, is_timeout};
use super::wire::{Answer, Frame, Request};
use super::{ReaderError, Readers};

/// Bytes that are passed to a reader at a time.
const CHUNK_BYTES: usize = 128 << 10;

impl Readers {
    /// Reads an archive and passes each of its blobs to `store` with digest and size, like
    /// [`oci::import`]. The content is not verified: `store` must compare it with the digest.
    /// Returns the digests.
    ///
    /// # Errors
    /// The errors of `archive` and `store`; a rejection of the archive; and [`OciError::Io`] if
    /// there is no verdict.
    pub fn import(
        &self,
        archive: &mut (impl Read + Send),
        limits: &Limits,
        store: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), OciError>,
    ) -> Result<Vec<String>, OciError> {
        let request = Request::Import { limits: limits.clone() };
        let mut process =
            Process::start(self, self.imports.take(), &request).map_err(into_verdict)?;
        let socket = process.socket().map_err(into_verdict)?;
        // One byte more than allowed, so that the reader sees that the archive is too large.
        let mut archive = archive.take(limits.archive.saturating_add(1));
        std::thread::scope(|scope| {
            let feeder = scope.spawn(move || feed(&mut archive, &socket));
            let result = receive(&mut process, limits, store);
            // The thread stops at its next write.
            process.close();
            let fed =
                feeder.join().unwrap_or_else(|_| Err(io::Error::other("the feeder panicked")));
            match (fed, result) {
                // A broken archive is the cause of whatever the reader says about it.
                (Err(error), Err(_)) => Err(error.into()),
                (_, result) => result,
            }
        })
    }
}

/// Passes an archive to a reader. If the archive cannot be read, the connection ends without a
/// verdict.
///
/// # Errors
/// The errors of `archive`. If the reader takes no more, its answer tells why.
fn feed(archive: &mut impl Read, mut socket: &UnixStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match archive.read(&mut chunk) {
            Ok(0) => {
                let _ = socket.shutdown(Shutdown::Write);
                return Ok(());
            }
            Ok(n) => match io::Write::write_all(&mut socket, &chunk[..n]) {
                Ok(()) => {}
                Err(error) if is_timeout(&error) => {
                    let _ = socket.shutdown(Shutdown::Both);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = socket.shutdown(Shutdown::Both);
                return Err(error);
            }
        }
    }
}

fn receive(
    process: &mut Process<'_>,
    limits: &Limits,
    mut store: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), OciError>,
) -> Result<Vec<String>, OciError> {
    let mut digests = Vec::new();
    let mut left = limits.archive;
    loop {
        match process.answer().map_err(into_verdict)? {
            Answer::Blob { digest, size } => {
                left = left.checked_sub(size).ok_or_else(|| invalid("its blobs are too large"))?;
                if !oci::is_digest(&digest) || digests.len() >= limits.members {
                    return Err(invalid("it lists a blob without a digest, or too many"));
                }
                let mut blob = BlobReader { process, left: size, data: Vec::new(), offset: 0 };
                store(&digest, size, &mut blob)?;
                // The store need not read a blob that it has.
                io::copy(&mut blob, &mut io::sink())?;
                digests.push(digest);
            }
            Answer::Imported(Ok(())) => return Ok(digests),
            Answer::Imported(Err(rejection)) => return Err(rejection.into()),
            _ => return Err(invalid("expected a blob of an archive")),
        }
    }
}

/// Content of one blob, as a reader sends it.
struct BlobReader<'a, 'b> {
    process: &'a mut Process<'b>,
    /// Bytes that the reader has not sent yet.
    left: u64,
    data: Vec<u8>,
    offset: usize,
}

impl BlobReader<'_, '_> {
    fn receive(&mut self) -> Result<(), OciError> {
        match self.process.receive().map_err(into_verdict)? {
            Frame::Data(data) if !data.is_empty() && data.len() as u64 <= self.left => {
                self.left -= data.len() as u64;
                self.data.clear();
                self.data.extend_from_slice(data);
                self.offset = 0;
                Ok(())
            }
            // The archive ends in the middle of the blob, or the blob does not match its digest.
            Frame::Message(Answer::Imported(Err(rejection))) => Err(rejection.into()),
            _ => Err(invalid("expected the content of a blob")),
        }
    }
}

impl Read for BlobReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.offset == self.data.len() {
            if self.left == 0 {
                return Ok(0);
            }
            self.receive()?;
        }
        let n = buffer.len().min(self.data.len() - self.offset);
        buffer[..n].copy_from_slice(&self.data[self.offset..self.offset + n]);
        self.offset += n;
        Ok(n)
    }
}

fn invalid(problem: &str) -> OciError {
    into_verdict(ReaderError::Answer(problem.to_owned()))
}

fn into_verdict(error: ReaderError) -> OciError {
    error.into_verdict(|problem| OciError::Archive { problem })
}
