//! Bound on the work that one source causes in vain.

use std::time::{Duration, Instant};

/// Length of the text that a source can have verified and refused, averaged over time. A signature
/// needs more than 200 bytes, so these are at most 160 verifications a second.
const REFUSED_BYTES_PER_SECOND: u64 = 32 * 1024;
/// Length that a source can have verified and refused at once before it has to wait.
const MAX_CREDIT_BYTES: i64 = 1 << 20;

/// Account of one source. It can be overdrawn once, because the length of a text is not known in
/// advance; then the source is not asked until the debt is paid off by time.
pub(super) struct SourceBudget {
    credit: i64,
    /// Time of `credit`.
    at: Instant,
}

impl SourceBudget {
    /// Makes an account with the greatest credit.
    pub(super) fn new(now: Instant) -> Self {
        Self { credit: MAX_CREDIT_BYTES, at: now }
    }

    /// Returns how long the source has to wait, or `None` if it may be asked.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs();
        let earned = i64::try_from(passed.saturating_mul(REFUSED_BYTES_PER_SECOND));
        self.credit = self.credit.saturating_add(earned.unwrap_or(i64::MAX)).min(MAX_CREDIT_BYTES);
        // The rest of a second counts the next time.
        self.at += Duration::from_secs(passed);
        let debt = u64::try_from(self.credit.saturating_neg()).ok().filter(|debt| *debt > 0)?;
        Some(Duration::from_secs(debt.div_ceil(REFUSED_BYTES_PER_SECOND)))
    }

    /// Charges text that was verified in vain.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_waits_until_its_debt_is_paid_off() {
        let start = Instant::now();
        let mut budget = SourceBudget::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(budget.wait(start), None);
        budget.charge(1 << 20);
        assert_eq!(budget.wait(start), None, "the credit is used up and not overdrawn");
        budget.charge(64 << 20);
        assert_eq!(budget.wait(start), Some(Duration::from_secs(2048)));
        assert_eq!(budget.wait(after(2047)), Some(Duration::from_secs(1)));
        assert_eq!(budget.wait(after(2048)), None);
        budget.charge(1);
        assert!(budget.wait(after(2048)).is_some());
        // The credit does not grow without end.
        assert_eq!(budget.wait(after(1_000_000)), None);
        budget.charge((1 << 20) + 1);
        assert_eq!(budget.wait(after(1_000_000)), Some(Duration::from_secs(1)));
        budget.charge(u64::MAX);
        assert!(budget.wait(after(1_000_000)).is_some());
    }
}
