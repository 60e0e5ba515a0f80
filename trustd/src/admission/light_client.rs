//! The chain as this node follows it, and its state on disk.
//!
//! Invariants:
//! - A persisted state counts only if the high-water mark (rollback.rs) has its hash, so an older
//!   state cannot be restored. The file is named after the hash. An older file is removed only
//!   after the mark is written, so a kill or a fault at any point leaves the marked one.
//! - State that is not persisted can only deny.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use api::owner::{ChainHead, ChainStatus};
use ledger::ChainReason;
use ledger::ethereum::{
    self, Approval, ChainError, Hash, LightClient, LightClientStatus, MAX_DIGESTS, Settings,
};
use measure::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::error::AdmissionError;
use crate::util::error_chain::error_chain;
use crate::util::failpoint::fail_point;
use crate::util::lock::{self, lock};
use crate::util::{atomic_file, clock, low_priority};

/// Time in seconds for which relays are asked for an image after a decision needed it.
const REQUEST_LIFETIME_SECONDS: u64 = 3600;

struct ChainState {
    client: LightClient,
    /// Newer state that is not persisted.
    unpersisted: Option<LightClient>,
    /// SHA-256 of the persisted state.
    mark: Option<Digest>,
    /// [`LightClient::persistent_root`] of the persisted state.
    persistent_root: ethereum::Root,
}

/// A light client whose state outlives restarts.
pub(super) struct PersistentLightClient {
    settings: Result<Settings, ChainError>,
    data: PathBuf,
    /// State, or why it cannot be used.
    state: RwLock<Result<ChainState, String>>,
    /// Images that decisions needed, with the time of the last decision.
    requests: Mutex<BTreeMap<Hash, u64>>,
    new_request: watch::Sender<()>,
    /// Images that had a record in a bundle since this process started.
    reported: Mutex<BTreeSet<Hash>>,
    max_age_s: u64,
    stale_grace: Duration,
}

/// State that was written and waits for its mark.
pub(super) struct PendingState {
    /// SHA-256 of the state.
    pub(super) mark: Digest,
}

/// Content of a request to a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRequest {
    /// Query parameter with the starting point: `period=…` or `checkpoint=…`.
    pub from: String,
    /// Images whose records are needed.
    pub digests: Vec<Hash>,
}

impl PersistentLightClient {
    pub(super) fn new(chain: &config::Chain, data: &Path) -> Self {
        Self {
            settings: Settings::try_from(chain),
            data: data.to_owned(),
            state: RwLock::new(Err(AdmissionError::NotRead.to_string())),
            requests: Mutex::default(),
            new_request: watch::Sender::new(()),
            reported: Mutex::default(),
            max_age_s: chain.max_age_s,
            stale_grace: Duration::from_secs(chain.stale_grace_s),
        }
    }

    /// Reads the persisted state that the mark names.
    pub(super) fn open(&self, mark: Result<Option<Digest>, &AdmissionError>) {
        let state = mark
            .map_err(|error| error_chain(error))
            .and_then(|mark| self.load(mark).map_err(|error| error_chain(&error)));
        match &state {
            // A kill can have left other files.
            Ok(ChainState { mark: Some(mark), .. }) => self.remove_files_except(Some(mark)),
            Ok(_) => {}
            Err(problem) => logging::error!("the state of the chain cannot be used: {problem}"),
        }
        *lock::write(&self.state) = state;
    }

    fn path(&self, mark: &Digest) -> PathBuf {
        self.data.join(format!("chain-{}.json", measure::hex(mark)))
    }

