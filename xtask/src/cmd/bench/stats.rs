//! Times from the console, and medians.

use anyhow::{Context as _, Result};

/// Returns the time at the start of a console line, in seconds since the kernel started:
/// `basalt[   1.234] …`.
///
/// # Errors
///
/// Fails if the line has no such time.
pub fn seconds(line: &str) -> Result<f64> {
    let (_, rest) = line.split_once("basalt[").context("no time in the line")?;
    let (time, _) = rest.split_once(']').context("no time in the line")?;
    Ok(time.trim().parse()?)
}

/// Sorts the values and returns the median. Panics if there are none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
