//! The log of this node: its state in memory and its text on disk.
//!
//! Invariants:
//! - The gate's thread never waits for a disk or a verification. Those run on threads of their own,
//!   and a lock is held for a few milliseconds at most.
//! - A log is applied after it was persisted. The caller persists its mark in between.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use ledger::{Decision, HighWaterMark, Log, Reason, TrustPolicy};
use tokio::sync::Semaphore;

use super::background::run_blocking;
use super::checked_text::replay;
use super::error::AdmissionError;
use super::log_folder::{self, LogFolder, NewText};
use super::log_intake::{self, Base, Candidate, Refusal, Report};
use super::stored_log::StoredLog;
use crate::util::error_chain::error_chain;
use crate::util::lock::{self, lock};
use crate::util::low_priority;

/// Number of texts that are verified concurrently: one of a source, one of an owner.
const MAX_CONCURRENT_INTAKES: usize = 2;
/// Number of images that are applied while the lock is held: about 2 ms.
const IMAGES_PER_LOCK: usize = 2048;

/// A log that is in force.
pub(super) struct LoadedLog {
    pub(super) log: Log,
    /// Text of `log`.
    stored: StoredLog,
    /// High-water mark in force.
    pub(super) marked: HighWaterMark,
    /// Newest state that the node has seen. Newer than `log` if it could not be persisted.
    seen: HighWaterMark,
    /// Whether all that the node has seen is on disk.
    pub(super) is_persisted: bool,
    /// Whether the disk has no newer text than `stored`, so that entries can be appended.
    can_append: bool,
}

/// The log, or why it cannot be used.
struct State {
    loaded: Result<LoadedLog, Arc<AdmissionError>>,
    /// Number of changes.
    generation: u64,
}

/// The log of this node.
pub(super) struct LedgerLog {
    policy: Arc<TrustPolicy>,
    /// Path of the image's log.
    shipped: PathBuf,
    data: PathBuf,
    /// Locked only by threads that may wait for the disk.
    folder: Arc<Mutex<LogFolder>>,
    state: Arc<RwLock<State>>,
    intakes: Semaphore,
    next_spool: AtomicU64,
    next_write: AtomicU64,
}

/// Text of a log, which a source or an owner sends.
pub(super) struct LogInput {
    pub(super) reader: Box<dyn Read + Send>,
    /// Place in the log at which the text begins.
    pub(super) start: u64,
    /// What the source sent last and was refused.
    pub(super) refused: Option<Refusal>,
}

impl LedgerLog {
    pub(super) fn new(policy: TrustPolicy, etc: &Path, data: &Path) -> Self {
        let loaded = Err(Arc::new(AdmissionError::NotRead));
        Self {
            policy: Arc::new(policy),
            shipped: etc.join("ledger.jsonl"),
            data: data.to_owned(),
            folder: Arc::new(Mutex::new(LogFolder::new(data))),
            state: Arc::new(RwLock::new(State { loaded, generation: 0 })),
            intakes: Semaphore::new(MAX_CONCURRENT_INTAKES),
            next_spool: AtomicU64::new(0),
            next_write: AtomicU64::new(1),
        }
    }

    pub(super) fn policy(&self) -> &TrustPolicy {
        &self.policy
    }

    /// Returns what `read` reads from the log, or why the log cannot be used.
    pub(super) fn with_loaded<T>(
        &self,
        read: impl FnOnce(&LoadedLog) -> T,
    ) -> Result<T, Arc<AdmissionError>> {
        lock::read(&self.state).loaded.as_ref().map(read).map_err(Arc::clone)
    }

    /// Replaces the log.
    pub(super) fn set(&self, loaded: Result<LoadedLog, AdmissionError>) {
        let mut state = lock::write(&self.state);
        state.loaded = loaded.map_err(Arc::new);
        state.generation += 1;
    }

