//! Bridge from an asynchronous task that receives bytes to a thread that reads them.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Chunks between the network and the disk.
const CHUNK_QUEUE_LEN: usize = 16;

/// Reads the chunks that a task sends. An empty chunk marks the end. If the sender is dropped
/// without it, the reader fails.
pub struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
    ended: bool,
}

impl ChunkReader {
    /// Creates a reader and the sender of its chunks.
    pub fn channel() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(CHUNK_QUEUE_LEN);
        (sender, Self { receiver, chunk: Bytes::new(), ended: false })
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
            self.ended = self.chunk.is_empty();
        }
        let n = buffer.len().min(self.chunk.len());
        buffer[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}
