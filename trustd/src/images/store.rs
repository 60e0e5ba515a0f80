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

use oci::{Blobs, Checked, Image, Layer, LayerInfo, Limits, OciError, Sink, Verified};

pub use self::error::StoreError;
use self::error::io_at;
use self::receive::copy_and_inspect;
use crate::util::atomic_file;
use crate::util::lock::lock;

/// Folder of complete blobs.
const BLOBS: &str = "blobs";
/// Folder of partly received blobs.
const PARTIAL: &str = "partial";

/// Blob store with a quota.
pub struct Store {
    dir: PathBuf,
    quota: u64,
    /// Limits of images and layers.
    pub limits: Limits,
    state: Mutex<State>,
    /// Held during [`Store::sync`].
    sync: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Results of unpacking layers, by digest. They hold for the digest and never expire.
    layer_info: BTreeMap<String, LayerInfo>,
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
    pub fn open(dir: &Path, quota: u64, limits: Limits) -> Result<Self, StoreError> {
        for folder in [BLOBS, PARTIAL] {
            let path = dir.join(folder);
            std::fs::create_dir_all(&path).map_err(io_at(&path))?;
        }
        let (state, sync) = (Mutex::default(), Mutex::default());
        Ok(Self { dir: dir.to_owned(), quota, limits, state, sync })
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
        match copy_and_inspect(checked, &mut file, start, &self.limits) {
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
        let inspected = oci::inspect(Checked::new(content, &layer.digest, size), &self.limits);
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

impl Sink for &Store {
    fn put(&mut self, digest: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        // This process has verified the blob before.
        if self.size(digest) == Some(size) && self.state().layer_info.contains_key(digest) {
            return Ok(());
        }
        self.receive(digest, size, 0, content).map_err(|error| match error {
            StoreError::Io { source, .. } => source,
            StoreError::Oci(rejection) => rejection.into(),
            full @ StoreError::Quota { .. } => io::Error::new(io::ErrorKind::QuotaExceeded, full),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use sha2::{Digest as _, Sha256};

    use super::*;

    fn sha(data: &[u8]) -> String {
        format!("sha256:{}", measure::hex(&Sha256::digest(data)))
    }

    fn store(dir: &Path, quota: u64) -> Store {
        Store::open(dir, quota, Limits::default()).unwrap()
    }

    fn read(store: &Store, digest: &str) -> Vec<u8> {
        let (_, mut file) = store.blob(digest).unwrap().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_interrupted_transfer_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 20);
        let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let digest = sha(&data);
        assert!(matches!(
            store.receive(&digest, 300_000, 0, BrokenConnection(&data[..200_000])),
            Err(StoreError::Io { .. })
        ));
        assert_eq!((store.partial_size(&digest), store.size(&digest)), (200_000, None));
        store.receive(&digest, 300_000, 200_000, &data[200_000..]).unwrap();
        assert_eq!((store.partial_size(&digest), store.size(&digest)), (0, Some(300_000)));
        assert_eq!(read(&store, &digest), data);
    }

    /// Connection that breaks after these bytes.
    struct BrokenConnection<'a>(&'a [u8]);

    impl Read for BrokenConnection<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                n => Ok(n),
            }
        }
    }

    #[test]
    fn wrong_content_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 20);
        let digest = sha(b"good");
        for (size, bytes) in [(4, &b"evil"[..]), (4, b"goo"), (4, b"goods"), (5, b"good")] {
            assert!(
                matches!(
                    store.receive(&digest, size, 0, bytes),
                    Err(StoreError::Oci(OciError::Mismatch { .. }))
                ),
                "{bytes:?}"
            );
            assert_eq!((store.partial_size(&digest), store.size(&digest)), (0, None));
        }
        // The bytes of the first transfer are verified too.
        assert!(store.receive(&digest, 4, 0, BrokenConnection(b"ev")).is_err());
        assert!(matches!(store.receive(&digest, 4, 2, &b"od"[..]), Err(StoreError::Oci(_))));
        assert_eq!(store.partial_size(&digest), 0);
    }

    #[test]
    fn blobs_that_are_not_pinned_are_removed_to_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1000);
        let blob = |n: u8| vec![n; 400];
        let put = |n: u8| store.receive(&sha(&blob(n)), 400, 0, blob(n).as_slice());
        put(1).unwrap();
        put(2).unwrap();
        store.pin("m", [sha(&blob(1))].into());
        put(3).unwrap();
        assert_eq!([1, 2, 3].map(|n| store.size(&sha(&blob(n))).is_some()), [true, false, true]);
        store.pin("n", [sha(&blob(3))].into());
        let error = put(4).unwrap_err();
        assert!(
            matches!(error, StoreError::Quota { needed: 400, used: 800, quota: 1000 }),
            "{error}"
        );
        assert!(error.to_string().contains("quota-mib"));
        store.pin("m", BTreeSet::new());
        put(4).unwrap();
        assert_eq!(store.size(&sha(&blob(1))), None);
    }

    #[test]
    fn a_decompression_bomb_is_rejected_during_the_transfer() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { unpacked: 1 << 20, ..Limits::default() };
        let store = Store::open(dir.path(), 1 << 30, limits).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for _ in 0..512 {
            gz.write_all(&vec![0; 1 << 20]).unwrap();
        }
        let bomb = gz.finish().unwrap();
        let error = store.receive(&sha(&bomb), bomb.len() as u64, 0, bomb.as_slice()).unwrap_err();
        assert!(matches!(error, StoreError::Oci(OciError::Limit { .. })), "{error}");
    }

    #[test]
    fn names_that_are_not_digests_reach_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1000);
        for name in ["../../etc/passwd", "sha256:../x", "", "sha256:AA"] {
            assert!(store.blob(name).is_err());
            assert!(store.receive(name, 1, 0, &b"x"[..]).is_err());
        }
    }
}
