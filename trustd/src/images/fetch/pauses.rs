//! Hosts that asked for a pause, with 429 or 503 and `Retry-After`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::Instant;

use super::error::HttpError;
use super::host::{Host, Origin};
use crate::util::lock::lock;

/// Longest pause. A host that asks for more is asked again after it, because it may err.
const MAX_PAUSE: Duration = Duration::from_secs(3600);
/// Hosts whose pauses are remembered. Redirects can name any number of hosts.
const MAX_HOSTS: usize = 64;

/// Pauses by host.
#[derive(Clone, Default)]
pub(super) struct Pauses(Arc<Mutex<BTreeMap<Origin, Pause>>>);

struct Pause {
    status: StatusCode,
    length: Duration,
    until: Instant,
}

impl Pauses {
    /// Remembers the pause that a host asks for from `now` on.
    pub(super) fn set(&self, host: &Host, status: StatusCode, length: Duration, now: Instant) {
        let mut pauses = lock(&self.0);
        pauses.retain(|_, pause| pause.until > now);
        if pauses.len() < MAX_HOSTS {
            let length = length.min(MAX_PAUSE);
            pauses.insert(host.origin(), Pause { status, length, until: now + length });
        }
    }

    /// Checks that a host has no pause at the time `now`.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError::Busy`] if it has. Its message is the same during the whole pause, so
    /// that it is logged once.
    pub(super) fn check(&self, host: &Host, now: Instant) -> Result<(), HttpError> {
        let pauses = lock(&self.0);
        let Some(pause) = pauses.get(&host.origin()) else { return Ok(()) };
        let left = pause.until.saturating_duration_since(now);
        if left.is_zero() {
            return Ok(());
        }
        let seconds = pause.length.as_secs();
        Err(HttpError::Busy { host: host.name.clone(), status: pause.status, seconds, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded_in_length_and_number() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        let host = Host::new("h.example", None);
        assert!(pauses.check(&host, now).is_ok());
        let length = Duration::from_secs(u64::MAX);
        pauses.set(&host, StatusCode::TOO_MANY_REQUESTS, length, now);
        let error = pauses.check(&host, now).unwrap_err();
        assert!(matches!(error, HttpError::Busy { seconds: 3600, .. }), "{error}");
        for n in 0..1000 {
            let (host, length) = (Host::new(&format!("h{n}"), None), Duration::from_secs(60));
            pauses.set(&host, StatusCode::SERVICE_UNAVAILABLE, length, now);
        }
        assert_eq!(lock(&pauses.0).len(), MAX_HOSTS);
    }

    #[test]
    fn a_host_is_asked_again_after_its_pause() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        let host = Host::new("h.example", None);
        pauses.set(&host, StatusCode::TOO_MANY_REQUESTS, Duration::from_secs(7), now);
        assert!(pauses.check(&host, now + Duration::from_secs(6)).is_err());
        assert!(pauses.check(&host, now + Duration::from_secs(7)).is_ok());
    }
}
