//! State that the enforcement thread shares with the rest of the modules' controller.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::util::lock::lock;

/// Wakes and ends the enforcement thread.
#[derive(Default)]
pub(super) struct Wakeup {
    signal: Mutex<Signal>,
    condition: Condvar,
}

#[derive(Default)]
struct Signal {
    is_woken: bool,
    /// Number of the thread that may run. A thread ends when another one starts.
    thread: u64,
}

impl Wakeup {
    /// Starts the next pass now.
    pub(super) fn wake(&self) {
        lock(&self.signal).is_woken = true;
        self.condition.notify_all();
    }

    /// Ends the thread, if there is one, and returns the number of the next.
    pub(super) fn next_thread(&self) -> u64 {
        let mut signal = lock(&self.signal);
        signal.thread += 1;
        self.condition.notify_all();
        signal.thread
    }

    /// Waits until it is woken or the time is over. Returns `false` if the thread must end.
    pub(super) fn wait(&self, thread: u64, timeout: Duration) -> bool {
        let wait = |signal: &mut Signal| !signal.is_woken && signal.thread == thread;
        let (mut signal, _) = self
            .condition
            .wait_timeout_while(lock(&self.signal), timeout, wait)
            .unwrap_or_else(PoisonError::into_inner);
        signal.is_woken = false;
        signal.thread == thread
    }
}

/// Container whose denial has taken effect, until it is removed.
pub(super) struct Ending {
    /// Time from which its control group is killed.
    pub(super) kill_at: Instant,
    /// Last problem of sending a request to init.
    pub(super) problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_thread_wakes_at_once_and_ends_when_another_one_starts() {
        let wakeup = Arc::new(Wakeup::default());
        let (first, long) = (wakeup.next_thread(), Duration::from_secs(60));
        wakeup.wake();
        assert!(wakeup.wait(first, long));
        assert!(wakeup.wait(first, Duration::from_millis(1)), "the time is over");
        let waiting = std::thread::spawn({
            let wakeup = wakeup.clone();
            move || wakeup.wait(first, long)
        });
        let second = wakeup.next_thread();
        assert!(!waiting.join().unwrap());
        assert!(wakeup.wait(second, Duration::from_millis(1)));
    }
}