    fn remove_files_except(&self, mark: Option<&Digest>) {
        let except = mark.map(|mark| self.path(mark));
        for entry in std::fs::read_dir(&self.data).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if name.to_string_lossy().starts_with("chain-") && except.as_ref() != Some(&path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn load(&self, mark: Option<Digest>) -> Result<ChainState, AdmissionError> {
        let settings = self.settings.clone()?;
        let client = match mark {
            None => LightClient::new(settings),
            Some(mark) => {
                let path = self.path(&mark);
                let bytes =
                    std::fs::read(&path).ok().filter(|bytes| Sha256::digest(bytes)[..] == mark);
                let bytes = bytes.ok_or(AdmissionError::ChainState { path })?;
                let persisted = serde_json::from_slice(&bytes)
                    .map_err(|error| ChainError::PersistedState(error.to_string()))?;
                LightClient::restore(settings, persisted)?
            }
        };
        let persistent_root = client.persistent_root();
        Ok(ChainState { client, unpersisted: None, mark, persistent_root })
    }

    /// Returns the newest state, and whether it is persisted as far as it must be.
    ///
    /// # Errors
    /// [`AdmissionError::Chain`] if the state cannot be used.
    pub(super) fn newest(&self) -> Result<(LightClient, bool), AdmissionError> {
        match &*lock::read(&self.state) {
            Ok(ChainState { client, unpersisted, .. }) => {
                Ok((unpersisted.as_ref().unwrap_or(client).clone(), unpersisted.is_none()))
            }
            Err(problem) => Err(ChainError::PersistedState(problem.clone()).into()),
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        lock::read(&self.state).is_ok()
    }

    /// Writes a state next to the persisted one. Writes nothing and returns `None` if the
    /// difference may be lost ([`LightClient::persistent_root`]).
    ///
    /// # Errors
    /// [`AdmissionError::Io`] if the file cannot be written.
    pub(super) fn write_pending(
        &self,
        client: &LightClient,
    ) -> Result<Option<PendingState>, AdmissionError> {
        let root = client.persistent_root();
        let is_same =
            matches!(&*lock::read(&self.state), Ok(state) if state.persistent_root == root);
        let Some(persisted) = client.persisted_state().filter(|_| !is_same) else {
            return Ok(None);
        };
        let text = serde_json::to_vec(&persisted)
            .map_err(|error| ChainError::PersistedState(error.to_string()))?;
        let mark = Sha256::digest(&text).into();
        let path = self.path(&mark);
        atomic_file::write(&path, &text).map_err(|source| AdmissionError::Io { path, source })?;
        fail_point("chain-written");
        Ok(Some(PendingState { mark }))
    }

    /// Bases decisions on this state from here on. `pending` is the file that was written and
    /// marked for it.
    pub(super) fn commit(&self, client: LightClient, pending: Option<PendingState>) {
        fail_point("chain-marked");
        if let Ok(state) = &mut *lock::write(&self.state) {
            if let Some(PendingState { mark }) = &pending {
                (state.mark, state.persistent_root) = (Some(*mark), client.persistent_root());
            }
            // Newer state that came meanwhile still denies, and its own update follows.
            if state.unpersisted.as_ref() == Some(&client) {
                state.unpersisted = None;
            }
            state.client = client;
        }
        if let Some(PendingState { mark }) = pending {
            self.remove_files_except(Some(&mark));
        }
    }

    /// Stores a newer state that is not persisted. It can only deny.
    pub(super) fn set_unpersisted(&self, client: LightClient) {
        if let Ok(state) = &mut *lock::write(&self.state) {
            state.unpersisted = Some(client);
        }
    }

    /// Verifies a bundle and returns the state after it. `known` is the state before.
    ///
    /// # Errors
    /// [`AdmissionError::Chain`] if the bundle is invalid or behind.
    pub(super) async fn verify_bundle(
        &self,
        known: &LightClient,
        bundle: &str,
    ) -> Result<LightClient, AdmissionError> {
        let (text, requested, now) =
            (bundle.to_owned(), self.requested_digests(), clock::unix_seconds());
        let before = known.clone();
        let verified = low_priority::run(move || {
            let is_needed = |digest: &_| requested.contains(digest) || before.has_record(digest);
            before.apply_bundle_for(&text, now, &is_needed)
        })
        .await;
        Ok(verified.map_err(|error| ChainError::PersistedState(error.to_string()))??)
    }

    /// Puts the denials of a bundle in force before it is persisted.
    ///
    /// # Errors
    /// [`AdmissionError::Chain`] if the bundle is invalid or behind.
    pub(super) async fn deny_by_bundle(&self, bundle: &str) -> Result<(), AdmissionError> {
        loop {
            let (known, _) = self.newest()?;
            let new = self.verify_bundle(&known, bundle).await?;
            // Another bundle can have changed the state meanwhile.
            if self.replace_unpersisted(&known, new) {
                return Ok(());
            }
        }
    }

    /// Stores a newer state that is not persisted, if `known` is still the newest one. Returns
    /// whether it is.
    fn replace_unpersisted(&self, known: &LightClient, new: LightClient) -> bool {
        match &mut *lock::write(&self.state) {
            Ok(state) => {
                let is_newest = state.unpersisted.as_ref().unwrap_or(&state.client) == known;
                if is_newest && new != *known {
                    state.unpersisted = Some(new);
                }
                is_newest
            }
            // The state cannot be used, so everything is denied.
            Err(_) => true,
        }
    }

    /// Returns the mark of the persisted state: `Some(None)` if nothing is persisted, `None` if the
    /// state cannot be used.
    pub(super) fn mark(&self) -> Option<Option<Digest>> {
        lock::read(&self.state).as_ref().ok().map(|state| state.mark)
    }

    /// Discards the state and starts from the checkpoint.
    pub(super) fn reset(&self) {
        *lock::write(&self.state) = self.load(None).map_err(|error| error_chain(&error));
        self.remove_files_except(None);
    }

    /// Returns the images whose records count: those that decisions needed recently.
    pub(super) fn requested_digests(&self) -> BTreeSet<Hash> {
        lock(&self.requests).keys().copied().collect()
    }

    /// Decides whether an image may run as far as the chain is concerned, and requests its record.
    ///
    /// # Errors
    /// [`ChainReason`] if it must not.
    pub(super) fn decide(&self, digest: &str, now: u64) -> Result<Approval, ChainReason> {
        let hash = parse_digest(digest)?;
        self.request(hash, now);
        match &*lock::read(&self.state) {
            Ok(ChainState { client, unpersisted, .. }) => {
                let decision = client.decide(&hash, now);
                let newer = unpersisted.as_ref().map(|newer| newer.decide(&hash, now));
                match (decision, newer) {
                    (Ok(_), Some(Err(reason))) => Err(reason),
                    // A denial for stale data must not mask a definite denial from newer state, and
                    // state that is not persisted never extends a grace period.
                    (Err(first), Some(Err(reason)))
                        if is_temporary(&first) && !is_temporary(&reason) =>
                    {
                        Err(reason)
                    }
                    (decision, _) => decision,
                }
            }
            Err(problem) => Err(ChainReason::Unusable(problem.clone())),
        }
    }

    fn request(&self, digest: Hash, now: u64) {
        let mut requests = lock(&self.requests);
        if requests.len() >= MAX_DIGESTS && !requests.contains_key(&digest) {
            return;
        }
        if requests.insert(digest, now).is_none() {
            self.new_request.send_replace(());
        }
    }

    /// Returns a receiver that changes when an image is requested for the first time.
    pub(super) fn subscribe_to_requests(&self) -> watch::Receiver<()> {
        self.new_request.subscribe()
    }

    /// Remembers which images had a record in a valid bundle.
    pub(super) fn note_records(&self, client: &LightClient) {
        lock(&self.reported).extend(client.digests());
    }

    /// Reports whether a bundle had a record of the image since this process started.
    pub(super) fn has_fresh_record(&self, digest: &str) -> bool {
        parse_digest(digest).is_ok_and(|hash| lock(&self.reported).contains(&hash))
    }

    /// Returns the next request to the relays. Forgets images that no decision needed recently.
    pub(super) fn bundle_request(&self, now: u64) -> BundleRequest {
        let mut requests = lock(&self.requests);
        requests.retain(|_, requested| now.saturating_sub(*requested) < REQUEST_LIFETIME_SECONDS);
        let digests = requests.keys().copied().collect();
        let period = match &*lock::read(&self.state) {
            Ok(state) => state.client.first_missing_period(now),
            Err(_) => None,
        };
        let checkpoint = self.settings.as_ref().map(|settings| Hash::new(settings.checkpoint));
        let from = match (period, checkpoint) {
            (Some(period), _) => format!("period={period}"),
            (None, Ok(root)) => format!("checkpoint={root}"),
            (None, Err(_)) => String::new(),
        };
        BundleRequest { from, digests }
    }

    /// Returns how long a running module may continue after the chain's state became too old.
    pub(super) fn stale_grace(&self) -> Duration {
        self.stale_grace
    }

    /// Returns the state of the chain for the owner.
    pub(super) fn status(&self) -> ChainStatus {
        let now = clock::unix_seconds();
        let state = lock::read(&self.state);
        let head = state.as_ref().ok().and_then(|state| state.client.status());
        let problem = match (&*state, &head) {
            (Err(problem), _) => Some(problem.clone()),
            (Ok(_), None) => Some("no relay has given a valid bundle yet".into()),
            _ => None,
        };
        let head = head.map(|head| describe_head(&head, now));
        ChainStatus { head, max_age_s: self.max_age_s, problem }
    }
}

fn describe_head(status: &LightClientStatus, now: u64) -> ChainHead {
    ChainHead {
        slot: status.slot,
        block: status.block,
        time: status.time,
        age_s: now.saturating_sub(status.time),
        attested_slot: status.attested_slot,
        attested_block: status.attested_block,
        period: status.period,
        records: status.records,
    }
}

/// Parses the digest of a manifest as the key of a record.
fn parse_digest(digest: &str) -> Result<Hash, ChainReason> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    format!("0x{hex}")
        .parse()
        .map_err(|_| ChainReason::Unusable(format!("{digest:?} is not a SHA-256 digest")))
}

/// Reports whether a denial can have a grace period, because a bundle of a relay can lift it.
fn is_temporary(reason: &ChainReason) -> bool {
    matches!(reason, ChainReason::Stale { .. } | ChainReason::NotAsked)
}
