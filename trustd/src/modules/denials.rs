//! Times at which the denials of running containers were first known.
//!
//! A grace period begins at that time. The times are on a tmpfs, so that a restart of trustd does
//! not extend a grace period. Neither does a denial that alternates between reasons.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::util::atomic_file::{self, PathError, at};
use crate::util::lock::lock;

/// Times since the boot in milliseconds, by the code of the reason.
type Times = BTreeMap<String, u64>;

/// The times of all containers.
pub(super) struct Denials {
    dir: PathBuf,
    times: Mutex<BTreeMap<String, Times>>,
}

impl Denials {
    /// Reads the times of earlier processes of this boot below `run`.
    ///
    /// # Errors
    ///
    /// Returns [`PathError`] if the folder cannot be created or read.
    pub(super) fn open(run: &Path) -> Result<Self, PathError> {
        let dir = run.join("denied");
        std::fs::create_dir_all(&dir).map_err(at(&dir))?;
        let mut times = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path();
            // A file of another form was not written by `first_known`.
            if let (Some(container), Ok(text)) =
                (path.file_name().and_then(|name| name.to_str()), std::fs::read_to_string(&path))
                // A file that is being written has another name.
                && !container.contains('.')
                && let Ok(of_container) = serde_json::from_str(&text)
            {
                times.insert(container.to_owned(), of_container);
            }
        }
        Ok(Self { dir, times: Mutex::new(times) })
    }

    /// Returns when a denial of a container with this code was first known, which is `now` for a
    /// new one. Both are times since the boot.
    pub(super) fn first_known(&self, container: &str, code: &str, now: Duration) -> Duration {
        let mut all = lock(&self.times);
        let times = all.entry(container.to_owned()).or_default();
        if let Some(known) = times.get(code) {
            return Duration::from_millis(*known);
        }
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        times.insert(code.to_owned(), now_ms);
        let path = self.dir.join(container);
        let text = serde_json::to_string(times).unwrap_or_default();
        if let Err(error) = atomic_file::write(&path, text.as_bytes()) {
            // The time is in memory. Only a restart of trustd loses it.
            logging::warn!("cannot write {}: {error}", path.display());
        }
        Duration::from_millis(now_ms)
    }

    /// Forgets the times of all containers that `keep` does not select.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.times).retain(|container, _| {
            let is_kept = keep(container);
            if !is_kept {
                let _ = atomic_file::remove(&self.dir.join(container));
            }
            is_kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_restart_or_another_reason_in_between_does_not_extend_a_grace_period() {
        let dir = tempfile::tempdir().unwrap();
        let denials = Denials::open(dir.path()).unwrap();
        assert_eq!(denials.first_known("a", "revoked", seconds(10)), seconds(10));
        assert_eq!(denials.first_known("a", "stale", seconds(20)), seconds(20));
        assert_eq!(denials.first_known("b", "revoked", seconds(30)), seconds(30));
        assert_eq!(denials.first_known("a", "revoked", seconds(40)), seconds(10));
        drop(denials);
        let denials = Denials::open(dir.path()).unwrap();
        assert_eq!(denials.first_known("a", "revoked", seconds(50)), seconds(10));
        assert_eq!(denials.first_known("a", "stale", seconds(50)), seconds(20));
        // An image that was allowed again has its whole grace period.
        denials.retain(|container| container == "b");
        drop(denials);
        let denials = Denials::open(dir.path()).unwrap();
        assert_eq!(denials.first_known("a", "revoked", seconds(60)), seconds(60));
        assert_eq!(denials.first_known("b", "revoked", seconds(60)), seconds(30));
    }
}