    /// Decides about one image.
    pub(super) fn decide(&self, digest: &str, now: u64, floor: u64) -> Decision {
        self.with_loaded(|loaded| loaded.log.decide(digest, now, floor))
            .unwrap_or_else(|error| Decision::Deny(Reason::Ledger(error_chain(error.as_ref()))))
    }

    /// Returns the text of the log.
    ///
    /// # Errors
    /// The log cannot be used.
    pub(super) fn text(&self) -> Result<StoredLog, Arc<AdmissionError>> {
        self.with_loaded(|loaded| loaded.stored.clone())
    }

    /// Reads the longer of the image's log and the persisted one. If both have the same length, it
    /// reads the one that is valid.
    ///
    /// # Errors
    /// [`AdmissionError`] if no log is valid, or if the two contradict each other.
    pub(super) async fn load(&self, seen: HighWaterMark) -> Result<LoadedLog, AdmissionError> {
        let (policy, folder) = (self.policy.clone(), self.folder.clone());
        let path = self.shipped.clone();
        run_blocking(move || {
            let persisted = lock(&folder).open()?;
            let shipped = StoredLog::open_text(&path)
                .map_err(|source| AdmissionError::Io { path: path.clone(), source })?;
            let longer = persisted
                .longer_copy(&shipped)
                .map_err(|source| AdmissionError::Io { path: persisted.path.clone(), source })?;
            let longer = longer.ok_or(AdmissionError::Fork)?;
            let (stored, log) = match replay(&policy, longer, &seen) {
                Ok(log) => (longer, log),
                // An updated image can require more than the persisted log has, and ship it.
                Err(error) => (&shipped, replay(&policy, &shipped, &seen).map_err(|_| error)?),
            };
            let marked = log.high_water_mark();
            Ok(LoadedLog {
                stored: stored.clone(),
                can_append: stored.is_appendable,
                seen: marked.clone(),
                marked,
                log,
                is_persisted: true,
            })
        })
        .await
    }

    /// Verifies a text. `seen` is the newest state that the node has seen, if it has no log that
    /// it can use.
    ///
    /// # Errors
    /// [`AdmissionError::Background`] if no thread can be started.
    pub(super) async fn verify(
        &self,
        input: LogInput,
        seen: Option<HighWaterMark>,
    ) -> Result<Report, AdmissionError> {
        let permit = self.intakes.acquire().await;
        let spool = self.spool_path();
        let base = self.base(seen.unwrap_or_default(), spool);
        let LogInput { mut reader, start, refused } = input;
        // Modules come first.
        let report =
            low_priority::run(move || log_intake::run(base, &mut reader, start, refused.as_ref()));
        let report = report.await.map_err(AdmissionError::Background);
        drop(permit);
        report
    }

    /// Returns where the next spool can have its file.
    fn spool_path(&self) -> PathBuf {
        log_folder::spool_path(&self.data, self.next_spool.fetch_add(1, Ordering::Relaxed))
    }

    fn base(&self, seen: HighWaterMark, spool: PathBuf) -> Base {
        let (state, policy) = (lock::read(&self.state), self.policy.clone());
        let generation = state.generation;
        match &state.loaded {
            Ok(loaded) => Base {
                policy,
                generation,
                stored: loaded.stored.clone(),
                extension: loaded.log.extend(&loaded.seen),
                approvers_since: loaded.log.approvers_since(),
                seen: loaded.seen.clone(),
                is_persisted: loaded.is_persisted,
                spool,
            },
            Err(_) => Base {
                generation,
                stored: StoredLog::empty(&self.shipped),
                extension: Log::new(&policy).extend(&seen),
                approvers_since: 0,
                policy,
                seen,
                is_persisted: false,
                spool,
            },
        }
    }

    /// Reports whether the log is still the one that a text was verified against.
    pub(super) fn is_current(&self, generation: u64) -> bool {
        lock::read(&self.state).generation == generation
    }

