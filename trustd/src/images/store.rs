//! Store of the blobs of images on the data partition, each under its digest.
//!
//! Invariants:
//! - A file below `blobs/` had the content of its digest when it was stored. Every reader verifies
//!   this again ([`oci::Checked`]), because the partition is not trusted between two reads.
//! - A pinned blob is never removed to make room, and nothing is written beyond the quota.
//! - A received blob survives a power cut only after [`Store::sync`]. Every promise of persistence
//!   needs a call of it. A blob that a power cut damages fails its verification and is fetched
//!   again.
//! - A partly received blob stays below `partial/`, and the next transfer resumes it. It is removed
//!   if its content turns out to be wrong.

mod error;
mod receive;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use oci::{Blobs, Checked, Image, Layer, LayerInfo, Limits, OciError, Platform, Verified};

pub use self::error::StoreError;
use self::error::io_at;
use self::receive::copy_and_inspect;
use crate::reader::Readers;
use crate::util::atomic_file;
use crate::util::lock::lock;

/// Folder of complete blobs.
const BLOBS: &str = "blobs";
/// Folder of partly received blobs.
const PARTIAL: &str = "partial";
/// Images whose documents are not read again.
const MAX_KNOWN_IMAGES: usize = 32;
/// Largest size of manifest and config of such an image in bytes.
const MAX_KNOWN_IMAGE_BYTES: u64 = 128 << 10;

/// Blob store with a quota.
pub struct Store {
    dir: PathBuf,
    quota: u64,
    /// Limits of images and layers.
    pub limits: Limits,
    state: Mutex<State>,
    /// Held during [`Store::sync`].
    sync: Mutex<()>,
    /// Processes that unpack and parse the blobs.
    readers: Readers,
}

#[derive(Default)]
struct State {
    /// Results of unpacking layers, by digest. They hold for the digest and never expire.
    layer_info: BTreeMap<String, LayerInfo>,
    /// Images whose documents were read before, by the requested digest.
    images: BTreeMap<String, Image>,
    /// Digests that each holder needs.
    pins: BTreeMap<String, BTreeSet<String>>,
    /// Sizes of the blobs that are being received, by digest.
    reserved: BTreeMap<String, u64>,
    /// Blobs that may not be on the medium yet.
    unsynced: BTreeSet<PathBuf>,
}

/// File of the store that is not being written.
struct StoredFile {
    path: PathBuf,
    size: u64,
    modified: SystemTime,
    digest: String,
}

