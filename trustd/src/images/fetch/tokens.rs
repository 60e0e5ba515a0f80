//! Authorization that hosts have accepted, until it expires.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::http::HeaderValue;
use tokio::time::Instant;

use super::host::Origin;
use crate::util::lock::lock;

/// Cached values. Redirects can name any number of hosts.
const MAX_TOKENS: usize = 128;
/// Longest time for which a value is cached.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// What a value is for. A value that was given for the registry's password is not used for a host
/// that a redirect leads to, even if it is the same host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TokenKey {
    pub(super) origin: Origin,
    pub(super) is_own: bool,
    pub(super) repository: String,
}

/// Value of the authorization header.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) value: HeaderValue,
    pub(super) lifetime: Duration,
}

/// Values of the authorization header.
#[derive(Clone, Default)]
pub(super) struct TokenCache(Arc<Mutex<BTreeMap<TokenKey, (HeaderValue, Instant)>>>);

impl TokenCache {
    /// Returns a value that has not expired at the time `now`.
    pub(super) fn get(&self, key: &TokenKey, now: Instant) -> Option<HeaderValue> {
        let tokens = lock(&self.0);
        let (value, until) = tokens.get(key)?;
        (*until > now).then(|| value.clone())
    }

    /// Remembers a value that was accepted at the time `now`.
    pub(super) fn set(&self, key: TokenKey, authorization: &Authorization, now: Instant) {
        let mut tokens = lock(&self.0);
        tokens.retain(|_, (_, until)| *until > now);
        if tokens.len() < MAX_TOKENS {
            let until = now + authorization.lifetime.min(MAX_LIFETIME);
            tokens.insert(key, (authorization.value.clone(), until));
        }
    }

    pub(super) fn remove(&self, key: &TokenKey) {
        lock(&self.0).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize, is_own: bool) -> TokenKey {
        TokenKey { origin: (format!("h{n}"), true), is_own, repository: "a".into() }
    }

    #[test]
    fn tokens_are_bounded_in_time_and_number() {
        let (cache, now) = (TokenCache::default(), Instant::now());
        let authorization = |seconds| Authorization {
            value: HeaderValue::from_static("Bearer x"),
            lifetime: Duration::from_secs(seconds),
        };
        cache.set(key(0, true), &authorization(u64::MAX), now);
        assert!(cache.get(&key(0, true), now).is_some());
        assert!(cache.get(&key(0, false), now).is_none());
        let later = now + Duration::from_secs(3600);
        assert!(cache.get(&key(0, true), later).is_none());
        (0..1000).for_each(|n| cache.set(key(n, true), &authorization(60), later));
        assert_eq!(lock(&cache.0).len(), MAX_TOKENS);
    }
}
