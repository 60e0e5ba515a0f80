//! Fetching of an image: from the store, and for missing blobs from a registry or an archive.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use api::owner::{LayerProgress, Progress};
use config::ImageSource;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use oci::{Image, Layer, OciError, Platform, Verified};

use super::error::FetchError;
use super::progress::ProgressCell;
use super::registry::{BlobRequest, Content, RegistryClient};
use crate::images::store::{Store, StoreError};
use crate::util::low_priority;

/// Called with the number of layers of an image, from the first on, that are verified.
pub type LayersVerified<'a> = &'a (dyn Fn(&Arc<Image>, usize) + Sync);

/// Layers that are fetched concurrently.
const MAX_CONCURRENT_FETCHES: usize = 3;
/// Role of a manifest in the errors of `oci`.
const MANIFEST: &str = "the manifest";
/// Role of a blob with wrong content in the errors of `oci`.
const BLOB: &str = "the blob";

/// Fetches images of one platform into a store.
#[derive(Clone)]
pub struct Fetcher {
    /// Store of the blobs.
    pub store: Arc<Store>,
    client: RegistryClient,
    platform: Platform,
}

impl Fetcher {
    /// Creates a fetcher.
    pub fn new(store: Arc<Store>, client: RegistryClient, platform: Platform) -> Self {
        Self { store, client, platform }
    }

