//! The download cache: files, addressed by their SHA-256.
//!
//! Invariant: the name of each file under `blobs/` is its hash. A download is written to `tmp/`,
//! verified, then renamed.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::engine::lock::{Lock, Package};
use crate::engine::progress::Task;
use crate::engine::{cache, hash, mirror, paths, progress};

/// Number of concurrent downloads.
const MAX_CONCURRENT_FETCHES: usize = 6;
/// Attempts for each mirror, for connections that fail.
const MAX_ATTEMPTS: u32 = 3;

/// Returns the path of a file in the download cache, which may not exist.
///
/// # Errors
///
/// Fails if the environment defines no cache folder.
pub fn blob(sha256: &str) -> Result<PathBuf> {
    Ok(paths::cache()?.join("blobs").join(sha256))
}

/// Reason why a file was not fetched.
enum FetchError {
    /// The mirror answered, but no longer has this version.
    Gone,
    /// The mirror cannot be reached, its content is wrong, or the file cannot be written.
    Other(anyhow::Error),
}

/// Fetches all packages of a lock that are not in the cache. Returns the packages that no longer
/// exist on any mirror.
///
/// # Errors
///
/// Fails if a package cannot be fetched for another reason. Packages that were fetched before stay
/// in the cache.
pub fn packages(lock: &Lock, set: &str) -> Result<Vec<Package>> {
    let mut missing = Vec::new();
    for package in &lock.package {
        if !blob(&package.sha256)?.exists() {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    std::fs::create_dir_all(paths::cache()?.join("blobs"))?;
    let total: u64 = missing.iter().map(|p| p.size).sum();
    let task = Task::begin(
        "fetch",
        &format!("{set}: {} packages, {}", missing.len(), progress::size(total)),
    );
    task.bytes(total);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(1800)))
        .http_status_as_error(false)
        .build()
        .into();
    let (next, gone, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..MAX_CONCURRENT_FETCHES.min(missing.len()) {
            scope.spawn(|| {
                while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if lock_poisoned_ok(&failed).is_some() {
                        return;
                    }
                    task.message(&package.name);
                    match fetch_one(&agent, package, &task) {
                        Ok(()) => {}
                        Err(FetchError::Gone) => lock_poisoned_ok(&gone).push((*package).clone()),
                        Err(FetchError::Other(error)) => *lock_poisoned_ok(&failed) = Some(error),
                    }
                }
            });
        }
    });
    if let Some(error) = lock_poisoned_ok(&failed).take() {
        return Err(error);
    }
    let gone = std::mem::take(&mut *lock_poisoned_ok(&gone));
    task.done(&format!(
        "{set}: {} of {} packages, {}",
        missing.len() - gone.len(),
        missing.len(),
        progress::size(total)
    ));
    Ok(gone)
}

/// Locks a mutex, even if another thread panicked while it had the lock.
fn lock_poisoned_ok<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Fetches a package from the first mirror that has it.
fn fetch_one(agent: &ureq::Agent, package: &Package, task: &Task) -> Result<(), FetchError> {
    let bases = mirror::bases(&package.archive).map_err(FetchError::Other)?;
    let mut last = FetchError::Gone;
    for base in &bases {
        let url = format!("{base}/{}", package.path);
        for attempt in 0..MAX_ATTEMPTS {
            match download(agent, &url, package, task) {
                Ok(()) => return Ok(()),
                // The package is gone only if every mirror reports it: a mirror that cannot be
                // reached may still have it.
                Err(FetchError::Gone) => break,
                Err(other) => last = other,
            }
            std::thread::sleep(Duration::from_secs(1 << attempt));
        }
    }
    Err(last)
}

/// Downloads a package from one URL into the cache.
fn download(
    agent: &ureq::Agent,
    url: &str,
    package: &Package,
    task: &Task,
) -> Result<(), FetchError> {
    let other = |error: anyhow::Error| {
        FetchError::Other(error.context(format!(
            "cannot download {} {} from {url}; run the command again (complete downloads remain in \
             the cache)",
            package.name, package.version
        )))
    };
    let mut response = agent.get(url).call().map_err(|e| other(e.into()))?;
    match response.status().as_u16() {
        200 => {}
        404 | 410 => return Err(FetchError::Gone),
        status => {
            return Err(other(anyhow::anyhow!("HTTP status: expected 200, found {status}")));
        }
    }
    let target = blob(&package.sha256).map_err(other)?;
    let scratch = paths::cache().map_err(other)?.join("tmp");
    save_to(
        &mut response.body_mut().as_reader(),
        &scratch,
        &target,
        &package.sha256,
        package.size,
        task,
    )
    .map_err(other)
}

/// Copies a stream to a path in the cache if it has the expected hash and size.
///
/// The stream is first written to the folder `scratch`, which the next build empties even if this
/// one is interrupted.
fn save_to(
    from: &mut dyn std::io::Read,
    scratch: &Path,
    target: &Path,
    sha256: &str,
    size: u64,
    task: &Task,
) -> Result<()> {
    let mut temporary = tempfile::NamedTempFile::new_in(scratch).context(cache::DISK_FULL)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    // One byte more than expected is enough to detect a stream that is too long.
    let mut from = from.take(size + 1);
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        temporary.write_all(&buffer[..n]).context(cache::DISK_FULL)?;
        length += n as u64;
        task.advance(n as u64);
    }
    if length != size {
        bail!("expected {size} bytes, found {length}");
    }
    let found = hash::hex(&hasher.finalize());
    if found != sha256 {
        bail!(
            "wrong content: expected SHA-256 {sha256}, found {found}; the mirror or a proxy \
             altered the file, which was not stored"
        );
    }
    temporary.as_file().sync_all()?;
    temporary.persist(target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_count(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn only_matching_content_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let task = Task::begin("test", "");
        let expected = hash::bytes(b"content");
        let save = |data: &[u8], size| {
            save_to(&mut &data[..], dir.path(), &dir.path().join(&expected), &expected, size, &task)
        };
        for (data, size, message) in [
            (&b"Content"[..], 7, "wrong content"),
            (b"conten", 7, "found 6"),
            (b"content and more", 7, "found 8"),
            (b"", 7, "found 0"),
        ] {
            let error = save(data, size).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert_eq!(file_count(dir.path()), 0, "no partial download may remain");
        }
        save(b"content", 7).unwrap();
        assert_eq!(std::fs::read(dir.path().join(&expected)).unwrap(), b"content");
    }

    #[test]
    fn interrupted_downloads_leave_no_file() {
        /// A connection that is reset after this number of reads.
        struct ResetConnection(usize);
        impl std::io::Read for ResetConnection {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                if self.0 == 0 {
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
                self.0 -= 1;
                buffer.fill(7);
                Ok(buffer.len())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        assert!(
            save_to(
                &mut ResetConnection(3),
                dir.path(),
                &target,
                &"0".repeat(64),
                1 << 20,
                &Task::begin("test", "")
            )
            .is_err()
        );
        assert_eq!(file_count(dir.path()), 0);
    }
}
