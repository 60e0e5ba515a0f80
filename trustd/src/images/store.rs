//! The blobs of images on the data partition, each under its digest.
//!
//! Invariants:
//! - A file under `blobs/` had the bytes of its name when it was put there. Whoever reads it checks
//!   that again (`oci::Checked`): the partition is not trusted between two readings.
//! - What is pinned is never removed to make room. Nothing is written beyond the quota.
//! - What was received is on the medium after [`Store::sync`], not before: whoever promises that it
//!   lasts calls that first. What a power cut spoils is found by the hash when it is read, and is
//!   fetched again.
//! - What was fetched in part stays under `partial/` and is gone on with, unless it turned out to
//!   be something else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::{Blobs, Checked, Facts, Image, Layer, Limits, OciError, Sink, Verified};

use crate::util::atomic_file;

const CHUNK: usize = 1 << 17;
/// Chunks between the thread that hashes and the one that unpacks.
const AHEAD: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the store is full: {needed} more bytes are needed, {used} of {quota} are taken by images that run or could be rolled back to; \
         raise store.quota-mib in node.toml, or remove a module"
    )]
    Quota { needed: u64, used: u64, quota: u64 },
    #[error(transparent)]
    Oci(#[from] OciError),
}

pub struct Store {
    dir: PathBuf,
    quota: u64,
    pub limits: Limits,
    state: Mutex<State>,
    syncing: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// What unpacking a layer showed; true of its digest for ever.
    facts: BTreeMap<String, Facts>,
    /// By whom a blob is needed.
    pins: BTreeMap<String, BTreeSet<String>>,
    /// Being written now.
    writing: BTreeMap<String, u64>,
    /// Perhaps not on the medium yet.
    unsynced: BTreeSet<PathBuf>,
}

