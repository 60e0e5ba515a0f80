//! Watch of the engine's event stream.
//!
//! The stream is compared with the list of events that the engine returns on request. If the stream
//! left out events, it is opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt as _;
use tokio::task::AbortHandle;

use crate::engine::{Engine, EngineError};
use crate::util::lock::lock;

/// Delay that the stream may have.
const MAX_STREAM_DELAY_NS: i64 = 1_000_000_000;
/// Actions on a container that trustd never takes: they change it or give access to it.
const ALTERING_ACTIONS: [&str; 12] = [
    "exec_create",
    "exec_start",
    "update",
    "rename",
    "pause",
    "unpause",
    "attach",
    "archive-path",
    "extract-to-dir",
    "commit",
    "export",
    "checkpoint",
];
/// Altering actions that are stored for one container until it is inspected.
const MAX_ACTIONS: usize = 64;

/// Altering actions that the events reported, and the time of the newest event.
#[derive(Default)]
pub(super) struct EventWatch {
    /// Time of the newest event from the stream, in nanoseconds since 1970.
    newest: AtomicI64,
    /// Altering actions by container.
    actions: Mutex<BTreeMap<String, BTreeSet<String>>>,
    stream: Mutex<Option<AbortHandle>>,
}

impl EventWatch {
    /// Opens the event stream unless it is open. `wake` is called after each event.
    pub(super) fn listen(self: &Arc<Self>, engine: &Engine, wake: impl Fn() + Send + 'static) {
        let mut stream = lock(&self.stream);
        if stream.as_ref().is_some_and(|stream| !stream.is_finished()) {
            return;
        }
        self.newest.fetch_max(now_ns(), Ordering::Relaxed);
        let (watch, mut events) = (self.clone(), Box::pin(engine.events()));
        let task = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                watch.add(&event);
                wake();
            }
        });
        *stream = Some(task.abort_handle());
    }

    /// Closes the event stream.
    pub(super) fn close(&self) {
        if let Some(stream) = lock(&self.stream).take() {
            stream.abort();
        }
    }

    /// Requests the events that the stream should have delivered, adds those that it left out, and
    /// closes the stream in this case. Returns the number of missed events.
    pub(super) async fn add_missed(&self, engine: &Engine) -> Result<usize, EngineError> {
        let newest = self.newest.load(Ordering::Relaxed);
        let until = now_ns() - MAX_STREAM_DELAY_NS;
        if until <= newest {
            return Ok(0);
        }
        let events = engine.events_between(&timestamp(newest + 1), &timestamp(until)).await?;
        let is_missed = |event: &EventMessage| {
            event.time_nano.is_some_and(|time| time > self.newest.load(Ordering::Relaxed))
        };
        let missed: Vec<EventMessage> = events.into_iter().filter(is_missed).collect();
        if !missed.is_empty() {
            for event in &missed {
                self.add(event);
            }
            self.close();
        }
        Ok(missed.len())
    }

    fn add(&self, event: &EventMessage) {
        self.newest.fetch_max(event.time_nano.unwrap_or_default(), Ordering::Relaxed);
        let (Some(EventMessageTypeEnum::CONTAINER), Some(action)) = (event.typ, &event.action)
        else {
            return;
        };
        let name = action.split(':').next().unwrap_or_default();
        if ALTERING_ACTIONS.contains(&name)
            && let Some(id) = event.actor.as_ref().and_then(|actor| actor.id.clone())
        {
            let mut actions = lock(&self.actions);
            let actions = actions.entry(id).or_default();
            if actions.len() < MAX_ACTIONS {
                actions.insert(action.clone());
            }
        }
    }

    /// Removes and returns the altering actions on a container.
    pub(super) fn take_actions(&self, container: &str) -> BTreeSet<String> {
        lock(&self.actions).remove(container).unwrap_or_default()
    }

    /// Removes the actions on all containers that `keep` does not select.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.actions).retain(|container, _| keep(container));
    }
}

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|time| i64::try_from(time.as_nanos()).ok())
        .unwrap_or_default()
}

/// Formats nanoseconds since 1970 as the engine parses them.
fn timestamp(nanoseconds: i64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_the_form_that_the_engine_parses() {
        assert_eq!(timestamp(1_700_000_000_000_000_001), "1700000000.000000001");
    }
}
