//! The admission controller: combines the log and the chain into one decision, and applies newer
//! logs and bundles.
//!
//! Invariants:
//! - An image is allowed if the log allows it and, on a node that follows a chain, the chain's
//!   finalized state allows it, too.
//! - The high-water mark is on disk and the TPM's counter is incremented before a longer log or a
//!   changed state of the chain approves anything. Its denials count before that, so they wait for
//!   neither the disk nor the TPM.
//! - No file is read or written, and no log is verified, on the thread that calls.
//! - The mark has a tag under a key that the TPM seals, and the value of the counter. Neither an
//!   older mark nor a forged one counts, even if the whole data partition is restored. Without its
//!   mark the node approves nothing.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::owner::{LedgerState, LogSummary};
use config::{Checkpoints, Ledger, Node};
use ledger::{
    ChainApproval, ChainReason, Decision, HighWaterMark, Log, Reason, TrustPolicy, TrustPolicyError,
};
use measure::Digest;
use tokio::sync::watch;

use super::background::run_blocking;
use super::error::AdmissionError;
use super::ledger_log::{LedgerLog, LoadedLog, LogInput, VerifiedLog};
use super::light_client::{BundleRequest, PersistentLightClient};
use super::log_intake::{Candidate, Cost, Intake, Refusal, Rejection, Report};
use super::rollback::{HighWaterMarks, RollbackGuard};
use crate::keys::derive::RootKey;
use crate::tpm::Tpm;
use crate::util::clock;
use crate::util::error_chain::error_chain;

/// Time for which a running module may continue although no relay was asked for its image yet.
const NOT_ASKED_GRACE: Duration = Duration::from_secs(300);

/// Time for the high-water mark to be written, which needs the disk and the TPM.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that an update waits for another one before it puts its denials in force.
const UPDATE_PATIENCE: Duration = Duration::from_millis(300);

/// The ledger on this node.
pub struct Admission {
    log: LedgerLog,
    chain: Option<Arc<PersistentLightClient>>,
    /// Serializes changes of the log, the chain and their marks.
    update_lock: tokio::sync::Mutex<()>,
    rollback: RollbackGuard,
    /// Earliest possible time in seconds since 1970.
    time_floor: u64,
    revocation_grace: Duration,
    stale_grace: Duration,
}