impl Store {
    pub fn open(dir: &Path, quota: u64, limits: Limits) -> Result<Self, StoreError> {
        for sub in ["blobs", "partial"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).map_err(|source| StoreError::Io { path, source })?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            quota,
            limits,
            state: Mutex::default(),
            syncing: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, folder: &str, digest: &str) -> io::Result<PathBuf> {
        if !oci::is_digest(digest) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{digest:?} is not a digest"),
            ));
        }
        Ok(self.dir.join(folder).join(&digest["sha256:".len()..]))
    }

    /// Says which blobs somebody needs, in place of those before.
    pub fn pin(&self, who: &str, digests: BTreeSet<String>) {
        let mut state = self.state();
        if digests.is_empty() {
            state.pins.remove(who);
        } else {
            state.pins.insert(who.to_owned(), digests);
        }
    }

    /// Those for which this holds need nothing any more.
    pub fn unpin(&self, whose: impl Fn(&str) -> bool) {
        self.state().pins.retain(|who, _| !whose(who));
    }

    /// The size of a blob that is there, whole.
    pub fn size(&self, digest: &str) -> Option<u64> {
        Some(std::fs::metadata(self.path("blobs", digest).ok()?).ok()?.len())
    }

    /// How much of a blob was received before.
    pub fn partial(&self, digest: &str) -> u64 {
        self.path("partial", digest).and_then(std::fs::metadata).map_or(0, |m| m.len())
    }

    /// Takes a blob away, whole or in part: it is not what it should be.
    pub fn remove(&self, digest: &str) -> Result<(), StoreError> {
        self.state().facts.remove(digest);
        for folder in ["blobs", "partial"] {
            let path = self
                .path(folder, digest)
                .map_err(|source| StoreError::Io { path: self.dir.clone(), source })?;
            atomic_file::remove(&path).map_err(|source| StoreError::Io { path, source })?;
        }
        Ok(())
    }

    /// Path, size, age and digest of everything that is not being written.
    fn list(
        &self,
        state: &State,
    ) -> Result<Vec<(PathBuf, u64, std::time::SystemTime, String)>, StoreError> {
        let mut list = Vec::new();
        for folder in ["partial", "blobs"] {
            let dir = self.dir.join(folder);
            let failed = |source| StoreError::Io { path: dir.clone(), source };
            for entry in std::fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                // What was finished or removed meanwhile is not there any more.
                let Ok(metadata) = entry.metadata() else { continue };
                let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
                if !state.writing.contains_key(&digest) {
                    list.push((
                        entry.path(),
                        metadata.len(),
                        metadata.modified().unwrap_or(std::time::UNIX_EPOCH),
                        digest,
                    ));
                }
            }
        }
        Ok(list)
    }

    /// Announces a blob: makes room for it, so that nothing else takes the place meanwhile.
    fn reserve(&self, digest: &str, size: u64) -> Result<Writing<'_>, StoreError> {
        let mut state = self.state();
        if state.writing.contains_key(digest) {
            let source =
                io::Error::new(io::ErrorKind::ResourceBusy, "it is being received already");
            return Err(StoreError::Io { path: self.dir.join(digest), source });
        }
        let mut list = self.list(&state)?;
        list.retain(|(.., other)| other != digest);
        let announced: u64 = state.writing.values().sum();
        let mut used = announced + list.iter().map(|(_, size, ..)| size).sum::<u64>() + size;
        // What nobody needs goes first, the oldest before the others.
        list.sort_by_key(|(_, _, modified, _)| *modified);
        for (path, size, _, digest) in list {
            if used <= self.quota {
                break;
            }
            if !state.pins.values().any(|pinned| pinned.contains(&digest)) {
                match atomic_file::remove(&path) {
                    Ok(()) => used -= size,
                    Err(error) => println!(
                        "store: {} cannot be removed to make room: {error}",
                        path.display()
                    ),
                }
                state.facts.remove(&digest);
            }
        }
        if used > self.quota {
            return Err(StoreError::Quota { needed: size, used: used - size, quota: self.quota });
        }
        // Last, and with the lock still held: what undoes it takes the lock.
        state.writing.insert(digest.to_owned(), size);
        drop(state);
        Ok(Writing { store: self, digest: digest.to_owned() })
    }

    /// Receives a blob. `content` gives the bytes from `start` on, which must be where
    /// [`Store::partial`] ends, or 0.
    pub fn receive(
        &self,
        digest: &str,
        size: u64,
        start: u64,
        content: impl Read,
    ) -> Result<(), StoreError> {
        let path = self
            .path("partial", digest)
            .map_err(|source| StoreError::Io { path: self.dir.clone(), source })?;
        let failed = |source: io::Error| match OciError::from(source) {
            OciError::Io(source) => StoreError::Io { path: path.clone(), source },
            verdict => StoreError::Oci(verdict),
        };
        let _writing = self.reserve(digest, size)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(start == 0)
            .open(&path)
            .map_err(failed)?;
        let before = file.try_clone().map_err(failed)?.take(start);
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        match self.copy(Checked::new(before.chain(content), digest, size), &mut file, start) {
            Ok(facts) => {
                let whole = self.path("blobs", digest).map_err(failed)?;
                std::fs::rename(&path, &whole).map_err(failed)?;
                let mut state = self.state();
                if let Some(facts) = facts {
                    state.facts.insert(digest.to_owned(), facts);
                }
                state.unsynced.insert(whole);
                Ok(())
            }
            Err(error) => {
                let error = failed(error);
                if matches!(error, StoreError::Oci(_)) {
                    // Not what was meant to come: of no use for going on.
                    drop(file);
                    atomic_file::remove(&path).map_err(failed)?;
                }
                Err(error)
            }
        }
    }

    /// Returns when everything that was received is on the medium.
    pub fn sync(&self) -> Result<(), StoreError> {
        // What another one has taken to sync is not on the medium before it is done.
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let unsynced = std::mem::take(&mut self.state().unsynced);
        for path in &unsynced {
            let synced = match File::open(path) {
                // It made room for another, or was not what it should be.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                opened => opened.and_then(|file| file.sync_all()),
            };
            if let Err(source) = synced {
                let path = path.clone();
                self.state().unsynced.extend(unsynced);
                return Err(StoreError::Io { path, source });
            }
        }
        match unsynced.first() {
            Some(path) => atomic_file::sync_folder(path)
                .map_err(|source| StoreError::Io { path: path.clone(), source }),
            None => Ok(()),
        }
    }

    /// Writes what is read, from `start` on, while another thread unpacks it.
    fn copy(&self, mut from: impl Read, file: &mut File, start: u64) -> io::Result<Option<Facts>> {
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Arc<[u8]>>(AHEAD);
        std::thread::scope(|scope| {
            let mut receiver = Some(receiver);
            let mut sender = Some(sender);
            let mut inspecting = None;
            loop {
                let n = from.read(&mut chunk)?;
                if n == 0 {
                    break;
                }
                if at == 0 && chunk[0] != b'{' {
                    // A layer, or something that is none, which is no error before an image wants
                    // it as one.
                    inspecting = receiver.take().map(|r| {
                        scope.spawn(move || {
                            oci::inspect(
                                Parts { receiver: r, part: [].into(), at: 0 },
                                &self.limits,
                            )
                        })
                    });
                }
                if inspecting.is_some()
                    && sender.as_ref().is_some_and(|s| s.send(chunk[..n].into()).is_err())
                {
                    // It has seen enough. A limit that was exceeded ends everything at once.
                    sender = None;
                    if let Some(Err(error @ OciError::Limit { .. })) =
                        inspecting.take().and_then(|i| i.join().ok())
                    {
                        return Err(error.into());
                    }
                }
                let new = start.saturating_sub(at).min(n as u64) as usize;
                if new < n {
                    file.seek(SeekFrom::Start(at + new as u64))?;
                    file.write_all(&chunk[new..n])?;
                } else {
                    // The next bytes come from where these did.
                    file.seek(SeekFrom::Start(at + n as u64))?;
                }
                at += n as u64;
            }
            drop(sender);
            Ok(inspecting.and_then(|i| i.join().ok()).and_then(Result::ok))
        })
    }

    /// Takes an image as verified if its layers are what they should be, and says what is not.
    pub fn verify(&self, image: Image) -> Result<Verified, StoreError> {
        Ok(image.judge(&self.limits, |layer| self.inspect(layer))?)
    }

    /// The same of one layer, which says nothing yet of the image.
    pub fn verify_layer(&self, layer: &Layer) -> Result<(), StoreError> {
        Ok(layer.judge(&self.inspect(layer)?)?)
    }

    fn inspect(&self, layer: &Layer) -> Result<Facts, OciError> {
        if let Some(facts) = self.state().facts.get(&layer.digest) {
            return Ok(facts.clone());
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
        let facts = inspected.map_err(|error| error.of(&layer.digest))?;
        self.state().facts.insert(layer.digest.clone(), facts.clone());
        Ok(facts)
    }
}

