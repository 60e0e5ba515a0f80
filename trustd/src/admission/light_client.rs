//! The chain as this node follows it, and what is kept of it over a restart.
//!
//! Invariants:
//! - What is kept counts only if the mark (marks.rs) has its hash: an older state cannot be put
//!   back. Its file is named after that; an older one is removed only after the mark, so that a
//!   kill or a fault at any moment leaves the one that is marked.
//! - What could not be kept may only deny.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use ledger::ChainReason;
use ledger::ethereum::{self, ChainError, Follower, Found, Hash, MOST_DIGESTS, Settings};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::admission::error::ApprovalError;
use crate::util::atomic_file;

/// For so long after somebody asked for an image the relays are asked for it, in seconds.
const ASKED_FOR: u64 = 3600;

struct Held {
    follower: Follower,
    /// Newer, and not kept.
    ahead: Option<Follower>,
    /// What is on disk, and what it comes to.
    mark: Option<measure::Digest>,
    essence: ethereum::Root,
}

pub(crate) struct Chain {
    settings: Result<Settings, ChainError>,
    data: PathBuf,
    /// Or why it cannot be used.
    state: RwLock<Result<Held, String>>,
    /// Who is asked for, and when that was last.
    digests: Mutex<BTreeMap<Hash, u64>>,
    news: watch::Sender<()>,
    /// Of whom a bundle told since this process began.
    heard: Mutex<BTreeSet<Hash>>,
    max_age: u64,
    stale_grace: Duration,
}

/// What was written and waits for its mark.
pub(crate) struct Kept {
    pub(crate) mark: measure::Digest,
}

/// What relays are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Behind a `?`: from where, and nothing else.
    pub from: String,
    pub digests: Vec<Hash>,
}

