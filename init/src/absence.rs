//! Absence of a service that watches control groups.
//!
//! A service that watches groups reports this to init at short intervals. A service that cannot
//! start, that ended, or that hangs does not. After a stated time without a report, init kills the
//! processes of the groups, and repeats this until the next report.
//!
//! Invariant: the decision depends only on the reports and on the time that the caller passes.

use std::time::{Duration, Instant};

/// Time between two kills during one absence.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Absence that has lasted too long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overdue {
    /// Time since the last report.
    pub(crate) absent: Duration,
    /// Whether this is the first kill of the absence.
    pub(crate) is_first: bool,
}

/// What is known of one service's reports.
#[derive(Debug)]
pub(crate) struct Absence {
    limit: Duration,
    last_report: Instant,
    last_kill: Option<Instant>,
    /// Whether processes were killed that may still be there.
    is_ending: bool,
}

impl Absence {
    /// Creates the state at the time `now`, which counts as the first report.
    pub(crate) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, last_report: now, last_kill: None, is_ending: false }
    }

    /// Notes a report.
    pub(crate) fn report(&mut self, now: Instant) {
        (self.last_report, self.last_kill) = (now, None);
    }

    /// Returns what to report if the processes are to be killed now.
    pub(crate) fn check(&mut self, now: Instant) -> Option<Overdue> {
        let absent = now.saturating_duration_since(self.last_report);
        let was_just_killed = self
            .last_kill
            .is_some_and(|kill| now.saturating_duration_since(kill) < REPEAT_INTERVAL);
        if absent < self.limit || was_just_killed {
            return None;
        }
        let is_first = self.last_kill.replace(now).is_none();
        self.is_ending = true;
        Some(Overdue { absent, is_first })
    }

    /// Notes that the groups have no processes. Returns whether they were killed.
    pub(crate) fn note_empty(&mut self) -> bool {
        std::mem::take(&mut self.is_ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn seconds(tenths: u64) -> Duration {
        Duration::from_millis(tenths * 100)
    }

    #[test]
    fn nothing_is_killed_while_the_service_reports() {
        let start = Instant::now();
        let mut absence = Absence::new(LIMIT, start);
        for tenths in 0..2000 {
            // The longest pause between two reports is just below the limit.
            if tenths % 299 == 0 {
                absence.report(start + seconds(tenths));
            }
            assert_eq!(absence.check(start + seconds(tenths)), None, "{tenths}");
        }
    }

    #[test]
    fn an_absent_service_has_its_groups_killed_at_a_bounded_rate() {
        let start = Instant::now();
        let mut absence = Absence::new(LIMIT, start);
        absence.report(start + seconds(50));
        let kills: Vec<(u64, bool)> = (0..400)
            .filter_map(|t| Some((t, absence.check(start + seconds(t))?.is_first)))
            .collect();
        assert_eq!(kills, [(350, true), (360, false), (370, false), (380, false), (390, false)]);
    }

    #[test]
    fn a_service_that_never_starts_is_absent_from_the_beginning() {
        let start = Instant::now();
        let mut absence = Absence::new(LIMIT, start);
        assert_eq!(absence.check(start + seconds(299)), None);
        let overdue = Overdue { absent: LIMIT, is_first: true };
        assert_eq!(absence.check(start + seconds(300)), Some(overdue));
    }

    #[test]
    fn a_report_ends_the_absence() {
        let start = Instant::now();
        let mut absence = Absence::new(LIMIT, start);
        assert!(!absence.note_empty());
        assert!(absence.check(start + seconds(300)).is_some());
        assert!(absence.note_empty() && !absence.note_empty());
        absence.report(start + seconds(301));
        assert_eq!(absence.check(start + seconds(600)), None);
        assert!(absence.check(start + seconds(601)).is_some());
    }
}
