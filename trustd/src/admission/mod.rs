//! The ledger on this node: where its log lies, how far this node has seen it and its chain, what
//! they decide.
//!
//! Invariants:
//! - An image is allowed where the log allows it and, if a chain is asked for, the chain's final
//!   state does too.
//! - The high water mark is on disk, and the TPM's counter moved, before a longer log or a changed
//!   state of the chain is used.
//! - The mark carries a tag under a key that the TPM seals, and the value of the counter: neither
//!   an older mark nor one of somebody's own making counts, even when the whole data partition is
//!   put back. Without its mark nothing is approved.

pub mod error;
pub mod light_client;
pub mod log_sources;
pub mod relays;
mod rollback;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Checkpoints, Ledger, Node};
use ledger::ethereum::{self, ChainError};
use ledger::{ChainEvidence, ChainReason, Decision, HighWater, Log, LogError, Reason, TrustPolicy};
use serde::Serialize;
use tokio::sync::watch;

use crate::admission::error::ApprovalError;
use crate::admission::light_client::{Chain, Wanted};
use crate::admission::rollback::{Marks, Seen};
use crate::keys::derive::RootKey;
use crate::tpm::Tpm;
use crate::util::atomic_file;
use crate::util::low_priority;

/// For so long what runs may go on although the chain was not asked for it.
const ASKED_WITHIN: Duration = Duration::from_secs(300);

struct Held {
    text: String,
    /// What it comes to.
    log: Log,
    /// How far the mark is.
    marked: HighWater,
    /// Text and mark are where they last.
    kept: bool,
}

pub struct Approvals {
    policy: TrustPolicy,
    /// The log; or why it cannot be used.
    state: RwLock<Result<Held, String>>,
    chain: Option<Chain>,
    /// One longer log or one bundle at a time.
    alone: tokio::sync::Mutex<()>,
    marks: Marks,
    etc: PathBuf,
    floor: u64,
    grace: Duration,
    stale_grace: Duration,
}

/// What the owner is told of the ledger.
#[derive(Serialize)]
pub struct View {
    statements: u64,
    /// The root of its Merkle tree, hex.
    root: String,
    approvers: Vec<String>,
    threshold: usize,
    /// Since when enough witnesses vouch for it, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    witnessed: Option<u64>,
    /// For how many seconds after that it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_s: Option<u64>,
    /// Where a chain is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<crate::admission::light_client::View>,
}

impl Approvals {
    /// Whose approvals these are; it outlives changes of the approvers by themselves.
    pub fn identity(&self) -> measure::Digest {
        self.policy.identity()
    }

    /// Never fails for the ledger's sake: one that cannot be used denies everything, with its
    /// reason.
    pub async fn open(
        node: &Node,
        etc: &Path,
        data: &Path,
        floor: u64,
        tpm: Tpm,
        root: Arc<RootKey>,
    ) -> Result<Self, LogError> {
        let Ledger { revocation_grace_s, checkpoints, chain, .. } = &node.ledger;
        let stale_grace_s =
            checkpoints.as_ref().map_or(0, |Checkpoints { stale_grace_s, .. }| *stale_grace_s);
        let approvals = Self {
            policy: TrustPolicy::try_from(&node.ledger)?,
            state: RwLock::new(Err("it was not read yet".into())),
            chain: chain.as_ref().map(|chain| Chain::new(chain, data)),
            alone: tokio::sync::Mutex::default(),
            marks: Marks::new(data, tpm, root),
            etc: etc.to_owned(),
            floor,
            grace: Duration::from_secs(*revocation_grace_s),
            stale_grace: Duration::from_secs(stale_grace_s),
        };
        let seen = approvals.marks.read().await;
        if let Some(chain) = &approvals.chain {
            chain.open(seen.as_ref().map(|seen| seen.chain).map_err(ToString::to_string));
        }
        let read = match seen {
            Ok(seen) => approvals.read(&seen, false).await,
            Err(error) => Err(error),
        };
        if let Err(problem) = &read {
            println!("ledger: {problem}");
        }
        approvals.set(read.map_err(|error| error.to_string()));
        Ok(approvals)
    }