/// What the owner is told of it.
#[derive(Serialize)]
pub struct View {
    #[serde(flatten)]
    at: Option<ethereum::View>,
    /// How old the final block is, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_s: Option<u64>,
    max_age_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Chain {
    pub(crate) fn new(chain: &config::Chain, data: &Path) -> Self {
        Self {
            settings: Settings::try_from(chain),
            data: data.to_owned(),
            state: RwLock::new(Err("it was not read yet".into())),
            digests: Mutex::default(),
            news: watch::Sender::new(()),
            heard: Mutex::default(),
            max_age: chain.max_age_s,
            stale_grace: Duration::from_secs(chain.stale_grace_s),
        }
    }

    /// Reads what was kept; it must be what the mark says.
    pub(crate) fn open(&self, mark: Result<Option<measure::Digest>, String>) {
        let read = mark.and_then(|mark| self.read(mark));
        match &read {
            // What a kill left behind.
            Ok(Held { mark: Some(mark), .. }) => self.remove_others(Some(mark)),
            Ok(_) => {}
            Err(problem) => println!("chain: {problem}"),
        }
        self.set(read);
    }

    fn set(&self, state: Result<Held, String>) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn path(&self, mark: &measure::Digest) -> PathBuf {
        self.data.join(format!("chain-{}.json", measure::hex(mark)))
    }

    /// All but one.
    fn remove_others(&self, but: Option<&measure::Digest>) {
        let but = but.map(|mark| self.path(mark));
        for entry in std::fs::read_dir(&self.data).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if name.to_string_lossy().starts_with("chain-") && but.as_ref() != Some(&path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn read(&self, mark: Option<measure::Digest>) -> Result<Held, String> {
        let settings = self.settings.clone().map_err(|error| error.to_string())?;
        let Some(mark) = mark else {
            let follower = Follower::new(settings);
            return Ok(Held { essence: follower.essence(), follower, ahead: None, mark: None });
        };
        let path = self.path(&mark);
        let bytes = std::fs::read(&path).ok().filter(|bytes| Sha256::digest(bytes)[..] == mark);
        let other = || {
            format!(
                "what this node kept last, {}, is not there as it was: an older state was put back, or it is lost. If you know why: trustctl log reset, \
                 which is recorded for all to see; the chain is then followed from the image's checkpoint, which must be at most two weeks old",
                path.display()
            )
        };
        let bytes = bytes.ok_or_else(other)?;
        let saved = serde_json::from_slice(&bytes)
            .map_err(|error| ChainError::Saved(error.to_string()).to_string())?;
        let follower = Follower::restore(settings, saved).map_err(|error| error.to_string())?;
        Ok(Held { essence: follower.essence(), follower, ahead: None, mark: Some(mark) })
    }

    /// What there is to go on from, and whether all of it is kept.
    pub(crate) fn known(&self) -> Result<(Follower, bool), ApprovalError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(held) => {
                Ok((held.ahead.as_ref().unwrap_or(&held.follower).clone(), held.ahead.is_none()))
            }
            Err(problem) => Err(ChainError::Saved(problem.clone()).into()),
        }
    }

    pub(crate) fn usable(&self) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).is_ok()
    }

    /// Writes what must be kept; nothing, if it may be lost (`Follower::essence`).
    pub(crate) fn prepare(&self, news: &Follower) -> Result<Option<Kept>, ApprovalError> {
        let same = matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), Ok(held) if held.essence == news.essence());
        let Some(saved) = news.saved().filter(|_| !same) else { return Ok(None) };
        let text =
            serde_json::to_vec(&saved).map_err(|error| ChainError::Saved(error.to_string()))?;
        let mark = Sha256::digest(&text).into();
        let path = self.path(&mark);
        if let Err(source) = atomic_file::write(&path, &text) {
            self.ahead(news.clone());
            return Err(ApprovalError::Io { path, source });
        }
        crate::util::failpoint::fail_point("chain-written");
        Ok(Some(Kept { mark }))
    }

    /// From now on it decides.
    pub(crate) fn settle(&self, news: Follower, kept: Option<Kept>) {
        crate::util::failpoint::fail_point("chain-marked");
        if let Ok(held) = &mut *self.state.write().unwrap_or_else(PoisonError::into_inner) {
            if let Some(Kept { mark }) = &kept {
                (held.mark, held.essence) = (Some(*mark), news.essence());
            }
            (held.follower, held.ahead) = (news, None);
        }
        if let Some(Kept { mark }) = kept {
            self.remove_others(Some(&mark));
        }
    }

    /// Newer, and not kept: it may only deny.
    pub(crate) fn ahead(&self, news: Follower) {
        if let Ok(held) = &mut *self.state.write().unwrap_or_else(PoisonError::into_inner) {
            held.ahead = Some(news);
        }
    }

    /// What is kept; none where that cannot be told.
    pub(crate) fn mark(&self) -> Option<Option<measure::Digest>> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .ok()
            .map(|held| held.mark)
    }

    /// Begins anew from the checkpoint.
    pub(crate) fn reset(&self) {
        self.set(self.read(None));
        self.remove_others(None);
    }

    /// Whose records count: what was asked for of late.
    pub(crate) fn asked_for(&self) -> BTreeSet<Hash> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    pub(crate) fn decide(&self, digest: &str, now: u64) -> Result<Found, ChainReason> {
        let hash = hash_of(digest)?;
        self.ask(hash, now);
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(Held { follower, ahead, .. }) => {
                let (found, ahead) = (
                    follower.decide(&hash, now),
                    ahead.as_ref().map(|ahead| ahead.decide(&hash, now)),
                );
                match (found, ahead) {
                    (Ok(_), Some(Err(reason))) => Err(reason),
                    // What only waits for news hides none; what is not kept makes no grace longer.
                    (Err(waits), Some(Err(reason))) if may_wait(&waits) && !may_wait(&reason) => {
                        Err(reason)
                    }
                    (found, _) => found,
                }
            }
            Err(problem) => Err(ChainReason::Unusable(problem.clone())),
        }
    }

    fn ask(&self, digest: Hash, now: u64) {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests.len() >= MOST_DIGESTS && !digests.contains_key(&digest) {
            return;
        }
        if digests.insert(digest, now).is_none() {
            self.news.send_replace(());
        }
    }

    pub(crate) fn asked(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// A bundle held.
    pub(crate) fn hear(&self, news: &Follower) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).extend(news.told());
    }

    /// Whether a bundle had this image since this process began.
    pub(crate) fn heard(&self, digest: &str) -> bool {
        hash_of(digest).is_ok_and(|hash| {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash)
        })
    }

    pub(crate) fn wanted(&self, now: u64) -> Wanted {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.retain(|_, asked| now.saturating_sub(*asked) < ASKED_FOR);
        let digests = digests.keys().copied().collect();
        let period = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(held) => held.follower.period(now),
            Err(_) => None,
        };
        let checkpoint = self.settings.as_ref().map(|settings| Hash::new(settings.checkpoint));
        let from = match (period, checkpoint) {
            (Some(period), _) => format!("period={period}"),
            (None, Ok(root)) => format!("checkpoint={root}"),
            (None, Err(_)) => String::new(),
        };
        Wanted { from, digests }
    }

    pub(crate) fn stale_grace(&self) -> Duration {
        self.stale_grace
    }

    pub(crate) fn view(&self, now: u64) -> View {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let at = state.as_ref().ok().and_then(|held| held.follower.view());
        let problem = match (&*state, &at) {
            (Err(problem), _) => Some(problem.clone()),
            (Ok(_), None) => Some("no relay gave a bundle that holds yet".into()),
            _ => None,
        };
        View {
            age_s: at.as_ref().map(|at| now.saturating_sub(at.time)),
            at,
            max_age_s: self.max_age,
            problem,
        }
    }
}

fn hash_of(digest: &str) -> Result<Hash, ChainReason> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    format!("0x{hex}")
        .parse()
        .map_err(|_| ChainReason::Unusable(format!("{digest:?} is not a digest")))
}

/// Denials that can have a grace for the relays' sake.
fn may_wait(reason: &ChainReason) -> bool {
    matches!(reason, ChainReason::Stale { .. } | ChainReason::NotAsked)
}
