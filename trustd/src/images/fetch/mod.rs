//! Getting an image: from the store, and what is not there from a registry or an archive, until
//! every byte is verified.

mod http;
mod registry;
mod response;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use config::Source;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use oci::{Image, Layer, OciError, Platform, Verified};
use serde::Serialize;

pub use registry::{Chunks, Client, PATIENCE, RegistryError};
pub use response::HttpError;

use crate::images::store::{Store, StoreError};
use crate::util::low_priority;

/// Hears how many layers of an image are verified, from the first on.
pub type Ready<'a> = &'a (dyn Fn(&Arc<Image>, usize) + Sync);

/// So many layers are fetched beside each other.
const BESIDE: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("cannot read the archive {path}: {source}")]
    Archive { path: PathBuf, source: std::io::Error },
    #[error("the archive {path} is refused: {source}")]
    Refused { path: PathBuf, source: OciError },
    #[error(
        "{what} {digest} is not on this node, and the module's file names no registry; upload it: trustctl image push ARCHIVE"
    )]
    NoSource { what: &'static str, digest: String },
    #[error("a task ended: {0}")]
    Task(String),
}

impl FetchError {
    /// Whether trying again could help: nothing was found to be wrong with the image.
    pub fn passing(&self) -> bool {
        let storage = |error: &StoreError| !matches!(error, StoreError::Oci(verdict) if !matches!(verdict, OciError::Io(_)));
        match self {
            Self::Registry(RegistryError::Unreachable { .. }) | Self::Task(_) => true,
            Self::Registry(RegistryError::Store(error)) | Self::Store(error) => storage(error),
            Self::Refused { source, .. } => matches!(source, OciError::Io(_)),
            _ => false,
        }
    }
}

impl From<OciError> for FetchError {
    fn from(error: OciError) -> Self {
        Self::Store(error.into())
    }
}

/// How far the fetching of an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub layers: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    pub digest: String,
    pub size: u64,
    pub have: u64,
}

/// Progress that others look at while it changes.
#[derive(Debug, Clone, Default)]
pub struct Watched(Arc<Mutex<Progress>>);

impl Watched {
    pub fn look(&self) -> Progress {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, progress: Progress) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    fn have(&self, digest: &str, have: u64) {
        let mut progress = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in progress.layers.iter_mut().filter(|p| p.digest == digest) {
            part.have = have;
        }
    }
}

/// Gets images of one platform into a store.
#[derive(Clone)]
pub struct Fetcher {
    pub store: Arc<Store>,
    client: Client,
    platform: Platform,
}

