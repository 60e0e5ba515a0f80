//! Load of an image into the engine while its later layers still arrive.
//!
//! The engine unpacks nothing before it has an image. So it gets partial images: the first few
//! layers as an image of their own, then more, and finally the image itself, when the engine has
//! most of the layers already.
//!
//! Invariants:
//! - Each partial image is verified like any image, is in the inventory before the engine gets it,
//!   and has no program.
//! - One image is loaded at a time. A load holds the [`LoadLock`] until the engine is done, even
//!   if its caller gave up. An image of the inventory is removed, from the engine and from the
//!   inventory, only under this lock.
//! - A load that started early and receives no more layers releases the lock. It never makes
//!   another image wait for a slow registry.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oci::{Image, OciError, Verified};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::client::Engine;
use super::error::{EngineError, io_other};
use super::upload::{ArchiveEnd, ArchiveUpload, finished};
use crate::images::store::Store;
use crate::util::error_chain::error_chain;
use crate::util::failpoint::fail_point;
use crate::util::lock::lock;

/// Least packed size of a partial image. Each partial image costs the engine extra time.
const MIN_PART_BYTES: u64 = 24 << 20;
/// Time without a new layer after which an early load is cancelled.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest duration of one upload, well below the timeout of a request to the engine.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// Records an image, by its digest, before the engine gets it.
pub type ImageRecorder = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;
/// Lock that a load holds, so that one image is loaded at a time.
pub type LoadLock = Arc<tokio::sync::Mutex<()>>;

enum Command {
    /// The first layers of the image, as many as the number says, are verified.
    LayersVerified(Arc<Image>, usize),
    Finish(Verified),
}

/// Load that can begin before all layers of the image are verified. If it is dropped before
/// [`ImageLoad::finish`], the engine does not get the image.
pub struct ImageLoad {
    commands: mpsc::UnboundedSender<Command>,
    result: oneshot::Receiver<Result<(), EngineError>>,
    /// Number of verified layers that were reported so far.
    verified_layers: Mutex<usize>,
}

impl ImageLoad {
    /// Starts a task that waits for layers. The task takes `load_lock` when it needs the engine.
    pub fn new(
        engine: &Arc<Engine>,
        store: Arc<Store>,
        record_image: ImageRecorder,
        load_lock: LoadLock,
    ) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (reply, result) = oneshot::channel();
        let loader =
            Loader { engine: engine.clone(), store, record_image, load_lock, parts: Vec::new() };
        tokio::spawn(loader.run(receiver, reply));
        Self { commands, result, verified_layers: Mutex::default() }
    }

    /// Reports that the first `layers` layers of an image are verified. The engine gets them early
    /// unless it has the image.
    pub fn layers_verified(&self, image: &Arc<Image>, layers: usize) {
        let mut verified = lock(&self.verified_layers);
        if layers > *verified {
            *verified = layers;
            // `finish` reports an error if the task has ended.
            let _ = self.commands.send(Command::LayersVerified(image.clone(), layers));
        }
    }

    /// Loads the rest of the image and verifies that the engine has the image under its digest.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Image`] if a blob is not what was verified or cannot be read,
    /// [`EngineError::Request`] if the engine rejects the image, and [`EngineError::Mismatch`] if
    /// the engine does not have the image afterwards.
    pub async fn finish(self, image: Verified) -> Result<(), EngineError> {
        let Self { commands, result, .. } = self;
        let _ = commands.send(Command::Finish(image));
        let result = result.await.map_err(io_other)?;
        // The sender lives until here: the task takes a closed channel for a caller that gave up.
        drop(commands);
        result
    }
}

/// Task behind an [`ImageLoad`].
struct Loader {
    engine: Arc<Engine>,
    store: Arc<Store>,
    record_image: ImageRecorder,
    load_lock: LoadLock,
    /// Digests of partial images in the engine.
    parts: Vec<String>,
}

