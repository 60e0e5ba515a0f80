//! How many calls somebody may make: a bucket that fills with time (token bucket).

use std::time::{Duration, Instant};

/// So many seconds' worth may come at once.
const BURST_S: u32 = 4;

/// What is left of a quota.
#[derive(Debug)]
pub(crate) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(per_s: u32, now: Instant) -> Self {
        Self { left: f64::from(per_s * BURST_S), at: now }
    }

    /// Takes `calls` if they are there; otherwise says after which time they would be, none if they
    /// never are.
    pub(crate) fn take(
        &mut self,
        calls: u32,
        per_s: u32,
        now: Instant,
    ) -> Result<(), Option<Duration>> {
        let most = f64::from(per_s) * f64::from(BURST_S);
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(per_s);
        (self.left, self.at) = ((self.left + gained).min(most), now);
        let missing = f64::from(calls) - self.left;
        if missing <= 0.0 {
            self.left -= f64::from(calls);
            return Ok(());
        }
        let possible = f64::from(calls) <= most;
        Err(possible.then(|| Duration::from_secs_f64(missing / f64::from(per_s))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_empties_and_fills_again() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(10, start);
        for _ in 0..40 {
            assert_eq!(bucket.take(1, 10, start), Ok(()));
        }
        assert_eq!(bucket.take(1, 10, start), Err(Some(Duration::from_millis(100))));
        assert_eq!(bucket.take(1, 10, at(100)), Ok(()));
        assert!(bucket.take(1, 10, at(150)).is_err());
        assert_eq!(bucket.take(40, 10, at(100_000)), Ok(()), "no more than a burst is saved up");
        assert!(bucket.take(1, 10, at(100_000)).is_err());
        assert_eq!(bucket.take(41, 10, at(200_000)), Err(None), "never");
        assert_eq!(Bucket::new(0, start).take(1, 0, at(1000)), Err(None));
    }
}
