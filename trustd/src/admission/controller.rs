//! The admission controller: combines the log and the chain into one decision, and applies newer
//! logs and bundles.
//!
//! Invariants:
//! - An image is allowed if the log allows it and, on a node that follows a chain, the chain's
//!   finalized state allows it, too.
//! - The high-water mark is on disk and the TPM's counter is incremented before a longer log or a
//!   changed state of the chain approves anything. Its denials count before that, so they wait for
//!   neither the disk nor the TPM.
//! - The mark has a tag under a key that the TPM seals, and the value of the counter. Neither an
//!   older mark nor a forged one counts, even if the whole data partition is restored. Without its
//!   mark the node approves nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use api::owner::{LedgerState, LogSummary};
use config::{Checkpoints, Ledger, Node};
use ledger::{
    ChainApproval, ChainReason, Decision, HighWaterMark, Log, Reason, TrustPolicy, TrustPolicyError,
};
use measure::Digest;
use tokio::sync::watch;

use super::error::AdmissionError;
use super::light_client::{BundleRequest, PersistentLightClient};
use super::rollback::{HighWaterMarks, RollbackGuard};
use crate::keys::derive::RootKey;
use crate::tpm::Tpm;
use crate::util::error_chain::error_chain;
use crate::util::{atomic_file, clock, lock};

/// Time for which a running module may continue although no relay was asked for its image yet.
const NOT_ASKED_GRACE: Duration = Duration::from_secs(300);
/// Time for the high-water mark to be written, which needs the disk and the TPM.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that an update waits for another one before it puts its denials in force.
const UPDATE_PATIENCE: Duration = Duration::from_millis(300);

struct LoadedLog {
    text: String,
    /// Replay of `text`.
    log: Log,
    /// High-water mark in force.
    marked: HighWaterMark,
    /// Whether `text` and its mark are on disk.
    is_persisted: bool,
}