impl Admission {
    /// Reads the log and the state of the chain. A ledger that cannot be used is no error: it
    /// denies every image and reports the reason.
    ///
    /// # Errors
    /// [`TrustPolicyError`] if node.toml has invalid approvers or witnesses.
    pub async fn open(
        node: &Node,
        etc: &Path,
        data: &Path,
        time_floor: u64,
        tpm: Tpm,
        root_key: Arc<RootKey>,
    ) -> Result<Self, TrustPolicyError> {
        let Ledger { revocation_grace_s, checkpoints, chain, .. } = &node.ledger;
        let stale_grace_s =
            checkpoints.as_ref().map_or(0, |Checkpoints { stale_grace_s, .. }| *stale_grace_s);
        let admission = Self {
            log: LedgerLog::new(TrustPolicy::try_from(&node.ledger)?, etc, data),
            chain: chain.as_ref().map(|chain| Arc::new(PersistentLightClient::new(chain, data))),
            update_lock: tokio::sync::Mutex::default(),
            rollback: RollbackGuard::new(data, tpm, root_key),
            time_floor,
            revocation_grace: Duration::from_secs(*revocation_grace_s),
            stale_grace: Duration::from_secs(stale_grace_s),
        };
        let marks = admission.rollback.read().await;
        // Nothing else runs before the ledger is read.
        if let Some(chain) = &admission.chain {
            chain.open(marks.as_ref().map(|marks| marks.chain));
        }
        let loaded = match marks {
            Ok(marks) => admission.load_log(&marks, false).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &loaded {
            logging::error!("the ledger cannot be used: {}", error_chain(error));
        }
        admission.log.set(loaded);
        Ok(admission)
    }

    /// Returns the identity of the approvers in node.toml, which stays the same when a log entry
    /// replaces them.
    pub fn identity(&self) -> Digest {
        self.log.policy().identity()
    }

    /// Decides whether the image with this manifest digest may run.
    pub fn decide(&self, digest: &str) -> Decision {
        let now = clock::unix_seconds();
        let decision = self.log.decide(digest, now, self.time_floor);
        // The chain is asked also if the log is too old: an attacker who withholds newer logs must
        // not hide a revocation in the chain.
        let is_chain_asked =
            matches!(decision, Decision::Allow(_) | Decision::Deny(Reason::Stale { .. }));
        let Some(chain) = self.chain.as_ref().filter(|_| is_chain_asked) else { return decision };
        match (decision, chain.decide(digest, now)) {
            (Decision::Allow(mut approval), Ok(record)) => {
                approval.chain = Some(ChainApproval {
                    block: record.at.number,
                    seq: record.seq,
                    not_after: record.not_after,
                });
                Decision::Allow(approval)
            }
            (denial, Ok(_)) => denial,
            (decision, Err(reason)) => {
                self.choose_stricter(decision, Reason::Chain { digest: digest.to_owned(), reason })
            }
        }
    }

    /// Returns the stricter of two denials, the one with the shorter grace period, so that a denial
    /// with a grace period never masks one without.
    pub fn choose_stricter(&self, decision: Decision, other: Reason) -> Decision {
        Decision::Deny(match decision {
            Decision::Deny(reason) if self.grace_period(&reason) <= self.grace_period(&other) => {
                reason
            }
            _ => other,
        })
    }

    /// Returns how long a running module may continue after this denial.
    pub fn grace_period(&self, reason: &Reason) -> Duration {
        match reason {
            Reason::Revoked { .. } | Reason::Chain { reason: ChainReason::Revoked { .. }, .. } => {
                self.revocation_grace
            }
            // The grace period starts when the data became too old, and restarts do not extend it.
            Reason::Stale { witnessed, now, max_age } => {
                stale_grace_left(*witnessed, *now, *max_age, self.stale_grace)
            }
            // Not every record is persisted. After a restart the relays are asked again.
            Reason::Chain { reason: ChainReason::NotAsked, .. } => NOT_ASKED_GRACE,
            Reason::Chain { digest, reason: ChainReason::Stale { time, now, max_age, .. } } => {
                let chain = self.chain.as_ref();
                let grace = chain.map_or(Duration::ZERO, |chain| chain.stale_grace());
                let grace = stale_grace_left(*time, *now, *max_age, grace);
                // The persisted record can be older than the one that was known before a restart.
                if chain.is_some_and(|chain| chain.has_fresh_record(digest)) {
                    grace
                } else {
                    grace.max(NOT_ASKED_GRACE)
                }
            }
            _ => Duration::ZERO,
        }
    }

    /// Returns a reader of the log's text. Reading blocks.
    ///
    /// # Errors
    /// The ledger cannot be used.
    pub fn log_text(&self) -> Result<impl Read + Send + use<>, Arc<AdmissionError>> {
        Ok(self.log.text()?.text())
    }

    /// Returns the place in the log at which its last entry begins.
    ///
    /// # Errors
    /// [`AdmissionError`] if the ledger cannot be used or its file cannot be read.
    pub(super) async fn last_entry_start(&self) -> Result<u64, AdmissionError> {
        let stored = self.log.text().map_err(AdmissionError::Unusable)?;
        let start = move || {
            stored
                .last_line_start()
                .map_err(|source| AdmissionError::Io { path: stored.path.clone(), source })
        };
        run_blocking(start).await
    }

    /// Returns the state of the ledger for the owner.
    pub fn status(&self) -> LedgerState {
        match self.log.with_loaded(|loaded| self.summarize(&loaded.log)) {
            Ok(summary) => LedgerState::Usable(summary),
            Err(error) => LedgerState::Unusable { problem: error_chain(error.as_ref()) },
        }
    }

    fn summarize(&self, log: &Log) -> LogSummary {
        let HighWaterMark { seq, root } = log.high_water_mark();
        let (approvers, threshold) = log.approvers();
        let witnessed = log.witnessed_at(clock::unix_seconds());
        let witness_policy = self.log.policy().witness_policy.as_ref();
        let witness_policy = witness_policy.filter(|_| witnessed.is_some());
        LogSummary {
            statements: seq,
            root: measure::hex(&root),
            approvers,
            threshold,
            witnessed,
            max_age_s: witness_policy.map(|policy| policy.max_age),
            chain: self.chain.as_ref().map(|chain| chain.status()),
        }
    }

    /// Verifies and applies a log that continues the present one, or that has newer cosignatures.
    /// Returns the number of log entries, and whether anything is new. Must run to its end.
    ///
    /// # Errors
    /// [`AdmissionError`] if the log is invalid, shorter or another one, or if it cannot be
    /// persisted. In the latter case its revocations are in force, and its approvals are not.
    pub async fn extend_log(&self, new_text: &str) -> Result<(u64, bool), AdmissionError> {
        self.extend_log_from(std::io::Cursor::new(new_text.as_bytes().to_vec())).await
    }

    /// Like [`Admission::extend_log`], for a text that is verified while it is read.
    ///
    /// # Errors
    /// Those of [`Admission::extend_log`], and [`AdmissionError::Input`].
    pub async fn extend_log_from(
        &self,
        reader: impl Read + Send + 'static,
    ) -> Result<(u64, bool), AdmissionError> {
        let input = LogInput { reader: Box::new(reader), start: 0, refused: None };
        self.take_log(input).await.result.map_err(|rejection| match rejection {
            Rejection::Log(error) | Rejection::Known(error) => error.into(),
            Rejection::Node(error) => error,
            Rejection::Input(error) => AdmissionError::Input(error),
            other => AdmissionError::Input(std::io::Error::other(other)),
        })
    }

    /// Verifies and applies the text of a source. Must run to its end.
    pub(super) async fn take_log(&self, mut input: LogInput) -> LogUpdate {
        let mut update = LogUpdate { result: Ok((0, false)), cost: Cost::default(), refusal: None };
        loop {
            let report = match self.verify_log(input).await {
                Ok(report) => report,
                Err(error) => return LogUpdate { result: Err(error.into()), ..update },
            };
            update.cost += report.cost;
            update.refusal = report.refusal;
            let mut candidate = match report.result {
                Ok(Intake::Verified(candidate)) => *candidate,
                Ok(Intake::Unchanged) => {
                    let seq = self.log.with_loaded(|loaded| loaded.log.high_water_mark().seq);
                    return LogUpdate { result: Ok((seq.unwrap_or_default(), false)), ..update };
                }
                Err(rejection) => return LogUpdate { result: Err(rejection), ..update },
            };
            if self.is_no_better(&candidate) {
                let seq = candidate.verified.high_water_mark().seq;
                return LogUpdate { result: Ok((seq, false)), ..update };
            }
            // A full disk or a TPM that does not answer must not prevent a revocation from taking
            // effect. An approval waits until it is persisted.
            if self.log.apply_unpersisted(&mut candidate) {
                let _guard = self.update_lock.lock().await;
                if self.log.is_current(candidate.generation) {
                    let result = self.persist_and_apply(candidate).await.map_err(Rejection::Node);
                    return LogUpdate { result, ..update };
                }
            }
            // Another text was applied meanwhile, so this one may not continue the log any more.
            input = match candidate.into_reader() {
                Ok(reader) => LogInput { reader, start: 0, refused: None },
                Err(error) => return LogUpdate { result: Err(Rejection::Stored(error)), ..update },
            };
        }
    }

    /// Reports whether a log has the same entries as the present one, which is on disk, and no
    /// newer cosignatures. They must not make the ledger older.
    fn is_no_better(&self, candidate: &Candidate) -> bool {
        let is_no_better = self.log.with_loaded(|LoadedLog { log, is_persisted, .. }| {
            *is_persisted
                && log.high_water_mark() == candidate.verified.high_water_mark()
                && !log.is_superseded_by(&candidate.verified, clock::unix_seconds())
        });
        self.log.is_current(candidate.generation) && is_no_better.unwrap_or(false)
    }

    async fn verify_log(&self, input: LogInput) -> Result<Report, AdmissionError> {
        let seen = match self.log.with_loaded(|_| ()) {
            Ok(()) => None,
            Err(_) => {
                // The marks are not read while they are written.
                let _guard = self.update_lock.lock().await;
                Some(self.rollback.read().await?.log)
            }
        };
        self.log.verify(input, seen).await
    }

    /// Persists and applies a verified log.
    async fn persist_and_apply(&self, candidate: Candidate) -> Result<(u64, bool), AdmissionError> {
        let new_mark = candidate.verified.high_water_mark();
        let (verified, text) = VerifiedLog::new(candidate);
        let persisting = async {
            let marked = self.log_mark().await?;
            let stored = self.log.write(text).await?;
            if new_mark != marked {
                let chain = self.chain_mark().await?;
                self.rollback.write(&HighWaterMarks { log: new_mark.clone(), chain }).await?;
            }
            Ok(stored)
        };
        let stored = persist_in_time(persisting).await?;
        let seq = new_mark.seq;
        self.log.apply(verified, stored, new_mark).await?;
        Ok((seq, true))
    }

    /// Verifies and applies a bundle of the chain. Reports whether anything is new.
    ///
    /// # Errors
    /// [`AdmissionError`] if the node follows no chain, if the bundle is invalid or behind, or if
    /// the new state cannot be persisted. In the latter case its revocations are in force, and its
    /// approvals are not.
    pub async fn apply_bundle(&self, bundle: &str) -> Result<bool, AdmissionError> {
        let chain = self.chain.as_ref().ok_or(AdmissionError::NoChain)?;
        let _guard = match tokio::time::timeout(UPDATE_PATIENCE, self.update_lock.lock()).await {
            Ok(guard) => guard,
            // The other update may wait for a disk or a TPM that does not answer.
            Err(_) => {
                chain.deny_by_bundle(bundle).await?;
                self.update_lock.lock().await
            }
        };
        if !chain.is_usable() {
            // Retry: an earlier read error may have cleared. State that does not match the mark
            // stays rejected.
            let (marks, opened) = (self.rollback.read().await, chain.clone());
            run_blocking(move || {
                opened.open(marks.as_ref().map(|marks| marks.chain));
                Ok(())
            })
            .await?;
        }
        let (known, is_persisted) = chain.newest()?;
        let new = chain.verify_bundle(&known, bundle).await?;
        chain.note_records(&new);
        // State that could not be persisted before is written again.
        if new == known && is_persisted {
            return Ok(false);
        }
        // A revocation takes effect even if it cannot be persisted, and before it is.
        chain.set_unpersisted(new.clone());
        let (writer, written) = (chain.clone(), new.clone());
        let writing = run_blocking(move || writer.write_pending(&written));
        let Some(pending) = persist_in_time(writing).await? else {
            chain.commit(new, None);
            return Ok(true);
        };
        let write_mark = async {
            let log = self.log_mark().await?;
            self.rollback.write(&HighWaterMarks { log, chain: Some(pending.mark) }).await
        };
        persist_in_time(write_mark).await?;
        let chain = chain.clone();
        run_blocking(move || {
            chain.commit(new, Some(pending));
            Ok(())
        })
        .await?;
        Ok(true)
    }

    /// Returns the high-water mark of the log that is in force.
    async fn log_mark(&self) -> Result<HighWaterMark, AdmissionError> {
        match self.log.with_loaded(|loaded| loaded.marked.clone()) {
            Ok(marked) => Ok(marked),
            Err(_) => Ok(self.rollback.read().await?.log),
        }
    }

    /// Returns the mark of the chain's state, also if that state cannot be used or the node no
    /// longer follows the chain, so that the mark is not lost.
    async fn chain_mark(&self) -> Result<Option<Digest>, AdmissionError> {
        match self.chain.as_ref().and_then(|chain| chain.mark()) {
            Some(mark) => Ok(mark),
            None => Ok(self.rollback.read().await?.chain),
        }
    }

    /// Returns why a manifest listed by an approved index must not run: it was revoked, or its
    /// status is unknown. Lacking an approval of its own is no reason.
    pub fn find_member_denial(&self, digest: &str) -> Option<Reason> {
        if let Decision::Deny(reason) = self.decide(digest) {
            match reason {
                Reason::Revoked { .. }
                | Reason::Chain { reason: ChainReason::Revoked { .. }, .. } => return Some(reason),
                _ => {}
            }
        }
        let reason = self.chain.as_ref()?.decide(digest, clock::unix_seconds()).err()?;
        let is_lack_of_approval = matches!(
            reason,
            ChainReason::Absent { .. } | ChainReason::Expired { .. } | ChainReason::NoProof { .. }
        );
        (!is_lack_of_approval).then(|| Reason::Chain { digest: digest.to_owned(), reason })
    }

    /// Returns the next request to the relays, or `None` if the node follows no chain.
    pub fn bundle_request(&self) -> Option<BundleRequest> {
        self.chain.as_ref().map(|chain| chain.bundle_request(clock::unix_seconds()))
    }

    /// Returns a receiver that changes when a decision needs an image that no relay was asked for
    /// yet, or `None` if the node follows no chain.
    pub fn subscribe_to_requests(&self) -> Option<watch::Receiver<()>> {
        self.chain.as_ref().map(|chain| chain.subscribe_to_requests())
    }

    /// Forgets the high-water marks: accepts the present log as the newest, and follows the chain
    /// from its checkpoint again. The caller records this in PCR 15 first.
    ///
    /// # Errors
    /// [`AdmissionError`] if the log is invalid or the mark cannot be written.
    pub async fn reset(&self) -> Result<HighWaterMark, AdmissionError> {
        let _guard = self.update_lock.lock().await;
        let loaded = self.load_log(&HighWaterMarks::default(), true).await?;
        if let Some(chain) = &self.chain {
            chain.reset();
        }
        let mark = loaded.marked.clone();
        self.log.set(Ok(loaded));
        Ok(mark)
    }

    /// Loads the log. `rewrite_mark` writes the mark even if it did not change.
    async fn load_log(
        &self,
        marks: &HighWaterMarks,
        rewrite_mark: bool,
    ) -> Result<LoadedLog, AdmissionError> {
        let loaded = self.log.load(marks.log.clone()).await?;
        if rewrite_mark || loaded.marked != marks.log {
            let log = loaded.marked.clone();
            self.rollback.write(&HighWaterMarks { log, chain: marks.chain }).await?;
        }
        Ok(loaded)
    }
}

/// Ends the wait for a disk or a TPM that does not answer, so that the next update can begin. The
/// next update writes the mark again.
async fn persist_in_time<T>(
    persisting: impl Future<Output = Result<T, AdmissionError>>,
) -> Result<T, AdmissionError> {
    tokio::time::timeout(PERSIST_TIMEOUT, persisting)
        .await
        .unwrap_or(Err(AdmissionError::NotPersisted { seconds: PERSIST_TIMEOUT.as_secs() }))
}

/// Result of taking in the text of a source.
pub(super) struct LogUpdate {
    /// Number of log entries, and whether anything is new.
    pub(super) result: Result<(u64, bool), Rejection>,
    pub(super) cost: Cost,
    /// Set if the text was refused because of its content.
    pub(super) refusal: Option<Refusal>,
}

/// Returns whether data of the time `since` may still be used: unlimited until `grace` after its
/// greatest age, then not at all. Times are in seconds since 1970.
fn stale_grace_left(since: u64, now: u64, max_age_s: u64, grace: Duration) -> Duration {
    let excess = now.saturating_sub(since).saturating_sub(max_age_s);
    if Duration::from_secs(excess) > grace { Duration::ZERO } else { Duration::MAX }
}
