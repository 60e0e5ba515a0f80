//! The system clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the time in seconds since 1970-01-01 UTC, or 0 if the clock is set before that.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
