//! Transfer of a blob from a response to the store.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::chunk_reader::ChunkReader;
use super::error::{AttemptError, HttpError};
use super::progress::ProgressCell;
use super::response::Response;
use crate::images::store::{Store, StoreError};
use crate::util::low_priority;

/// Bytes that a transfer must deliver within the stall timeout, and after which a broken transfer
/// counts as progress.
pub(super) const MIN_PROGRESS_BYTES: u64 = 64 * 1024;

/// Blob and the part of it that the store has.
pub(super) struct Download<'a> {
    pub(super) digest: &'a str,
    /// Size in bytes.
    pub(super) size: u64,
    /// Offset of the response's first byte.
    pub(super) start: u64,
    pub(super) progress: &'a ProgressCell,
}

impl Download<'_> {
    /// Passes the response's body to a thread that verifies and stores it.
    pub(super) async fn receive(
        &self,
        store: &Arc<Store>,
        mut response: Response,
    ) -> Result<(), AttemptError> {
        let (sender, reader) = ChunkReader::channel();
        let storing = {
            let (store, digest) = (store.clone(), self.digest.to_owned());
            let (size, start) = (self.size, self.start);
            low_priority::run(move || store.receive(&digest, size, start, reader))
        };
        let transferred = self.transfer(&mut response, &sender).await;
        drop(sender);
        let host = response.host;
        let stored = storing
            .await
            .map_err(|error| HttpError::Broken { host: host.clone(), source: error.into() })?;
        match (stored, transferred) {
            (Ok(()), _) => Ok(()),
            (Err(_), Err(error)) => Err(error.into()),
            (Err(StoreError::Oci(source)), Ok(())) => {
                Err(AttemptError::WrongContent { host, source })
            }
            (Err(error), Ok(())) => Err(AttemptError::Store(error)),
        }
    }

    async fn transfer(
        &self,
        response: &mut Response,
        sender: &Sender<io::Result<Bytes>>,
    ) -> Result<(), HttpError> {
        let fail = async |message: &'static str, error| {
            let _ = sender.send(Err(io::Error::other(message))).await;
            Err(error)
        };
        let mut received = self.start;
        let (mut period_start, mut received_before) = (Instant::now(), received);
        loop {
            let chunk = match response.next_chunk().await {
                Ok(Some(chunk)) if chunk.is_empty() => continue,
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    let _ = sender.send(Ok(Bytes::new())).await;
                    return Ok(());
                }
                Err(error) => return fail("the connection broke", error).await,
            };
            received += chunk.len() as u64;
            if period_start.elapsed() > response.stall_timeout {
                // A transfer of a few bytes at a time would block the module for ever.
                if received < received_before + MIN_PROGRESS_BYTES {
                    return fail("the connection is too slow", response.stalled()).await;
                }
                (period_start, received_before) = (Instant::now(), received);
            }
            self.progress.set_received(self.digest, received.min(self.size));
            if sender.send(Ok(chunk)).await.is_err() {
                // The store ended the transfer and returns the reason.
                return Ok(());
            }
        }
    }
}
