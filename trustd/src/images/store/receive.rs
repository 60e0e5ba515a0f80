//! Writing of a blob while another thread unpacks it, if it is a layer.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use oci::{LayerInfo, Limits, OciError};

const CHUNK_BYTES: usize = 1 << 17;
/// Chunks between the thread that hashes and the thread that unpacks.
const CHUNK_QUEUE_LEN: usize = 8;

/// Copies a blob to `file`, which already has the first `start` bytes. Returns what unpacking it
/// showed if it is a valid layer.
///
/// # Errors
///
/// Returns the errors of `from` and `file`, and [`OciError::Limit`] as an I/O error as soon as the
/// layer exceeds a limit.
pub(super) fn copy_and_inspect(
    mut from: impl Read,
    file: &mut File,
    start: u64,
    limits: &Limits,
) -> io::Result<Option<LayerInfo>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    std::thread::scope(|scope| {
        let mut inspector = None;
        loop {
            let n = from.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            // JSON documents begin with a brace. Anything else is inspected as a layer. That it is
            // none becomes an error only if an image uses it as a layer.
            if offset == 0 && chunk[0] != b'{' {
                inspector = Some(Inspector::spawn(scope, limits));
            }
            if let Some(inspector) = &mut inspector {
                inspector.send(&chunk[..n])?;
            }
            let known = start.saturating_sub(offset).min(n as u64) as usize;
            if known < n {
                file.seek(SeekFrom::Start(offset + known as u64))?;
                file.write_all(&chunk[known..n])?;
            } else {
                // `from` read these bytes from the same file: move past them.
                file.seek(SeekFrom::Start(offset + n as u64))?;
            }
            offset += n as u64;
        }
        Ok(inspector.and_then(Inspector::finish))
    })
}

/// Thread that unpacks a layer.
struct Inspector<'scope> {
    /// Gone once the thread needs no more chunks.
    chunks: Option<SyncSender<Arc<[u8]>>>,
    thread: Option<ScopedJoinHandle<'scope, Result<LayerInfo, OciError>>>,
}

impl<'scope> Inspector<'scope> {
    fn spawn<'env>(scope: &'scope Scope<'scope, 'env>, limits: &'env Limits) -> Self {
        let (sender, receiver) = sync_channel(CHUNK_QUEUE_LEN);
        let reader = ChunkQueueReader { receiver, chunk: [].into(), offset: 0 };
        let thread = scope.spawn(move || oci::inspect(reader, limits));
        Self { chunks: Some(sender), thread: Some(thread) }
    }

    /// Passes a chunk to the thread.
    fn send(&mut self, chunk: &[u8]) -> io::Result<()> {
        if self.chunks.as_ref().is_none_or(|chunks| chunks.send(chunk.into()).is_ok()) {
            return Ok(());
        }
        // The thread ended early. Only an exceeded limit ends the whole transfer.
        self.chunks = None;
        match self.thread.take().and_then(|thread| thread.join().ok()) {
            Some(Err(error @ OciError::Limit { .. })) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Option<LayerInfo> {
        drop(self.chunks.take());
        self.thread?.join().ok()?.ok()
    }
}

/// Reads the chunks that another thread sends.
struct ChunkQueueReader {
    receiver: Receiver<Arc<[u8]>>,
    chunk: Arc<[u8]>,
    offset: usize,
}

impl Read for ChunkQueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.offset == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => (self.chunk, self.offset) = (chunk, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.offset);
        buffer[..n].copy_from_slice(&self.chunk[self.offset..self.offset + n]);
        self.offset += n;
        Ok(n)
    }
}
