//! The two forms of a command's output, text and JSON, and the error for a negative result.

use anyhow::Result;
use serde::Serialize;

/// A negative result: the command ran to its end and the answer is no. Exit status 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NegativeResult(pub(crate) String);

impl NegativeResult {
    /// Makes a negative result of an error and its causes.
    pub(crate) fn from_error(error: impl Into<anyhow::Error>) -> Self {
        Self(format!("{:#}", error.into()))
    }
}

/// Prints a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a result: `value` as JSON on one line, or else `text`.
pub(crate) fn print_result(
    as_json: bool,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<()> {
    println!("{}", if as_json { serde_json::to_string(value)? } else { text() });
    Ok(())
}
