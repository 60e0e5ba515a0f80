//! What one source may use for one blob or one file: requests, bytes and time.
//!
//! Invariant: every request and every received chunk is taken from a budget. A source that breaks
//! off, redirects, sends wrong ranges or asks for tokens without end therefore ends itself, and the
//! next source is tried.

use std::time::Duration;

use tokio::time::Instant;

use super::error::{BudgetPart, HttpError};

/// Requests to a source for one blob, including redirects and requests for tokens.
const MAX_REQUESTS: u32 = 64;
/// How many times a source may send the size of a blob. A source without ranges sends it again
/// after each interruption.
const MAX_TRANSFERS: u64 = 3;
/// Bytes of errors, tokens and redirects, in addition to the blob.
const EXTRA_BYTES: u64 = 1 << 20;
/// Time for one blob, as a multiple of the stall timeout, in addition to its transfer.
const BASE_TIME_STALLS: u32 = 10;
/// Average speed below which a source uses up its time, in bytes for each second.
const MIN_AVERAGE_SPEED: u64 = 32 << 10;

/// What is left for a source.
#[derive(Debug)]
pub(super) struct Budget {
    requests: u32,
    bytes: u64,
    deadline: Instant,
}

impl Budget {
    /// Returns the budget for a blob of `size` bytes, or for a file of at most that size.
    pub(super) fn new(size: u64, stall_timeout: Duration) -> Self {
        let transfer = Duration::from_secs(size / MIN_AVERAGE_SPEED);
        Self {
            requests: MAX_REQUESTS,
            bytes: size.saturating_mul(MAX_TRANSFERS).saturating_add(EXTRA_BYTES),
            deadline: Instant::now() + stall_timeout * BASE_TIME_STALLS + transfer,
        }
    }

    /// Takes one request to `host`.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError::Budget`] if no request or no time is left.
    pub(super) fn take_request(&mut self, host: &str) -> Result<(), HttpError> {
        self.check_time(host)?;
        self.requests =
            self.requests.checked_sub(1).ok_or_else(|| exhausted(host, BudgetPart::Requests))?;
        Ok(())
    }

    /// Takes received bytes of a body.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError::Budget`] if fewer bytes or no time is left.
    pub(super) fn take_bytes(&mut self, host: &str, count: usize) -> Result<(), HttpError> {
        self.check_time(host)?;
        self.bytes = self
            .bytes
            .checked_sub(count as u64)
            .ok_or_else(|| exhausted(host, BudgetPart::Bytes))?;
        Ok(())
    }

    /// Returns the time that is left.
    pub(super) fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn check_time(&self, host: &str) -> Result<(), HttpError> {
        if self.time_left().is_zero() { Err(exhausted(host, BudgetPart::Time)) } else { Ok(()) }
    }
}

fn exhausted(host: &str, part: BudgetPart) -> HttpError {
    HttpError::Budget { host: host.to_owned(), part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_budget_ends() {
        let stall_timeout = Duration::from_secs(30);
        let part = |result: Result<(), HttpError>| match result.unwrap_err() {
            HttpError::Budget { part, .. } => part,
            other => panic!("{other}"),
        };
        let mut budget = Budget::new(1000, stall_timeout);
        for _ in 0..MAX_REQUESTS {
            budget.take_request("h").unwrap();
        }
        assert_eq!(part(budget.take_request("h")), BudgetPart::Requests);
        budget.take_bytes("h", 3000 + (1 << 20)).unwrap();
        assert_eq!(part(budget.take_bytes("h", 1)), BudgetPart::Bytes);
        let mut late = Budget { deadline: Instant::now(), ..Budget::new(0, stall_timeout) };
        assert_eq!(part(late.take_request("h")), BudgetPart::Time);
        assert_eq!(part(late.take_bytes("h", 0)), BudgetPart::Time);
        // 64 MiB at the slowest average speed.
        let left = Budget::new(64 << 20, stall_timeout).time_left().as_secs();
        assert!((2300..=2348).contains(&left), "{left}");
    }
}
