//! Rate limit: a token bucket, which fills with time.

use std::time::{Duration, Instant};

/// Capacity of a bucket: the calls of this many seconds may come in one burst.
const BURST_SECONDS: u32 = 4;

/// Calls that a client may still make.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    tokens: f64,
    updated: Instant,
}

impl TokenBucket {
    /// Creates a full bucket for a rate of `per_second` calls.
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { tokens: f64::from(per_second * BURST_SECONDS), updated: now }
    }

    /// Takes the tokens of `calls` calls.
    ///
    /// # Errors
    /// Takes none and returns the time until there are enough tokens, or `None` if the bucket is
    /// too small for that number of calls.
    pub(crate) fn take(
        &mut self,
        calls: u32,
        per_second: u32,
        now: Instant,
    ) -> Result<(), Option<Duration>> {
        let capacity = f64::from(per_second) * f64::from(BURST_SECONDS);
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.tokens = (self.tokens + elapsed * f64::from(per_second)).min(capacity);
        self.updated = now;
        let missing = f64::from(calls) - self.tokens;
        if missing <= 0.0 {
            self.tokens -= f64::from(calls);
            return Ok(());
        }
        let possible = f64::from(calls) <= capacity;
        Err(possible.then(|| Duration::from_secs_f64(missing / f64::from(per_second))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = TokenBucket::new(10, start);
        for _ in 0..40 {
            assert_eq!(bucket.take(1, 10, start), Ok(()));
        }
        assert_eq!(bucket.take(1, 10, start), Err(Some(Duration::from_millis(100))));
        assert_eq!(bucket.take(1, 10, at(100)), Ok(()));
        assert!(bucket.take(1, 10, at(150)).is_err());
        assert_eq!(bucket.take(40, 10, at(100_000)), Ok(()), "at most one burst is saved");
        assert!(bucket.take(1, 10, at(100_000)).is_err());
        assert_eq!(bucket.take(41, 10, at(200_000)), Err(None), "more than the capacity");
        assert_eq!(TokenBucket::new(0, start).take(1, 0, at(1000)), Err(None));
    }
}