    /// Returns the client of the registries.
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// Fetches the image of a module and verifies all of its bytes. From now on `holder` pins the
    /// image's blobs. `layers_verified` is called whenever more layers are verified.
    ///
    /// # Errors
    ///
    /// Returns [`FetchError::Store`] if the image is rejected or the store fails,
    /// [`FetchError::Registry`] if a blob cannot be fetched, and [`FetchError::NoSource`] if a blob
    /// is missing and the module names no registry.
    pub async fn fetch(
        &self,
        holder: &str,
        source: &ImageSource,
        progress: &ProgressCell,
        layers_verified: LayersVerified<'_>,
    ) -> Result<Verified, FetchError> {
        let mut fetched_again = BTreeSet::new();
        let mut pins: BTreeSet<String> = [source.digest.clone()].into();
        loop {
            self.store.pin(holder, pins.clone());
            let error = match self.resolve(&source.digest).await {
                Ok(image) => {
                    let image = Arc::new(image);
                    pins.extend(image.blobs().map(|(digest, _)| digest.to_owned()));
                    self.store.pin(holder, pins.clone());
                    match self.fetch_layers(&image, source, progress, layers_verified).await {
                        Ok(()) => match self.verify((*image).clone()).await {
                            Ok(verified) => return Ok(verified),
                            Err(error) => error,
                        },
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            // A blob that the storage lost or damaged is fetched again. A blob that arrives damaged
            // from its source is not.
            let FetchError::Store(StoreError::Oci(error)) = error else { return Err(error) };
            let (what, digest, size) = match error {
                OciError::Absent { what, digest, size } => (what, digest, size),
                OciError::Mismatch { what: BLOB, digest, .. }
                    if fetched_again.insert(digest.clone()) =>
                {
                    logging::warn!(
                        "the blob {digest} on the data partition is damaged, it is removed and \
                         fetched again"
                    );
                    self.store.remove(&digest)?;
                    continue;
                }
                other => return Err(other.into()),
            };
            pins.insert(digest.clone());
            self.fetch_blob(source, what, &digest, size, progress).await?;
        }
    }

    async fn resolve(&self, digest: &str) -> Result<Image, FetchError> {
        let (store, platform, digest) =
            (self.store.clone(), self.platform.clone(), digest.to_owned());
        run_blocking(move || Ok(store.resolve(&digest, &platform)?)).await
    }

    async fn verify(&self, image: Image) -> Result<Verified, FetchError> {
        let store = self.store.clone();
        run_blocking(move || Ok(store.verify(image)?)).await
    }

    async fn fetch_layers(
        &self,
        image: &Arc<Image>,
        source: &ImageSource,
        progress: &ProgressCell,
        layers_verified: LayersVerified<'_>,
    ) -> Result<(), FetchError> {
        self.set_progress(image, progress);
        let missing: BTreeSet<&String> = image
            .layers
            .iter()
            .map(|layer| &layer.digest)
            .filter(|digest| self.store.size(digest).is_none())
            .collect();
        let mut seen = BTreeSet::new();
        let distinct = image.layers.iter().filter(|layer| seen.insert(&layer.digest));
        let mut fetches: VecDeque<BoxFuture<'_, _>> =
            distinct.map(|layer| self.fetch_layer(layer, source, progress).boxed()).collect();
        // The first layer is fetched alone, so that the engine can begin to unpack it. An archive
        // is imported as a whole, so concurrent fetches would import it several times.
        let first: Vec<_> = fetches.pop_front().into_iter().collect();
        let concurrency = if source.archive.is_none() { MAX_CONCURRENT_FETCHES } else { 1 };
        let mut fetches = futures_util::stream::iter(first)
            .buffered(1)
            .chain(futures_util::stream::iter(fetches).buffered(concurrency));
        // Layers that were in the store before are reported together with the first new one.
        // Otherwise the engine would unpack them at each retry while the registry delivers nothing.
        let (mut verified, mut any_new) = (BTreeSet::new(), missing.is_empty());
        while let Some(layer) = fetches.next().await {
            let digest = &layer?.digest;
            verified.insert(digest);
            any_new |= missing.contains(digest);
            if any_new {
                let prefix = image.layers.iter().take_while(|l| verified.contains(&l.digest));
                layers_verified(image, prefix.count());
            }
        }
        Ok(())
    }

    fn set_progress(&self, image: &Image, progress: &ProgressCell) {
        let received = |digest: &str| {
            self.store.size(digest).unwrap_or_else(|| self.store.partial_size(digest))
        };
        let layers = image.layers.iter().map(|layer| LayerProgress {
            digest: layer.digest.clone(),
            size: layer.size,
            received: received(&layer.digest),
        });
        progress.set(Progress { layers: layers.collect() });
    }

    async fn fetch_layer<'a>(
        &self,
        layer: &'a Layer,
        source: &ImageSource,
        progress: &ProgressCell,
    ) -> Result<&'a Layer, FetchError> {
        if self.store.size(&layer.digest).is_none() {
            let size = Some(layer.size);
            self.fetch_blob(source, "the layer", &layer.digest, size, progress).await?;
        }
        let (store, owned) = (self.store.clone(), layer.clone());
        low_priority::run(move || store.verify_layer(&owned))
            .await
            .map_err(|error| FetchError::Task(error.into()))??;
        Ok(layer)
    }

    /// Fetches one missing blob. From an archive, all of its blobs are imported.
    async fn fetch_blob(
        &self,
        source: &ImageSource,
        what: &'static str,
        digest: &str,
        size: Option<u64>,
        progress: &ProgressCell,
    ) -> Result<(), FetchError> {
        let no_source = || FetchError::NoSource { what, digest: digest.to_owned() };
        if let Some(archive) = &source.archive {
            self.import(archive.into()).await?;
            return if self.store.size(digest).is_some() { Ok(()) } else { Err(no_source()) };
        }
        let registry = source.registry.as_ref().ok_or_else(no_source)?;
        let content = if what == MANIFEST { Content::Manifest } else { Content::Blob { size } };
        let request = BlobRequest { registry, digest, content, progress };
        Ok(self.client.fetch(&self.store, &request).await?)
    }

    /// Imports an archive of the node's read-only root.
    async fn import(&self, path: PathBuf) -> Result<(), FetchError> {
        let store = self.store.clone();
        run_blocking(move || {
            let mut file = std::fs::File::open(&path)
                .map_err(|source| FetchError::Archive { path: path.clone(), source })?;
            store
                .import(&mut file)
                .map_err(|source| FetchError::RejectedArchive { path, source })?;
            Ok(())
        })
        .await
    }

    /// Replaces all pins whose holder begins with `prefix`. Each version is a holder and the digest
    /// of the image that it needs.
    pub fn pin_versions(&self, prefix: &str, versions: &[(String, String)]) {
        let holders: BTreeSet<&str> = versions.iter().map(|(name, _)| name.as_str()).collect();
        self.store.unpin(|holder| holder.starts_with(prefix) && !holders.contains(holder));
        for (holder, digest) in versions {
            let mut pins: BTreeSet<String> = [digest.clone()].into();
            // A blob that is missing is pinned when it is fetched.
            if let Ok(image) = self.store.resolve(digest, &self.platform) {
                pins.extend(image.blobs().map(|(digest, _)| digest.to_owned()));
            }
            self.store.pin(holder, pins);
        }
    }

    /// Stores all blobs of an archive and syncs them. Returns their digests.
    ///
    /// # Errors
    ///
    /// Returns the reason if the archive is rejected, and [`OciError::Io`] if the archive or the
    /// storage fails or the store is full.
    pub async fn upload(
        &self,
        mut archive: impl std::io::Read + Send + 'static,
    ) -> Result<Vec<String>, OciError> {
        let store = self.store.clone();
        let task = low_priority::run(move || {
            let blobs = store.import(&mut archive)?;
            store.sync().map_err(|error| match error {
                StoreError::Io { source, .. } => OciError::Io(source),
                other => OciError::Io(std::io::Error::other(other)),
            })?;
            Ok(blobs)
        });
        task.await.unwrap_or_else(|error| Err(OciError::Io(std::io::Error::other(error))))
    }
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let task = tokio::task::spawn_blocking(work);
    task.await.unwrap_or_else(|error| Err(FetchError::Task(error.into())))
}