impl Fetcher {
    pub fn new(store: Arc<Store>, client: Client, platform: Platform) -> Self {
        Self { store, client, platform }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The image that a module names, verified to the last byte. `who` needs its blobs from now on.
    /// `ready` is told again and again how many of the image's layers, from the first on, are
    /// verified.
    pub async fn get(
        &self,
        who: &str,
        source: &Source,
        watched: &Watched,
        ready: Ready<'_>,
    ) -> Result<Verified, FetchError> {
        let mut again = BTreeSet::new();
        let mut pins: BTreeSet<String> = [source.digest.clone()].into();
        loop {
            self.store.pin(who, pins.clone());
            let error = match self.attempt(&source.digest).await {
                Ok(image) => {
                    let image = Arc::new(image);
                    pins.extend(image.blobs().map(|(digest, _)| digest.to_owned()));
                    self.store.pin(who, pins.clone());
                    match self.layers(&image, source, watched, ready).await {
                        Ok(()) => match self.verify((*image).clone()).await {
                            Ok(verified) => return Ok(verified),
                            Err(error) => error,
                        },
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            // What the storage lost or spoilt is fetched once more; what comes spoilt from its
            // source is not.
            let FetchError::Store(StoreError::Oci(problem)) = error else { return Err(error) };
            let (what, digest, size) = match problem {
                OciError::Absent { what, digest, size } => (what, digest, size),
                OciError::Mismatch { what: "the blob", digest, .. }
                    if again.insert(digest.clone()) =>
                {
                    println!(
                        "store: {digest} on the data partition is not what its name says; it is removed"
                    );
                    self.store.remove(&digest)?;
                    continue;
                }
                other => return Err(other.into()),
            };
            pins.insert(digest.clone());
            self.bring(source, what, &digest, size, watched).await?;
        }
    }

    async fn attempt(&self, digest: &str) -> Result<Image, FetchError> {
        let (store, platform, digest) =
            (self.store.clone(), self.platform.clone(), digest.to_owned());
        blocking(move || Ok(oci::resolve(&*store, &digest, &platform, &store.limits)?)).await
    }

    async fn verify(&self, image: Image) -> Result<Verified, FetchError> {
        let store = self.store.clone();
        blocking(move || Ok(store.verify(image)?)).await
    }

    async fn layers(
        &self,
        image: &Arc<Image>,
        source: &Source,
        watched: &Watched,
        ready: Ready<'_>,
    ) -> Result<(), FetchError> {
        let have =
            |digest: &str| self.store.size(digest).unwrap_or_else(|| self.store.partial(digest));
        let parts = image.layers.iter().map(|l| Part {
            digest: l.digest.clone(),
            size: l.size,
            have: have(&l.digest),
        });
        watched.set(Progress { layers: parts.collect() });
        let missing: BTreeSet<&String> = image
            .layers
            .iter()
            .map(|l| &l.digest)
            .filter(|d| self.store.size(d).is_none())
            .collect();
        let mut seen = BTreeSet::new();
        let wanted = image.layers.iter().filter(|layer| seen.insert(&layer.digest));
        let mut each: VecDeque<BoxFuture<'_, _>> =
            wanted.map(|layer| self.layer(layer, source, watched).boxed()).collect();
        // The first comes alone: with it the engine has something to do. An archive brings all that
        // it has at once.
        let first: Vec<_> = each.pop_front().into_iter().collect();
        let beside = if source.archive.is_none() { BESIDE } else { 1 };
        let mut each = futures_util::stream::iter(first)
            .buffered(1)
            .chain(futures_util::stream::iter(each).buffered(beside));
        let (mut good, mut news) = (BTreeSet::new(), missing.is_empty());
        while let Some(layer) = each.next().await {
            let digest = &layer?.digest;
            good.insert(digest);
            // A registry that gives nothing must not have the engine unpack again and again what is
            // here.
            news |= missing.contains(digest);
            if news {
                ready(image, image.layers.iter().take_while(|l| good.contains(&l.digest)).count());
            }
        }
        Ok(())
    }

    async fn layer<'a>(
        &self,
        layer: &'a Layer,
        source: &Source,
        watched: &Watched,
    ) -> Result<&'a Layer, FetchError> {
        if self.store.size(&layer.digest).is_none() {
            self.bring(source, "the layer", &layer.digest, Some(layer.size), watched).await?;
        }
        let (store, known) = (self.store.clone(), layer.clone());
        low_priority::run(move || store.verify_layer(&known))
            .await
            .map_err(|e| FetchError::Task(e.to_string()))??;
        Ok(layer)
    }

    /// Brings one missing blob; from an archive, all that it has.
    async fn bring(
        &self,
        source: &Source,
        what: &'static str,
        digest: &str,
        size: Option<u64>,
        watched: &Watched,
    ) -> Result<(), FetchError> {
        if let Some(archive) = &source.archive {
            self.import(archive.into()).await?;
            if self.store.size(digest).is_none() {
                return Err(FetchError::NoSource { what, digest: digest.to_owned() });
            }
            return Ok(());
        }
        let Some(registry) = &source.registry else {
            return Err(FetchError::NoSource { what, digest: digest.to_owned() });
        };
        Ok(self
            .client
            .fetch(&self.store, registry, digest, size, what == "the manifest", watched)
            .await?)
    }

    async fn import(&self, path: PathBuf) -> Result<(), FetchError> {
        let store = self.store.clone();
        blocking(move || {
            let mut file = std::fs::File::open(&path)
                .map_err(|source| FetchError::Archive { path: path.clone(), source })?;
            let mut sink = &*store;
            oci::import(&mut file, &mut sink, &store.limits)
                .map_err(|source| FetchError::Refused { path, source })?;
            Ok(())
        })
        .await
    }

    /// Needs, of all names that begin so, exactly these: each a name and the digest of what it
    /// needs.
    pub fn keep(&self, prefix: &str, versions: &[(String, String)]) {
        let names: BTreeSet<&str> = versions.iter().map(|(name, _)| name.as_str()).collect();
        self.store.unpin(|who| who.starts_with(prefix) && !names.contains(who));
        for (who, digest) in versions {
            let mut pins: BTreeSet<String> = [digest.clone()].into();
            // As far as it is here; what is missing is pinned when it is fetched.
            if let Ok(image) =
                oci::resolve(&*self.store, digest, &self.platform, &self.store.limits)
            {
                pins.extend(image.blobs().map(|(digest, _)| digest.to_owned()));
            }
            self.store.pin(who, pins);
        }
    }

    /// Puts every blob of an archive that somebody sends into the store, to last.
    pub async fn upload(
        &self,
        mut archive: impl std::io::Read + Send + 'static,
    ) -> Result<Vec<String>, OciError> {
        let store = self.store.clone();
        let task = low_priority::run(move || {
            let blobs = oci::import(&mut archive, &mut &*store, &store.limits)?;
            store.sync().map_err(|error| match error {
                StoreError::Io { source, .. } => OciError::Io(source),
                other => OciError::Io(std::io::Error::other(other)),
            })?;
            Ok(blobs)
        });
        task.await.unwrap_or_else(|e| Err(OciError::Io(std::io::Error::other(e))))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(FetchError::Task(e.to_string())))
}