impl Loader {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        reply: oneshot::Sender<Result<(), EngineError>>,
    ) {
        let mut early: Option<EarlyLoad> = None;
        loop {
            let command = match &early {
                // An early load holds the lock, so it must not wait for long.
                Some(_) => tokio::time::timeout(IDLE_TIMEOUT, commands.recv()).await,
                None => Ok(commands.recv().await),
            };
            match command {
                // The caller gave up.
                Ok(Some(Command::LayersVerified(..))) if commands.is_closed() => {}
                Ok(Some(Command::LayersVerified(image, layers))) => {
                    if early.is_none() {
                        early = self.begin_early(&image).await;
                    }
                    if let Some(load) = &mut early
                        && let Err(error) = load.add_layers(&mut self, &image, layers).await
                    {
                        logging::warn!(
                            "partial load of {} failed, its layers are loaded with the image: {}",
                            image.digest,
                            error_chain(&error)
                        );
                        self.cancel(early.take()).await;
                    }
                }
                Ok(Some(Command::Finish(image))) => return self.finish(early, image, reply).await,
                Ok(None) => return self.cancel(early).await,
                Err(_) => self.cancel(early.take()).await,
            }
        }
    }

    /// Takes the lock for an early load. Returns `None` if another image is being loaded or the
    /// engine has the image.
    async fn begin_early(&self, image: &Image) -> Option<EarlyLoad> {
        let guard = self.load_lock.clone().try_lock_owned().ok()?;
        if self.engine.has_image(&image.digest).await {
            return None;
        }
        Some(EarlyLoad {
            guard,
            loaded: BTreeSet::new(),
            added_layers: 0,
            previous: None,
            current: None,
        })
    }

    async fn finish(
        mut self,
        early: Option<EarlyLoad>,
        image: Verified,
        reply: oneshot::Sender<Result<(), EngineError>>,
    ) {
        let (guard, upload) = match early {
            None => (self.load_lock.clone().lock_owned().await, None),
            Some(EarlyLoad { guard, loaded, previous, current, .. }) => {
                match finished(previous).await {
                    Ok(()) => {
                        let upload = current.unwrap_or_else(|| {
                            ArchiveUpload::begin(&self.engine, &self.store, loaded)
                        });
                        (guard, Some(upload))
                    }
                    Err(error) => {
                        logging::warn!(
                            "partial load of {} failed, it is loaded again as a whole: {}",
                            image.digest,
                            error_chain(&error)
                        );
                        (guard, None)
                    }
                }
            }
        };
        // The caller does not wait for the removal of partial images. The next load does.
        let _ = reply.send(self.load(upload, image).await);
        self.remove_parts().await;
        drop(guard);
    }

    /// Loads the image: what is missing after its partial images, or all of it.
    async fn load(
        &self,
        upload: Option<ArchiveUpload>,
        image: Verified,
    ) -> Result<(), EngineError> {
        let digest = image.digest.clone();
        if let Some(upload) = upload {
            match finished(Some(upload.finish(ArchiveEnd::Image(image.clone())))).await {
                Ok(()) if self.engine.has_image(&digest).await => return Ok(()),
                // The image itself is bad, so a second load would fail too.
                Err(EngineError::Image(error)) if !matches!(error, OciError::Io(_)) => {
                    return Err(error.into());
                }
                Err(error) => logging::warn!(
                    "load of {digest} after its partial images failed, it is loaded again as a \
                     whole: {}",
                    error_chain(&error)
                ),
                Ok(()) => logging::warn!(
                    "the engine does not have {digest} after its partial images, it is loaded \
                     again as a whole"
                ),
            }
            // The engine may have a part of the image under its tag.
            self.engine.remove_image(&digest).await?;
        }
        if self.engine.has_image(&digest).await {
            return Ok(());
        }
        let upload = ArchiveUpload::begin(&self.engine, &self.store, BTreeSet::new());
        if let Err(error) = finished(Some(upload.finish(ArchiveEnd::Image(image)))).await {
            self.engine.remove_image(&digest).await?;
            return Err(error);
        }
        if !self.engine.has_image(&digest).await {
            return Err(EngineError::Mismatch {
                what: "loaded image",
                expected: digest,
                found: "no such image".into(),
            });
        }
        Ok(())
    }

    async fn cancel(&mut self, early: Option<EarlyLoad>) {
        let Some(EarlyLoad { guard, previous, current, .. }) = early else { return };
        drop(current);
        // The lock is held until the engine is done.
        let _ = finished(previous).await;
        self.remove_parts().await;
        drop(guard);
    }

    /// Removes the partial images from the engine. The inventory keeps them until the reconcile
    /// loop finds that no module needs them.
    async fn remove_parts(&mut self) {
        for part in self.parts.drain(..) {
            if let Err(error) = self.engine.remove_image(&part).await {
                logging::warn!(
                    "cannot remove the partial image {part}, it is removed later: {}",
                    error_chain(&error)
                );
            }
        }
    }
}

/// Load that began before all layers were verified.
struct EarlyLoad {
    guard: OwnedMutexGuard<()>,
    /// Layers that the engine has from partial images.
    loaded: BTreeSet<String>,
    /// Number of layers, from the first on, that were added to partial images.
    added_layers: usize,
    /// Load of the previous partial image.
    previous: Option<JoinHandle<Result<(), EngineError>>>,
    /// Archive of the next partial image, or of the image itself.
    current: Option<ArchiveUpload>,
}

impl EarlyLoad {
    /// Adds layers to the current archive, and finishes it as a partial image when it is large
    /// enough.
    async fn add_layers(
        &mut self,
        loader: &mut Loader,
        image: &Image,
        layers: usize,
    ) -> Result<(), EngineError> {
        let upload = self.current.get_or_insert_with(|| {
            ArchiveUpload::begin(&loader.engine, &loader.store, self.loaded.clone())
        });
        if upload.elapsed() > UPLOAD_TIMEOUT {
            let problem = format!("the upload takes longer than {} s", UPLOAD_TIMEOUT.as_secs());
            return Err(io_other(problem).into());
        }
        for layer in image.layers.iter().take(layers).skip(self.added_layers) {
            upload.add_layer(layer);
        }
        self.added_layers = self.added_layers.max(layers);
        if self.added_layers < image.layers.len()
            && let Some(upload) = self.current.take_if(|u| u.packed_bytes() >= min_part_bytes())
        {
            // Each partial image builds on the previous one, which must be unpacked first.
            finished(self.previous.take()).await?;
            let added = image.layers.iter().take(self.added_layers);
            self.loaded.extend(added.map(|layer| layer.digest.clone()));
            let part = image.first_layers(self.added_layers);
            (loader.record_image)(&part.digest).map_err(OciError::Io)?;
            loader.parts.push(part.digest.clone());
            self.previous = Some(upload.finish(ArchiveEnd::Part(part)));
            fail_point("part");
        }
        Ok(())
    }
}

#[cfg(not(feature = "engine-tests"))]
fn min_part_bytes() -> u64 {
    MIN_PART_BYTES
}

/// Returns the limit that a test sets, because images of tests are small.
#[cfg(feature = "engine-tests")]
fn min_part_bytes() -> u64 {
    let limit = std::env::var("BASALT_MIN_PART_BYTES").ok();
    limit.and_then(|bytes| bytes.parse().ok()).unwrap_or(MIN_PART_BYTES)
}
