//! Gates: from the moment at which a container's gate is closed, its connections carry no answer.
//!
//! Invariants:
//! - A gate that was closed is never opened again. The ID of a container is never used again.
//! - Closing waits for nothing: no lock is held while an answer is computed or written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::util::lock::lock;

/// Gate of one container.
pub(super) struct Gate(watch::Sender<bool>);

impl Default for Gate {
    /// Creates an open gate.
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Gate {
    fn close(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the gate is closed.
    pub(super) async fn closed(&self) {
        // An error means that the sender is gone, but `self` has it.
        let _ = self.0.subscribe().wait_for(|closed| *closed).await;
    }
}

/// Gates of all containers by ID.
#[derive(Default)]
pub(super) struct Gates(Mutex<BTreeMap<String, Arc<Gate>>>);

impl Gates {
    /// Returns the gate of a container, which is open unless it was closed.
    pub(super) fn get(&self, container: &str) -> Arc<Gate> {
        lock(&self.0).entry(container.to_owned()).or_default().clone()
    }

    /// Closes the gate of a container, also of one that has not connected yet.
    pub(super) fn close(&self, container: &str) {
        self.get(container).close();
    }

    /// Forgets the gates of all containers that `keep` does not select, and closes them.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.0).retain(|container, gate| {
            let is_kept = keep(container);
            if !is_kept {
                gate.close();
            }
            is_kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_stays_closed_until_the_container_is_forgotten() {
        let gates = Gates::default();
        let (a, b) = (gates.get("a"), gates.get("b"));
        gates.close("a");
        gates.close("c");
        assert!(a.is_closed() && gates.get("a").is_closed() && gates.get("c").is_closed());
        assert!(!b.is_closed() && !gates.get("b").is_closed());
        gates.retain(|container| container == "a");
        assert!(b.is_closed(), "a connection of a container that is gone is still answered");
        assert!(gates.get("a").is_closed());
    }

    #[tokio::test]
    async fn all_that_wait_for_a_gate_are_woken() {
        let gate = Arc::new(Gate::default());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let gate = gate.clone();
                tokio::spawn(async move { gate.closed().await })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.close();
        for task in waiting {
            task.await.unwrap();
        }
        gate.closed().await;
    }
}
