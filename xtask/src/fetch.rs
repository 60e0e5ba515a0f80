//! The download cache: files by their SHA-256.
//!
//! Invariant: a file under `blobs/` has the hash that is its name. It is written elsewhere,
//! checked, then renamed.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::lock::{Lock, Package};
use crate::progress::Task;
use crate::{mirror, paths, progress, store};

const PARALLEL: usize = 6;

pub fn blob(sha256: &str) -> Result<PathBuf> {
    Ok(paths::cache()?.join("blobs").join(sha256))
}

/// Why one file could not be had.
enum Failure {
    /// The mirror answered, but does not have this version any more.
    Gone,
    Other(anyhow::Error),
}

/// Fetches all packages of a lock that are not in the cache. `Ok(false)`: some versions are gone
/// from every mirror.
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
        for _ in 0..PARALLEL.min(missing.len()) {
            scope.spawn(|| {
                while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if lock_poisoned_ok(&failed).is_some() {
                        return;
                    }
                    task.message(&package.name);
                    match fetch_one(&agent, package, &task) {
                        Ok(()) => {}
                        Err(Failure::Gone) => lock_poisoned_ok(&gone).push((*package).clone()),
                        Err(Failure::Other(error)) => *lock_poisoned_ok(&failed) = Some(error),
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

fn lock_poisoned_ok<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn fetch_one(agent: &ureq::Agent, package: &Package, task: &Task) -> Result<(), Failure> {
    let bases = mirror::bases(&package.archive).map_err(Failure::Other)?;
    let mut last = Failure::Gone;
    for base in &bases {
        let url = format!("{base}/{}", package.path);
        // A mirror that drops a connection gets two more chances.
        for attempt in 0..3 {
            match download(agent, &url, package, task) {
                Ok(()) => return Ok(()),
                // Gone only if every mirror says so: one that cannot be reached may still have it.
                Err(Failure::Gone) => break,
                Err(other) => last = other,
            }
            std::thread::sleep(Duration::from_secs(1 << attempt));
        }
    }
    Err(last)
}

fn download(agent: &ureq::Agent, url: &str, package: &Package, task: &Task) -> Result<(), Failure> {
    let other = |error: anyhow::Error| {
        Failure::Other(error.context(format!(
            "downloading {} {} from {url} failed; what was fetched is kept, run the command again",
            package.name, package.version
        )))
    };
    let mut response = agent.get(url).call().map_err(|e| other(e.into()))?;
    match response.status().as_u16() {
        200 => {}
        404 | 410 => return Err(Failure::Gone),
        status => {
            return Err(other(anyhow::anyhow!("the mirror answered with HTTP status {status}")));
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

/// Copies a stream to a place in the cache, if it has the hash and the size that it must have.
///
/// Until then it lies in the scratch folder, which the next build empties whatever became of this
/// one.
fn save_to(
    from: &mut dyn std::io::Read,
    scratch: &Path,
    target: &Path,
    sha256: &str,
    size: u64,
    task: &Task,
) -> Result<()> {
    let mut temporary = tempfile::NamedTempFile::new_in(scratch).context(store::DISK_FULL)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    // One byte more than promised is enough to know that it is too long.
    let mut from = from.take(size + 1);
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        temporary.write_all(&buffer[..n]).context(store::DISK_FULL)?;
        got += n as u64;
        task.advance(n as u64);
    }
    if got != size {
        bail!("expected {size} bytes, found {got}");
    }
    let found = measure::hex(&hasher.finalize());
    if found != sha256 {
        bail!(
            "wrong content: expected SHA-256 {sha256}, found {found}; the mirror or something before it altered the file, nothing of it was kept"
        );
    }
    temporary.as_file().sync_all()?;
    temporary.persist(target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn only_the_right_bytes_get_into_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let task = Task::begin("test", "");
        let right = crate::hash::bytes(b"content");
        let save = |data: &[u8], size| {
            save_to(&mut &data[..], dir.path(), &dir.path().join(&right), &right, size, &task)
        };
        for (data, size, says) in [
            (&b"Content"[..], 7, "wrong content"),
            (b"conten", 7, "found 6"),
            (b"content and more", 7, "found 8"),
            (b"", 7, "found 0"),
        ] {
            let error = save(data, size).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(kept(dir.path()), 0, "nothing half-done is left");
        }
        save(b"content", 7).unwrap();
        assert_eq!(std::fs::read(dir.path().join(&right)).unwrap(), b"content");
    }

    /// A mirror that breaks the connection off in the middle.
    #[test]
    fn a_download_that_breaks_off_leaves_nothing() {
        struct Broken(usize);
        impl std::io::Read for Broken {
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
                &mut Broken(3),
                dir.path(),
                &target,
                &"0".repeat(64),
                1 << 20,
                &Task::begin("test", "")
            )
            .is_err()
        );
        assert_eq!(kept(dir.path()), 0);
    }
}
