//! One module as trustd sees it: what is desired, what became of it, and when it is tried again.

use std::time::Duration;

use deployment::DesiredState;
use serde::Serialize;
use tokio::time::Instant;

use super::desired::{Kept, Record};
use crate::images::fetch::{Progress, Watched};

/// After a start that failed, a module waits this long, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A module that ran this long has its earlier failures forgotten.
const STABLE: Duration = Duration::from_secs(60);

/// What became of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Not looked at yet, or not before something else.
    Waiting {
        reason: String,
    },
    /// Its image is on its way.
    Fetching,
    /// It runs and is not healthy yet.
    Starting {
        container: String,
    },
    Running {
        container: String,
    },
    /// As its owner specs.
    Stopped,
    /// The ledger forbids it, or its image is not what it should be.
    Refused {
        reason: String,
    },
    /// It may run and does not.
    Failed {
        reason: String,
    },
}

pub struct Unit {
    pub record: Record,
    pub state: State,
    /// Why the newest spec is not what runs.
    pub trouble: Option<String>,
    pub progress: Watched,
    /// The manifest's digest of each version that the engine has, by fingerprint.
    pub(super) loaded: std::collections::BTreeMap<String, String>,
    /// What was said in the audit log of this spec, and need not be said again.
    pub(super) said: std::collections::BTreeSet<String>,
    /// Somebody works on it.
    pub(super) busy: bool,
    since: Instant,
    pause: Duration,
    not_before: Option<Instant>,
    pub restarts: u64,
}

/// What a module's owner sees.
#[derive(Debug, Serialize)]
pub struct View {
    pub name: String,
    pub desired: DesiredState,
    pub generation: u64,
    /// What was asked for.
    pub digest: String,
    /// The module's file that is in force, and what `rollback` goes back to.
    pub toml: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    pub status: State,
    /// What was desired last is what runs.
    pub reconciled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    pub restarts: u64,
}

#[derive(Debug, Serialize)]
pub struct Previous {
    pub digest: String,
    pub toml: String,
}

impl Unit {
    pub fn new(record: Record) -> Self {
        let trouble = record.rolled_back().map(str::to_owned);
        Self {
            record,
            state: State::Waiting { reason: "not looked at yet".into() },
            trouble,
            progress: Watched::default(),
            loaded: Default::default(),
            said: Default::default(),
            busy: false,
            since: Instant::now(),
            pause: FIRST_PAUSE,
            not_before: None,
            restarts: 0,
        }
    }

    /// What should run: the newest spec, or the last good one if that was rolled back.
    pub fn target(&self) -> Option<&Kept> {
        let now = self.record.now.as_ref()?;
        match &self.record.good {
            Some(good)
                if now.desired == DesiredState::Run && self.record.rolled_back().is_some() =>
            {
                Some(good)
            }
            _ => Some(now),
        }
    }

    /// Whether the target was healthy before: then there is nothing to go back to.
    pub fn proven(&self) -> bool {
        match (self.target(), &self.record.good) {
            (Some(target), Some(good)) => target.fingerprint() == good.fingerprint(),
            _ => false,
        }
    }

    pub fn desired(&mut self, kept: Kept) {
        self.record.now = Some(kept);
        self.record.failed = None;
        self.trouble = None;
        self.said.clear();
        (self.pause, self.not_before) = (FIRST_PAUSE, None);
    }

    /// It runs; once it has for a while, earlier failures are forgotten.
    pub fn running(&mut self, container: &str) {
        if !matches!(&self.state, State::Running { container: c } if c == container) {
            self.state = State::Running { container: container.to_owned() };
            self.since = Instant::now();
        } else if self.since.elapsed() >= STABLE {
            self.pause = FIRST_PAUSE;
        }
        self.not_before = None;
    }

    /// Nothing is tried with this module for a while, longer each time.
    pub fn pause(&mut self) {
        self.not_before = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// A short while, not longer each time: it is not its fault.
    pub fn rest(&mut self) {
        self.not_before = Some(Instant::now() + FIRST_PAUSE);
    }

    pub fn resting(&self) -> bool {
        self.not_before.is_some_and(|t| Instant::now() < t)
    }

    pub fn view(&self, name: &str) -> Option<View> {
        let now = self.record.now.as_ref()?;
        let older = [&self.record.good, &self.record.before].into_iter().flatten();
        let previous = older.into_iter().find(|kept| kept.fingerprint() != now.fingerprint());
        Some(View {
            name: name.to_owned(),
            desired: now.desired,
            generation: now.generation,
            digest: now.source.digest.clone(),
            toml: self.target().unwrap_or(now).toml.clone(),
            previous: previous.map(|kept| Previous {
                digest: kept.source.digest.clone(),
                toml: kept.toml.clone(),
            }),
            status: self.state.clone(),
            reconciled: matches!(self.state, State::Running { .. })
                && self.proven()
                && self.trouble.is_none(),
            trouble: self.trouble.clone(),
            progress: matches!(self.state, State::Fetching).then(|| self.progress.look()),
            restarts: self.restarts,
        })
    }
}