impl Store {
    /// Opens a store below `dir` and creates its folders. `quota` is in bytes.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Io`] if a folder cannot be created.
    pub fn open(
        dir: &Path,
        quota: u64,
        limits: Limits,
        readers: Readers,
    ) -> Result<Self, StoreError> {
        for folder in [BLOBS, PARTIAL] {
            let path = dir.join(folder);
            std::fs::create_dir_all(&path).map_err(io_at(&path))?;
        }
        let (state, sync) = (Mutex::default(), Mutex::default());
        Ok(Self { dir: dir.to_owned(), quota, limits, state, sync, readers })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn path(&self, folder: &str, digest: &str) -> io::Result<PathBuf> {
        if !oci::is_digest(digest) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("expected a digest, sha256: and 64 hex digits, found {digest:?}"),
            ));
        }
        Ok(self.dir.join(folder).join(&digest["sha256:".len()..]))
    }

    /// Replaces the digests that `holder` needs.
    pub fn pin(&self, holder: &str, digests: BTreeSet<String>) {
        let mut state = self.state();
        if digests.is_empty() {
            state.pins.remove(holder);
        } else {
            state.pins.insert(holder.to_owned(), digests);
        }
    }

    /// Removes all pins of the holders that `matches` selects.
    pub fn unpin(&self, matches: impl Fn(&str) -> bool) {
        self.state().pins.retain(|holder, _| !matches(holder));
    }

    /// Returns the size of a complete blob in bytes, or `None` if the store does not have it.
    pub fn size(&self, digest: &str) -> Option<u64> {
        Some(std::fs::metadata(self.path(BLOBS, digest).ok()?).ok()?.len())
    }

    /// Returns how many bytes of an incomplete blob the store has.
    pub fn partial_size(&self, digest: &str) -> u64 {
        self.path(PARTIAL, digest).and_then(std::fs::metadata).map_or(0, |m| m.len())
    }

    /// Removes a blob, complete or not, whose content is wrong.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Io`] if `digest` is no digest or a file cannot be removed.
    pub fn remove(&self, digest: &str) -> Result<(), StoreError> {
        self.state().layer_info.remove(digest);
        for folder in [BLOBS, PARTIAL] {
            let path = self.path(folder, digest).map_err(io_at(&self.dir))?;
            atomic_file::remove(&path).map_err(io_at(&path))?;
        }
        Ok(())
    }

    fn files(&self, state: &State) -> Result<Vec<StoredFile>, StoreError> {
        let mut files = Vec::new();
        for folder in [PARTIAL, BLOBS] {
            let dir = self.dir.join(folder);
            for entry in std::fs::read_dir(&dir).map_err(io_at(&dir))? {
                let entry = entry.map_err(io_at(&dir))?;
                // The file was completed or removed meanwhile.
                let Ok(metadata) = entry.metadata() else { continue };
                let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
                if !state.reserved.contains_key(&digest) {
                    files.push(StoredFile {
                        path: entry.path(),
                        size: metadata.len(),
                        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        digest,
                    });
                }
            }
        }
        Ok(files)
    }

    /// Reserves room for a blob. Removes blobs that are not pinned, the oldest first, until it
    /// fits.
    fn reserve(&self, digest: &str, size: u64) -> Result<Reservation<'_>, StoreError> {
        let mut state = self.state();
        if state.reserved.contains_key(digest) {
            let error =
                io::Error::new(io::ErrorKind::ResourceBusy, "the blob is already being received");
            return Err(io_at(&self.dir.join(digest))(error));
        }
        let mut files = self.files(&state)?;
        files.retain(|file| file.digest != digest);
        let reserved: u64 = state.reserved.values().sum();
        let mut used = reserved + files.iter().map(|file| file.size).sum::<u64>() + size;
        files.sort_by_key(|file| file.modified);
        for file in files {
            if used <= self.quota {
                break;
            }
            if !state.pins.values().any(|pinned| pinned.contains(&file.digest)) {
                match atomic_file::remove(&file.path) {
                    Ok(()) => used -= file.size,
                    Err(error) => logging::warn!(
                        "cannot remove {} to make room: {error}",
                        file.path.display()
                    ),
                }
                state.layer_info.remove(&file.digest);
            }
        }
        if used > self.quota {
            return Err(StoreError::Quota { needed: size, used: used - size, quota: self.quota });
        }
        state.reserved.insert(digest.to_owned(), size);
        // The drop of a reservation locks the state, so the lock is released before there is one.
        drop(state);
        Ok(Reservation { store: self, digest: digest.to_owned() })
    }

    /// Receives a blob. `content` supplies the bytes from `start` on, which must be either 0 or
    /// [`Store::partial_size`].
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Oci`] if the content does not match digest or size or exceeds a limit,
    /// after the partial blob was removed. Returns [`StoreError::Quota`] if it does not fit, and
    /// [`StoreError::Io`] if `content` or the storage fails. The partial blob stays in this case.
    pub fn receive(
        &self,
        digest: &str,
        size: u64,
        start: u64,
        content: impl Read,
    ) -> Result<(), StoreError> {
        let path = self.path(PARTIAL, digest).map_err(io_at(&self.dir))?;
        let failed = |source: io::Error| match OciError::from(source) {
            OciError::Io(source) => io_at(&path)(source),
            rejection => StoreError::Oci(rejection),
        };
        let _reservation = self.reserve(digest, size)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(start == 0)
            .open(&path)
            .map_err(failed)?;
        let partial = file.try_clone().map_err(failed)?.take(start);
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let checked = Checked::new(partial.chain(content), digest, size);
        match copy_and_inspect(checked, &mut file, start, &self.readers, &self.limits) {
            Ok(layer_info) => {
                let complete = self.path(BLOBS, digest).map_err(failed)?;
                std::fs::rename(&path, &complete).map_err(failed)?;
                let mut state = self.state();
                if let Some(layer_info) = layer_info {
                    state.layer_info.insert(digest.to_owned(), layer_info);
                }
                state.unsynced.insert(complete);
                Ok(())
            }
            Err(error) => {
                let error = failed(error);
                // Wrong content must not be resumed.
                if matches!(error, StoreError::Oci(_)) {
                    drop(file);
                    atomic_file::remove(&path).map_err(failed)?;
                }
                Err(error)
            }
        }
    }

    /// Writes all received blobs to the medium.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Io`] if a blob cannot be synced. The next call tries it again.
    pub fn sync(&self) -> Result<(), StoreError> {
        // Another call may have taken blobs that it has not synced yet, so this one waits for it.
        let _sync = lock(&self.sync);
        let unsynced = std::mem::take(&mut self.state().unsynced);
        for path in &unsynced {
            let synced = match File::open(path) {
                // The blob was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                opened => opened.and_then(|file| file.sync_all()),
            };
            if let Err(error) = synced {
                let error = io_at(path)(error);
                self.state().unsynced.extend(unsynced);
                return Err(error);
            }
        }
        match unsynced.first() {
            Some(path) => atomic_file::sync_folder(path).map_err(io_at(path)),
            None => Ok(()),
        }
    }

    /// Stores the blobs of an archive and verifies their digests. Returns the digests.
    ///
    /// # Errors
    ///
    /// Returns the reason if the archive is rejected, and [`OciError::Io`] if the archive or the
    /// storage fails or the store is full.
    pub fn import(&self, archive: &mut (impl Read + Send)) -> Result<Vec<String>, OciError> {
        self.readers.import(archive, &self.limits, |digest, size, content| {
            // This process has verified the blob before.
            if self.size(digest) == Some(size) && self.state().layer_info.contains_key(digest) {
                return Ok(());
            }
            self.receive(digest, size, 0, content).map_err(|error| match error {
                StoreError::Io { source, .. } => OciError::Io(source),
                StoreError::Oci(rejection) => rejection,
                full @ StoreError::Quota { .. } => {
                    OciError::Io(io::Error::new(io::ErrorKind::QuotaExceeded, full))
                }
            })
        })
    }

    /// Reads and verifies the documents of an image.
    ///
    /// # Errors
    ///
    /// Returns [`OciError::Absent`] with the digest of the next document that is missing, another
    /// [`OciError`] if the image is rejected, and [`OciError::Io`] if there is no verdict.
    pub fn resolve(&self, digest: &str, platform: &Platform) -> Result<Image, OciError> {
        let known = self.state().images.get(digest).cloned();
        if let Some(image) = known
            && image.platform == *platform
            && self.has_documents(&image)
        {
            return Ok(image);
        }
        let image = self.readers.resolve(self, digest, platform, &self.limits)?;
        let size: u64 = image.blobs().take(2).map(|(_, size)| size).sum();
        if size <= MAX_KNOWN_IMAGE_BYTES {
            let mut state = self.state();
            if state.images.len() >= MAX_KNOWN_IMAGES {
                state.images.pop_first();
            }
            state.images.insert(digest.to_owned(), image.clone());
        }
        Ok(image)
    }

    /// Reports whether the store still has the documents of an image, with the right content.
    fn has_documents(&self, image: &Image) -> bool {
        let has = |digest: &String| {
            let Ok(Some((size, content))) = self.blob(digest) else { return false };
            let mut checked = Checked::new(content, digest, size);
            size <= self.limits.json && io::copy(&mut checked, &mut io::sink()).is_ok()
        };
        [&image.asked, &image.digest, &image.config_digest].into_iter().all(has)
    }

    /// Verifies all layers of an image: digests, sizes, and their unpacked form.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Oci`] for the first layer that is missing or not what manifest and
    /// config say, or if the layers together exceed a limit.
    pub fn verify(&self, image: Image) -> Result<Verified, StoreError> {
        Ok(image.verify_layers(&self.limits, |layer| self.inspect(layer))?)
    }

    /// Verifies one layer. The image may still have other problems.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Oci`] if the layer is missing or not what manifest and config say.
    pub fn verify_layer(&self, layer: &Layer) -> Result<(), StoreError> {
        Ok(layer.check(&self.inspect(layer)?)?)
    }

    /// Unpacks a layer, unless this process has done so before.
    fn inspect(&self, layer: &Layer) -> Result<LayerInfo, OciError> {
        if let Some(layer_info) = self.state().layer_info.get(&layer.digest) {
            return Ok(layer_info.clone());
        }
        let absent = || OciError::Absent {
            what: "the layer",
            digest: layer.digest.clone(),
            size: Some(layer.size),
        };
        let (size, content) = self.blob(&layer.digest)?.ok_or_else(absent)?;
        if size != layer.size {
            let (expected, found) = (format!("{} bytes", layer.size), format!("{size} bytes"));
            return Err(OciError::Mismatch {
                what: "the blob",
                digest: layer.digest.clone(),
                expected,
                found,
            });
        }
        let checked = Checked::new(content, &layer.digest, size);
        let inspected = self.readers.inspect(checked, &self.limits);
        let layer_info = inspected.map_err(|error| error.in_layer(&layer.digest))?;
        self.state().layer_info.insert(layer.digest.clone(), layer_info.clone());
        Ok(layer_info)
    }
}

/// Room for a blob that is being received. Its drop releases the room.
struct Reservation<'a> {
    store: &'a Store,
    digest: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.store.state().reserved.remove(&self.digest);
    }
}

impl Blobs for Store {
    type Blob = File;

    fn blob(&self, digest: &str) -> io::Result<Option<(u64, File)>> {
        match File::open(self.path(BLOBS, digest)?) {
            Ok(file) => Ok(Some((file.metadata()?.len(), file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
