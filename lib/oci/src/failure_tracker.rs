//! Tells failures of a stream from errors in its data.

use std::io;

/// Reader that records whether the underlying stream failed. If it did not, an I/O error of a
/// decoder is about the data.
pub(crate) struct FailureTracker<R> {
    from: R,
    pub(crate) failed: bool,
}

impl<R> FailureTracker<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, failed: false }
    }
}

impl<R: io::Read> io::Read for FailureTracker<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer);
        // An interrupted call is retried, so it is no failure.
        self.failed |= read.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        read
    }
}
