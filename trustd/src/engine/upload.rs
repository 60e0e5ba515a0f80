//! Upload of one image archive into the engine, written layer by layer.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use oci::{Exporter, Image, Layer, OciError, Verified};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::Engine;
use super::error::{EngineError, io_other};
use super::types::image_tag;
use crate::images::store::{Store, StoreError};

/// Chunks between the thread that writes the archive and the connection to the engine.
const CHUNK_QUEUE_LEN: usize = 8;
const CHUNK_BYTES: usize = 1 << 17;

/// End of an archive: the documents that make an image of its layers.
pub(super) enum ArchiveEnd {
    /// Partial image, which is verified before its documents are written.
    Part(Image),
    /// The image itself.
    Image(Verified),
}

enum ArchivePiece {
    Layer(Layer),
    End(ArchiveEnd),
}

/// Archive that is being sent to the engine. If it is dropped, the engine gets an incomplete
/// archive, which is no image.
pub(super) struct ArchiveUpload {
    began: Instant,
    pieces: std::sync::mpsc::Sender<ArchivePiece>,
    packed_bytes: u64,
    task: JoinHandle<Result<(), EngineError>>,
}

impl ArchiveUpload {
    /// Begins an archive without the layers in `omitted`, which the engine has.
    pub(super) fn begin(
        engine: &Arc<Engine>,
        store: &Arc<Store>,
        omitted: BTreeSet<String>,
    ) -> Self {
        let (pieces, receiver) = std::sync::mpsc::channel();
        Self {
            began: Instant::now(),
            pieces,
            packed_bytes: 0,
            task: tokio::spawn(upload(engine.clone(), store.clone(), omitted, receiver)),
        }
    }

    /// Returns the time since the upload began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the packed size of all layers that were added.
    pub(super) fn packed_bytes(&self) -> u64 {
        self.packed_bytes
    }

    /// Adds a verified layer.
    pub(super) fn add_layer(&mut self, layer: &Layer) {
        self.packed_bytes = self.packed_bytes.saturating_add(layer.size);
        let _ = self.pieces.send(ArchivePiece::Layer(layer.clone()));
    }

    /// Ends the archive. The returned task ends when the engine has unpacked it.
    pub(super) fn finish(self, end: ArchiveEnd) -> JoinHandle<Result<(), EngineError>> {
        let _ = self.pieces.send(ArchivePiece::End(end));
        self.task
    }
}

/// Waits for the result of an upload, if there is one.
pub(super) async fn finished(
    upload: Option<JoinHandle<Result<(), EngineError>>>,
) -> Result<(), EngineError> {
    match upload {
        Some(task) => task.await.map_err(io_other)?,
        None => Ok(()),
    }
}

async fn upload(
    engine: Arc<Engine>,
    store: Arc<Store>,
    omitted: BTreeSet<String>,
    pieces: std::sync::mpsc::Receiver<ArchivePiece>,
) -> Result<(), EngineError> {
    let (sender, receiver) = mpsc::channel(CHUNK_QUEUE_LEN);
    // Blobs are verified again while they are written. If one has changed, the stream ends with an
    // error and the engine gets an incomplete archive.
    let writer = tokio::task::spawn_blocking(move || {
        let result = write_archive(&store, omitted, &pieces, ChannelWriter(sender.clone()));
        if result.is_err() {
            let error = io::Error::other("the image is not what was verified");
            let _ = sender.blocking_send(Err(error));
        }
        result
    });
    let body = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    let imported = engine.import_image(body).await;
    let written = writer.await.map_err(io_other)?;
    match (written, imported) {
        (Err(error), Ok(())) => Err(error.into()),
        // An error of the image explains more than the engine's error about an incomplete archive.
        (Err(error), Err(_)) if !matches!(error, OciError::Io(_)) => Err(error.into()),
        (_, imported) => imported,
    }
}

fn write_archive(
    store: &Store,
    omitted: BTreeSet<String>,
    pieces: &std::sync::mpsc::Receiver<ArchivePiece>,
    out: ChannelWriter,
) -> Result<(), OciError> {
    let mut exporter = Exporter::new(io::BufWriter::with_capacity(CHUNK_BYTES, out), omitted)?;
    loop {
        let image = match pieces.recv() {
            Ok(ArchivePiece::Layer(layer)) => {
                exporter.layer(store, &layer)?;
                continue;
            }
            Ok(ArchivePiece::End(ArchiveEnd::Image(image))) => image,
            Ok(ArchivePiece::End(ArchiveEnd::Part(part))) => {
                store.verify(part).map_err(|error| match error {
                    StoreError::Oci(error) => error,
                    error => io_other(error),
                })?
            }
            Err(_) => return Err(io_other("the load was cancelled")),
        };
        return Ok(exporter.finish(store, &image, &image_tag(&image.digest))?.flush()?);
    }
}

/// Sends the bytes that are written to it as chunks.
struct ChannelWriter(mpsc::Sender<io::Result<bytes::Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes::Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
