//! Checks of values in hex.

use crate::{ConfigProblem, InvalidValue};

/// Checks a list of keys or fingerprints: 64 lower-case hex digits each, all distinct.
pub(crate) fn check_keys(key: &str, list: &[String]) -> Result<(), ConfigProblem> {
    if let Some(other) = list.iter().find(|entry| !crate::is_lower_hex(entry, 64)) {
        return Err(InvalidValue::text("64 lower-case hex digits", other).at(key));
    }
    crate::error::check_distinct(key, list.iter())
}
