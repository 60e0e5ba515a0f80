//! Transfer of a blob from a response to the store.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc::Sender;

use super::budget::Budget;
use super::chunk_reader::ChunkReader;
use super::error::{AttemptError, HttpError};
use super::progress::ProgressCell;
use super::response::Response;
use crate::images::store::{Store, StoreError};
use crate::util::low_priority;

/// Blob and the part of it that the store has.
pub(super) struct Download<'a> {
    pub(super) digest: &'a str,
    /// Size in bytes.
    pub(super) size: u64,
    /// Bytes that the store has.
    pub(super) start: u64,
    /// Offset of the response's first byte, at most `start`. What the store has is skipped.
    pub(super) offset: u64,
    /// Offset of the end of the response: the size, or less for a part.
    pub(super) end: u64,
    pub(super) progress: &'a ProgressCell,
}

impl Download<'_> {
    /// Passes the response's body to a thread that verifies and stores it.
    pub(super) async fn receive(
        &self,
        store: &Arc<Store>,
        mut response: Response,
        budget: &mut Budget,
    ) -> Result<(), AttemptError> {
        let (sender, reader) = ChunkReader::channel();
        let storing = {
            let (store, digest) = (store.clone(), self.digest.to_owned());
            let (size, start) = (self.size, self.start);
            low_priority::run(move || store.receive(&digest, size, start, reader))
        };
        let transferred = self.transfer(&mut response, &sender, budget).await;
        drop(sender);
        let host = response.host.clone();
        let stored = storing
            .await
            .map_err(|error| HttpError::Broken { host: host.clone(), source: error.into() })?;
        match (stored, transferred) {
            (Ok(()), _) => Ok(()),
            (Err(StoreError::Oci(_)), Ok(())) if response.is_encoded() => {
                Err(HttpError::Encoded { host }.into())
            }
            (Err(StoreError::Oci(source)), Ok(())) => {
                Err(AttemptError::WrongContent { host, source })
            }
            (Err(_), Err(error)) => Err(error.into()),
            (Err(error), Ok(())) => Err(AttemptError::Store(error)),
        }
    }

    async fn transfer(
        &self,
        response: &mut Response,
        sender: &Sender<io::Result<Bytes>>,
        budget: &mut Budget,
    ) -> Result<(), HttpError> {
        let fail = async |message: &'static str, error| {
            let _ = sender.send(Err(io::Error::other(message))).await;
            Err(error)
        };
        let mut received = self.offset;
        loop {
            let mut chunk = match response.next_chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    // A body that ends too early is a broken transfer if it was a part of the blob,
                    // or if its end cannot be told from a broken connection.
                    if received < self.size && (self.end < self.size || !response.is_delimited()) {
                        let (host, size) = (response.host.clone(), self.size);
                        let error = HttpError::Truncated { host, received, size };
                        return fail("the transfer ended early", error).await;
                    }
                    let _ = sender.send(Ok(Bytes::new())).await;
                    return Ok(());
                }
                Err(error) => return fail("the connection broke", error).await,
            };
            if let Err(error) = budget.take_bytes(&response.host, chunk.len()) {
                return fail("the budget is used up", error).await;
            }
            let known = self.start.saturating_sub(received).min(chunk.len() as u64);
            received += chunk.len() as u64;
            chunk.advance(known as usize);
            if chunk.is_empty() {
                continue;
            }
            self.progress.set_received(self.digest, received.min(self.size));
            if sender.send(Ok(chunk)).await.is_err() {
                // The store ended the transfer and returns the reason.
                return Ok(());
            }
        }
    }
}