    fn set(&self, state: Result<Held, String>) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub fn decide(&self, digest: &str) -> Decision {
        let now = now();
        let decision = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(Held { log, .. }) => log.decide(digest, now, self.floor),
            Err(problem) => Decision::Deny(Reason::Ledger(problem.clone())),
        };
        // Whoever keeps a node's log too old does not hide what the chain says.
        let asked = matches!(decision, Decision::Allow(_) | Decision::Deny(Reason::Stale { .. }));
        let Some(chain) = self.chain.as_ref().filter(|_| asked) else { return decision };
        match (decision, chain.decide(digest, now)) {
            (Decision::Allow(mut evidence), Ok(ethereum::Found { at, seq, not_after })) => {
                evidence.chain = Some(ChainEvidence { block: at.number, seq, not_after });
                Decision::Allow(evidence)
            }
            (denied, Ok(_)) => denied,
            (decision, Err(reason)) => {
                self.sterner(decision, Reason::Chain { digest: digest.to_owned(), reason })
            }
        }
    }

    /// Of two denials the one that lets what runs go on for less long: a grace never hides what has
    /// none.
    pub fn sterner(&self, decision: Decision, other: Reason) -> Decision {
        Decision::Deny(match decision {
            Decision::Deny(reason) if self.grace(&reason) <= self.grace(&other) => reason,
            _ => other,
        })
    }

    /// How long what runs may go on after it was found to be forbidden.
    pub fn grace(&self, reason: &Reason) -> Duration {
        match reason {
            Reason::Revoked { .. } | Reason::Chain { reason: ChainReason::Revoked { .. }, .. } => {
                self.grace
            }
            // Counted from when it became too old, whatever was restarted since.
            Reason::Stale { witnessed, now, max_age } => {
                over(*witnessed, *now, *max_age, self.stale_grace)
            }
            // Of what ran before a restart not all was kept; the relays are being asked.
            Reason::Chain { reason: ChainReason::NotAsked, .. } => ASKED_WITHIN,
            Reason::Chain { digest, reason: ChainReason::Stale { time, now, max_age, .. } } => {
                let chain = self.chain.as_ref();
                let grace =
                    over(*time, *now, *max_age, chain.map_or(Duration::ZERO, Chain::stale_grace));
                // What was kept before a restart may be older than what was known then.
                if chain.is_some_and(|chain| chain.heard(digest)) {
                    grace
                } else {
                    grace.max(ASKED_WITHIN)
                }
            }
            _ => Duration::ZERO,
        }
    }

    /// The whole log as text.
    pub fn text(&self) -> Result<String, String> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(Held { text, .. }) => Ok(text.clone()),
            Err(problem) => Err(problem.clone()),
        }
    }

    /// The same in short; or why it cannot be used.
    pub fn view(&self) -> Result<View, String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Held { log, .. } = state.as_ref().map_err(Clone::clone)?;
        let (HighWater { seq, root }, (approvers, threshold)) = (log.high_water(), log.approvers());
        let witnessed = log.witnessed(now());
        let max_age_s =
            self.policy.witnessing.as_ref().filter(|_| witnessed.is_some()).map(|w| w.max_age);
        let chain = self.chain.as_ref().map(|chain| chain.view(now()));
        Ok(View {
            statements: seq,
            root: measure::hex(&root),
            approvers,
            threshold,
            witnessed,
            max_age_s,
            chain,
        })
    }

    /// Takes a longer log, or a fresher one: all of it is checked, and it must continue the one
    /// that this node has. Says how many statements there are now, and whether anything is new.
    pub async fn extend(&self, fresh: &str) -> Result<(u64, bool), ApprovalError> {
        let _alone = self.alone.lock().await;
        let known = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            // Sources say the same again and again.
            Ok(held) if held.kept && held.text == fresh => {
                return Ok((held.log.high_water().seq, false));
            }
            Ok(held) => Some((held.log.clone(), held.marked.clone(), held.kept)),
            Err(_) => None,
        };
        let (seen, marked) = match &known {
            Some((log, marked, _)) => (log.high_water(), marked.clone()),
            None => {
                let marked = self.marks.read().await?.log;
                (marked.clone(), marked)
            }
        };
        let log = Log::replay(&self.policy, fresh, &seen)?;
        let (high_water, path) = (log.high_water(), log_path(self.marks.data()));
        // An older cosignature of the same statements must not make the ledger older.
        if known.is_some_and(|(known, _, kept)| {
            kept && known.high_water() == high_water && !log.better_than(&known, now())
        }) {
            return Ok((high_water.seq, false));
        }
        let mut kept = atomic_file::write(&path, fresh.as_bytes())
            .map_err(|source| ApprovalError::Io { path, source });
        if kept.is_ok() && high_water != marked {
            kept = match self.chain_mark().await {
                Ok(chain) => self.marks.write(&Seen { log: high_water.clone(), chain }).await,
                Err(error) => Err(error),
            };
        }
        // A full disk must not keep a revocation from taking effect; an approval waits until it is
        // kept, and so does who sent it.
        self.set(Ok(match &kept {
            Ok(()) => Held { text: fresh.to_owned(), log, marked: high_water.clone(), kept: true },
            Err(_) => Held {
                text: fresh.to_owned(),
                log: log.without_approvals_after(marked.seq),
                marked,
                kept: false,
            },
        }));
        kept.map(|()| (high_water.seq, true))
    }

    /// Takes a bundle of the chain: all of it is checked. Says whether anything is new.
    pub async fn take(&self, bundle: &str) -> Result<bool, ApprovalError> {
        let _alone = self.alone.lock().await;
        let chain = self.chain.as_ref().ok_or(ApprovalError::NoChain)?;
        if !chain.usable() {
            // What could not be read may be readable now; what is not what was marked is not.
            chain.open(
                self.marks.read().await.map(|seen| seen.chain).map_err(|error| error.to_string()),
            );
        }
        let (known, kept) = chain.known()?;
        let (text, asked, now, before) =
            (bundle.to_owned(), chain.asked_for(), now(), known.clone());
        let checked = low_priority::run(move || {
            before.take_for(&text, now, &|digest| asked.contains(digest) || before.has(digest))
        })
        .await;
        let news = checked.map_err(|error| ChainError::Saved(error.to_string()))??;
        chain.hear(&news);
        // What could not be kept is tried again.
        if news == known && kept {
            return Ok(false);
        }
        let Some(kept) = chain.prepare(&news)? else {
            chain.settle(news, None);
            return Ok(true);
        };
        // Bad news takes effect even if it cannot be kept.
        let marked = match self.marked().await {
            Ok(log) => self.marks.write(&Seen { log, chain: Some(kept.mark) }).await,
            Err(error) => Err(error),
        };
        match marked {
            Ok(()) => chain.settle(news, Some(kept)),
            Err(error) => {
                chain.ahead(news);
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Up to where the log is marked.
    async fn marked(&self) -> Result<HighWater, ApprovalError> {
        let held = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .ok()
            .map(|held| held.marked.clone());
        match held {
            Some(marked) => Ok(marked),
            None => Ok(self.marks.read().await?.log),
        }
    }

    /// What is kept of the chain; of one that cannot be used, or is not followed any more, too: its
    /// mark is not to be lost.
    async fn chain_mark(&self) -> Result<Option<measure::Digest>, ApprovalError> {
        match self.chain.as_ref().and_then(Chain::mark) {
            Some(mark) => Ok(mark),
            None => Ok(self.marks.read().await?.chain),
        }
    }

    /// Why what stands in an approved image must not run: it was revoked, or nobody can tell. Not
    /// that nobody approved it by itself.
    pub fn forbids(&self, digest: &str) -> Option<Reason> {
        if let Decision::Deny(reason) = self.decide(digest) {
            match reason {
                Reason::Revoked { .. }
                | Reason::Chain { reason: ChainReason::Revoked { .. }, .. } => return Some(reason),
                _ => {}
            }
        }
        let reason = self.chain.as_ref()?.decide(digest, now()).err()?;
        let of_the_index = matches!(
            reason,
            ChainReason::Absent { .. } | ChainReason::Expired { .. } | ChainReason::NoProof { .. }
        );
        (!of_the_index).then(|| Reason::Chain { digest: digest.to_owned(), reason })
    }

    /// What the relays are asked for.
    pub fn wanted(&self) -> Option<Wanted> {
        self.chain.as_ref().map(|chain| chain.wanted(now()))
    }

    /// Changes when somebody asks for an image that the chain was not asked for yet.
    pub fn asked(&self) -> Option<watch::Receiver<()>> {
        self.chain.as_ref().map(Chain::asked)
    }

    /// Takes the log that is here for the beginning, whatever was seen before, and follows the
    /// chain from its checkpoint again. The caller records it.
    pub async fn reset(&self) -> Result<HighWater, ApprovalError> {
        let _alone = self.alone.lock().await;
        let held = self.read(&Seen::default(), true).await?;
        if let Some(chain) = &self.chain {
            chain.reset();
        }
        let mark = held.marked.clone();
        self.set(Ok(held));
        Ok(mark)
    }

    /// The longer of the image's log and the one that was kept; of two that are as long, the one
    /// that can be used. `anew`: the mark is made in any case.
    async fn read(&self, seen: &Seen, anew: bool) -> Result<Held, ApprovalError> {
        let text = |path: PathBuf| match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(ApprovalError::Io { path, source }),
        };
        let (shipped, kept) =
            (text(self.etc.join("ledger.jsonl"))?, text(log_path(self.marks.data()))?);
        let text = ledger::longer(&kept, &shipped).ok_or(ApprovalError::Fork)?;
        let (text, log) = match Log::replay(&self.policy, text, &seen.log) {
            Ok(log) => (text, log),
            // An update of the image can ask for more than the kept one has, and ship it.
            Err(error) => (
                shipped.as_str(),
                Log::replay(&self.policy, &shipped, &seen.log).map_err(|_| error)?,
            ),
        };
        let found = log.high_water();
        if anew || found != seen.log {
            self.marks.write(&Seen { log: found.clone(), chain: seen.chain }).await?;
        }
        Ok(Held { text: text.to_owned(), log, marked: found, kept: true })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn log_path(data: &Path) -> PathBuf {
    data.join("ledger.jsonl")
}

/// What runs may go on for `grace` after it became too old.
fn over(since: u64, now: u64, max_age: u64, grace: Duration) -> Duration {
    let over = now.saturating_sub(since).saturating_sub(max_age);
    if Duration::from_secs(over) > grace { Duration::ZERO } else { Duration::MAX }
}