    /// Writes a verified text. The log in force does not change. If the caller does not wait for
    /// the end, the next write replaces this one, also if it ends first.
    ///
    /// # Errors
    /// [`AdmissionError::Io`]. The disk then has the old text or the new one.
    pub(super) async fn write(&self, text: NewText) -> Result<StoredLog, AdmissionError> {
        let (known, can_append) = match &mut lock::write(&self.state).loaded {
            // Until the log is applied, it is not known what the disk has.
            Ok(loaded) => (loaded.stored.clone(), std::mem::take(&mut loaded.can_append)),
            Err(_) => (StoredLog::empty(&self.shipped), false),
        };
        let folder = self.folder.clone();
        let number = self.next_write.fetch_add(1, Ordering::Relaxed);
        run_blocking(move || lock(&folder).write(number, &known, text, can_append)).await
    }

    /// Applies a verified log after it and its mark were persisted.
    ///
    /// # Errors
    /// [`AdmissionError::Foreign`] if the log in force changed meanwhile.
    pub(super) async fn apply(
        &self,
        candidate: VerifiedLog,
        stored: StoredLog,
        marked: HighWaterMark,
    ) -> Result<(), AdmissionError> {
        let (policy, state) = (self.policy.clone(), self.state.clone());
        run_blocking(move || {
            let VerifiedLog { mut verified, continues } = candidate;
            let mut fresh = None;
            if !continues || lock::read(&state).loaded.is_err() {
                let mut log = Log::new(&policy);
                log.apply(&mut verified, usize::MAX)?;
                fresh = Some(log);
            }
            loop {
                let mut state = lock::write(&state);
                // A longer log can have come meanwhile. Its denials stay; its own update follows.
                let seen = match &state.loaded {
                    Ok(loaded) if loaded.seen.seq > marked.seq => loaded.seen.clone(),
                    _ => marked.clone(),
                };
                let log = match (&mut state.loaded, fresh.take()) {
                    (Ok(loaded), Some(mut log)) => {
                        log.apply_revocations(&loaded.log);
                        log
                    }
                    (Err(_), Some(log)) => log,
                    (Ok(loaded), None) => {
                        if !loaded.log.apply(&mut verified, IMAGES_PER_LOCK)? {
                            continue;
                        }
                        std::mem::replace(&mut loaded.log, Log::new(&policy))
                    }
                    (Err(error), None) => return Err(AdmissionError::Unusable(error.clone())),
                };
                state.loaded = Ok(LoadedLog {
                    log,
                    stored,
                    is_persisted: seen == marked,
                    seen,
                    marked,
                    can_append: true,
                });
                state.generation += 1;
                return Ok(());
            }
        })
        .await
    }

    /// Applies what takes effect before a log is persisted: its revocations. Returns `false` if the
    /// log in force changed since the candidate was verified.
    pub(super) fn apply_unpersisted(&self, candidate: &mut Candidate) -> bool {
        let mut state = lock::write(&self.state);
        if state.generation != candidate.generation {
            return false;
        }
        let Ok(loaded) = &mut state.loaded else { return true };
        let mark = candidate.verified.high_water_mark();
        let is_longer = mark != loaded.seen;
        loaded.log.apply_unpersisted(&candidate.verified);
        (loaded.seen, loaded.is_persisted) = (mark, false);
        // Other texts must continue this one from here on.
        if is_longer {
            state.generation += 1;
            candidate.generation = state.generation;
        }
        true
    }
}

/// A valid log whose text was written.
pub(super) struct VerifiedLog {
    verified: ledger::VerifiedExtension,
    continues: bool,
}

impl VerifiedLog {
    /// Separates a candidate from its text.
    pub(super) fn new(candidate: Candidate) -> (Self, NewText) {
        let Candidate { verified, continues, text, .. } = candidate;
        (Self { verified, continues }, text)
    }
}

#[cfg(test)]
mod tests;