/// The ledger on this node.
pub struct Admission {
    policy: TrustPolicy,
    /// The log, or why it cannot be used.
    state: RwLock<Result<LoadedLog, Arc<AdmissionError>>>,
    chain: Option<PersistentLightClient>,
    /// Serializes longer logs and bundles.
    update_lock: tokio::sync::Mutex<()>,
    rollback: RollbackGuard,
    etc: PathBuf,
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
            policy: TrustPolicy::try_from(&node.ledger)?,
            state: RwLock::new(Err(Arc::new(AdmissionError::NotRead))),
            chain: chain.as_ref().map(|chain| PersistentLightClient::new(chain, data)),
            update_lock: tokio::sync::Mutex::default(),
            rollback: RollbackGuard::new(data, tpm, root_key),
            etc: etc.to_owned(),
            time_floor,
            revocation_grace: Duration::from_secs(*revocation_grace_s),
            stale_grace: Duration::from_secs(stale_grace_s),
        };
        let marks = admission.rollback.read().await;
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
        admission.set(loaded.map_err(Arc::new));
        Ok(admission)
    }

    fn set(&self, state: Result<LoadedLog, Arc<AdmissionError>>) {
        *lock::write(&self.state) = state;
    }

    /// Returns the identity of the approvers in node.toml, which stays the same when a log entry
    /// replaces them.
    pub fn identity(&self) -> Digest {
        self.policy.identity()
    }

    /// Decides whether the image with this manifest digest may run.
    pub fn decide(&self, digest: &str) -> Decision {
        let now = clock::unix_seconds();
        let decision = match &*lock::read(&self.state) {
            Ok(LoadedLog { log, .. }) => log.decide(digest, now, self.time_floor),
            Err(error) => Decision::Deny(Reason::Ledger(error_chain(error.as_ref()))),
        };
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
                let grace = chain.map_or(Duration::ZERO, PersistentLightClient::stale_grace);
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

    /// Returns the text of the log.
    ///
    /// # Errors
    /// Fails if the ledger cannot be used.
    pub fn log_text(&self) -> Result<String, Arc<AdmissionError>> {
        match &*lock::read(&self.state) {
            Ok(LoadedLog { text, .. }) => Ok(text.clone()),
            Err(error) => Err(error.clone()),
        }
    }

    /// Returns the state of the ledger for the owner.
    pub fn status(&self) -> LedgerState {
        match &*lock::read(&self.state) {
            Ok(LoadedLog { log, .. }) => LedgerState::Usable(self.summarize(log)),
            Err(error) => LedgerState::Unusable { problem: error_chain(error.as_ref()) },
        }
    }

    fn summarize(&self, log: &Log) -> LogSummary {
        let HighWaterMark { seq, root } = log.high_water_mark();
        let (approvers, threshold) = log.approvers();
        let witnessed = log.witnessed_at(clock::unix_seconds());
        let witness_policy = self.policy.witness_policy.as_ref().filter(|_| witnessed.is_some());
        LogSummary {
            statements: seq,
            root: measure::hex(&root),
            approvers,
            threshold,
            witnessed,
            max_age_s: witness_policy.map(|policy| policy.max_age),
            chain: self.chain.as_ref().map(PersistentLightClient::status),
        }
    }

    /// Verifies and applies a log that continues the present one, or that has newer cosignatures.
    /// Returns the number of log entries, and whether anything is new.
    ///
    /// # Errors
    /// [`AdmissionError`] if the log is invalid, shorter or another one, or if it cannot be
    /// persisted. In the latter case its revocations are in force, and its approvals are not.
    pub async fn extend_log(&self, new_text: &str) -> Result<(u64, bool), AdmissionError> {
        let _guard = match tokio::time::timeout(UPDATE_PATIENCE, self.update_lock.lock()).await {
            Ok(guard) => guard,
            // The other update may wait for a disk or a TPM that does not answer.
            Err(_) => {
                self.deny_by_log(new_text)?;
                self.update_lock.lock().await
            }
        };
        let known = match &*lock::read(&self.state) {
            // Sources repeat the same log at every poll.
            Ok(loaded) if loaded.is_persisted && loaded.text == new_text => {
                return Ok((loaded.log.high_water_mark().seq, false));
            }
            Ok(LoadedLog { log, marked, is_persisted, .. }) => {
                Some((log.clone(), marked.clone(), *is_persisted))
            }
            Err(_) => None,
        };
        let (seen, marked) = match &known {
            Some((log, marked, _)) => (log.high_water_mark(), marked.clone()),
            None => {
                let marked = self.rollback.read().await?.log;
                (marked.clone(), marked)
            }
        };
        let log = Log::replay(&self.policy, new_text, &seen)?;
        let new_mark = log.high_water_mark();
        // An older cosignature of the same entries must not make the ledger older.
        if known.is_some_and(|(known, _, is_persisted)| {
            is_persisted
                && known.high_water_mark() == new_mark
                && !log.supersedes(&known, clock::unix_seconds())
        }) {
            return Ok((new_mark.seq, false));
        }
        // A full disk or a TPM that does not answer must not prevent a revocation from taking
        // effect. An approval waits until it is persisted.
        self.set_unpersisted(new_text, &log, marked.clone());
        persist_in_time(self.persist_log(new_text, &new_mark, &marked)).await?;
        self.set_persisted(LoadedLog {
            text: new_text.to_owned(),
            log,
            marked: new_mark.clone(),
            is_persisted: true,
        });
        Ok((new_mark.seq, true))
    }

    /// Puts the denials of a log in force while another update is in progress.
    fn deny_by_log(&self, text: &str) -> Result<(), AdmissionError> {
        let (seen, marked) = match &*lock::read(&self.state) {
            Ok(LoadedLog { log, marked, .. }) => (log.high_water_mark(), marked.clone()),
            Err(_) => return Ok(()),
        };
        let log = Log::replay(&self.policy, text, &seen)?;
        if log.high_water_mark() != seen {
            self.set_unpersisted(text, &log, marked);
        }
        Ok(())
    }

    /// Puts the denials of a log in force, and none of its approvals after `marked`. Does nothing
    /// if the present log is longer.
    fn set_unpersisted(&self, text: &str, log: &Log, mut marked: HighWaterMark) {
        let state = &mut *lock::write(&self.state);
        let mut older = None;
        if let Ok(present) = state {
            if present.log.high_water_mark().seq > log.high_water_mark().seq {
                return;
            }
            (marked, older) = (present.marked.clone(), Some(&present.log));
        }
        let log = log.clone().without_approvals_after(marked.seq, older);
        *state = Ok(LoadedLog { text: text.to_owned(), log, marked, is_persisted: false });
    }

    /// Puts a persisted log in force. A longer one that came meanwhile stays; its own update
    /// follows.
    fn set_persisted(&self, persisted: LoadedLog) {
        let state = &mut *lock::write(&self.state);
        match state {
            Ok(newer) if newer.log.high_water_mark().seq > persisted.marked.seq => {
                newer.marked = persisted.marked;
            }
            _ => *state = Ok(persisted),
        }
    }

    /// Writes a log and, if it is longer than the marked one, its mark.
    async fn persist_log(
        &self,
        text: &str,
        mark: &HighWaterMark,
        marked: &HighWaterMark,
    ) -> Result<(), AdmissionError> {
        let path = log_path(self.rollback.data());
        atomic_file::write(&path, text.as_bytes())
            .map_err(|source| AdmissionError::Io { path, source })?;
        if mark != marked {
            let chain = self.chain_mark().await?;
            self.rollback.write(&HighWaterMarks { log: mark.clone(), chain }).await?;
        }
        Ok(())
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
            let marks = self.rollback.read().await;
            chain.open(marks.as_ref().map(|marks| marks.chain));
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
        let Some(pending) = chain.write_pending(&new)? else {
            chain.commit(new, None);
            return Ok(true);
        };
        let write_mark = async {
            let log = self.log_mark().await?;
            self.rollback.write(&HighWaterMarks { log, chain: Some(pending.mark) }).await
        };
        persist_in_time(write_mark).await?;
        chain.commit(new, Some(pending));
        Ok(true)
    }

    /// Returns the high-water mark of the log that is in force.
    async fn log_mark(&self) -> Result<HighWaterMark, AdmissionError> {
        let loaded = lock::read(&self.state).as_ref().ok().map(|loaded| loaded.marked.clone());
        match loaded {
            Some(marked) => Ok(marked),
            None => Ok(self.rollback.read().await?.log),
        }
    }

    /// Returns the mark of the chain's state, also if that state cannot be used or the node no
    /// longer follows the chain, so that the mark is not lost.
    async fn chain_mark(&self) -> Result<Option<Digest>, AdmissionError> {
        match self.chain.as_ref().and_then(PersistentLightClient::mark) {
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
        self.chain.as_ref().map(PersistentLightClient::subscribe_to_requests)
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
        self.set(Ok(loaded));
        Ok(mark)
    }

    /// Loads the longer of the image's log and the persisted one. If both have the same length, it
    /// loads the one that is valid. `rewrite_mark` writes the mark even if it did not change.
    async fn load_log(
        &self,
        marks: &HighWaterMarks,
        rewrite_mark: bool,
    ) -> Result<LoadedLog, AdmissionError> {
        let shipped = read_log(self.etc.join("ledger.jsonl"))?;
        let persisted = read_log(log_path(self.rollback.data()))?;
        let text = ledger::longer_copy(&persisted, &shipped).ok_or(AdmissionError::Fork)?;
        let (text, log) = match Log::replay(&self.policy, text, &marks.log) {
            Ok(log) => (text, log),
            // An updated image can require more than the persisted log has, and ship it.
            Err(error) => {
                let log = Log::replay(&self.policy, &shipped, &marks.log).map_err(|_| error)?;
                (shipped.as_str(), log)
            }
        };
        let marked = log.high_water_mark();
        if rewrite_mark || marked != marks.log {
            self.rollback
                .write(&HighWaterMarks { log: marked.clone(), chain: marks.chain })
                .await?;
        }
        Ok(LoadedLog { text: text.to_owned(), log, marked, is_persisted: true })
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

/// Reads a log. A missing file is an empty log.
fn read_log(path: PathBuf) -> Result<String, AdmissionError> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(AdmissionError::Io { path, source }),
    }
}

fn log_path(data: &Path) -> PathBuf {
    data.join("ledger.jsonl")
}

/// Returns whether data of the time `since` may still be used: unlimited until `grace` after its
/// greatest age, then not at all. Times are in seconds since 1970.
fn stale_grace_left(since: u64, now: u64, max_age_s: u64, grace: Duration) -> Duration {
    let excess = now.saturating_sub(since).saturating_sub(max_age_s);
    if Duration::from_secs(excess) > grace { Duration::ZERO } else { Duration::MAX }
}