/// Frees what was announced.
struct Writing<'a> {
    store: &'a Store,
    digest: String,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.store.state().writing.remove(&self.digest);
    }
}

impl Blobs for Store {
    type Blob = File;

    fn blob(&self, digest: &str) -> io::Result<Option<(u64, File)>> {
        match File::open(self.path("blobs", digest)?) {
            Ok(file) => Ok(Some((file.metadata()?.len(), file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Sink for &Store {
    fn put(&mut self, digest: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        // Known to be good since this process saw its bytes.
        if self.size(digest) == Some(size) && self.state().facts.contains_key(digest) {
            return Ok(());
        }
        self.receive(digest, size, 0, content).map_err(|error| match error {
            StoreError::Io { source, .. } => source,
            StoreError::Oci(verdict) => verdict.into(),
            full @ StoreError::Quota { .. } => io::Error::new(io::ErrorKind::QuotaExceeded, full),
        })
    }
}

/// The parts that another thread sends, one after the other.
struct Parts {
    receiver: std::sync::mpsc::Receiver<Arc<[u8]>>,
    part: Arc<[u8]>,
    at: usize,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            match self.receiver.recv() {
                Ok(part) => (self.part, self.at) = (part, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.part.len() - self.at);
        buffer[..n].copy_from_slice(&self.part[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

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
    fn what_came_in_part_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 20);
        let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let digest = sha(&data);
        assert!(matches!(
            store.receive(&digest, 300_000, 0, Broken(&data[..200_000])),
            Err(StoreError::Io { .. })
        ));
        assert_eq!((store.partial(&digest), store.size(&digest)), (200_000, None));
        store.receive(&digest, 300_000, 200_000, &data[200_000..]).unwrap();
        assert_eq!((store.partial(&digest), store.size(&digest)), (0, Some(300_000)));
        assert_eq!(read(&store, &digest), data);
    }

    /// A connection that breaks.
    struct Broken<'a>(&'a [u8]);

    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                n => Ok(n),
            }
        }
    }

    #[test]
    fn what_is_something_else_leaves_nothing_behind() {
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
            assert_eq!((store.partial(&digest), store.size(&digest)), (0, None));
        }
        // What was received before counts too: a beginning that is not of this blob does not become
        // its beginning.
        assert!(store.receive(&digest, 4, 0, Broken(b"ev")).is_err());
        assert!(matches!(store.receive(&digest, 4, 2, &b"od"[..]), Err(StoreError::Oci(_))));
        assert_eq!(store.partial(&digest), 0);
    }

    #[test]
    fn room_is_made_of_what_nobody_needs() {
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
    fn a_bomb_ends_while_it_comes_in() {
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
    fn names_that_are_no_digests_reach_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1000);
        for name in ["../../etc/passwd", "sha256:../x", "", "sha256:AA"] {
            assert!(store.blob(name).is_err());
            assert!(store.receive(name, 1, 0, &b"x"[..]).is_err());
        }
    }
}
