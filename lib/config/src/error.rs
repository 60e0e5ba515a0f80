//! Errors of configuration files, in the form "KEY: expected X, found Y".

use std::fmt::{self, Display};

/// Error of parsing or checking a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The TOML parser rejects the text, or a value in it.
    #[error("{file}{}: {message}", position.map(|p| format!(", {p}")).unwrap_or_default())]
    Toml {
        /// Name of the file.
        file: String,
        /// Start of the rejected text, if the parser can tell.
        position: Option<Position>,
        /// The parser's message, or a [`ConfigProblem`] as text.
        message: String,
    },
    /// A value is not allowed.
    #[error("{file}: {problem}")]
    Setting {
        /// Name of the file.
        file: String,
        /// The rejected value.
        problem: ConfigProblem,
    },
}

impl ConfigError {
    pub(crate) fn from_toml(file: &str, text: &str, error: &toml::de::Error) -> Self {
        // The check of a whole file reports the whole file, which is no position.
        let start = error.span().filter(|span| *span != (0..text.len())).map(|span| span.start);
        let position = start.and_then(|start| Position::of(text, start));
        let message = match start.and_then(|start| key_before(text, start)) {
            Some(key) => format!("{key}: {}", error.message()),
            None => error.message().to_owned(),
        };
        Self::Toml { file: file.to_owned(), position, message }
    }

    pub(crate) fn setting(file: &str, problem: ConfigProblem) -> Self {
        Self::Setting { file: file.to_owned(), problem }
    }
}

/// Returns the key of the value at a byte offset, if both are on the same line. The parser's message
/// about a value does not name its key.
fn key_before(text: &str, offset: usize) -> Option<&str> {
    let line = text.get(..offset)?.rsplit('\n').next()?;
    line.split_once('=').map(|(key, _)| key.trim())
}

/// Place in a text, as editors count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1 on.
    pub line: usize,
    /// Column in characters, from 1 on.
    pub column: usize,
}

impl Position {
    /// Converts a byte offset; returns `None` if it is not inside of `text`.
    fn of(text: &str, offset: usize) -> Option<Self> {
        let before = text.get(..offset)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[line_start..].chars().count() + 1;
        Some(Self { line: before.matches('\n').count() + 1, column })
    }
}

impl Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A key whose value is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {value}")]
pub struct ConfigProblem {
    /// Path of the key, such as `ledger.threshold`.
    pub key: String,
    /// The rejected value.
    pub value: InvalidValue,
}

/// A value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    /// Description of the allowed values.
    pub expected: String,
    /// The rejected value; texts are quoted.
    pub found: String,
    /// The part of the value that is wrong, where that is not obvious.
    pub reason: Option<&'static str>,
}

impl InvalidValue {
    /// Describes a rejected value; `found` is printed as it is.
    pub(crate) fn new(expected: impl Into<String>, found: impl Display) -> Self {
        Self { expected: expected.into(), found: found.to_string(), reason: None }
    }

    /// Describes a rejected text, which is quoted.
    pub(crate) fn text(expected: impl Into<String>, found: &str) -> Self {
        Self::new(expected, format_args!("{found:?}"))
    }

    pub(crate) fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// Adds the key that has the value.
    pub(crate) fn at(self, key: impl Into<String>) -> ConfigProblem {
        ConfigProblem { key: key.into(), value: self }
    }
}

impl Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)?;
        self.reason.map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

impl std::error::Error for InvalidValue {}

/// Checks that a number is in a range.
pub(crate) fn check_range<T: PartialOrd + Display>(
    key: &str,
    range: std::ops::RangeInclusive<T>,
    found: &T,
) -> Result<(), ConfigProblem> {
    if range.contains(found) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(InvalidValue::new(expected, found).at(key))
}

/// Checks that a number is not zero.
pub(crate) fn check_positive(key: &str, found: u64) -> Result<(), ConfigProblem> {
    if found == 0 { Err(InvalidValue::new("at least 1", found).at(key)) } else { Ok(()) }
}

/// Checks that no entry of a list occurs twice.
pub(crate) fn check_distinct<T: PartialEq + fmt::Debug>(
    key: &str,
    list: impl Iterator<Item = T>,
) -> Result<(), ConfigProblem> {
    let mut earlier = Vec::new();
    for item in list {
        if earlier.contains(&item) {
            let found = format!("{item:?} twice");
            return Err(InvalidValue::new("distinct entries", found).at(key));
        }
        earlier.push(item);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{Module, Service, parse};

    #[test]
    fn an_error_of_the_schema_names_file_line_and_column() {
        let error = parse::<Service>("netd.toml", "exec = []\ncolour = 1\n").unwrap_err();
        assert!(
            error.to_string().starts_with("netd.toml, line 2, column 1: unknown field `colour`"),
            "{error}"
        );
    }

    #[test]
    fn an_error_of_a_type_names_file_position_and_key() {
        let error = parse::<Service>("netd.toml", "exec = []\nuser = \"root\"\n").unwrap_err();
        assert!(
            error.to_string().starts_with("netd.toml, line 2, column 8: user: invalid type"),
            "{error}"
        );
    }

    #[test]
    fn an_error_of_a_value_names_file_key_and_value() {
        let text = format!("pids = 0\n[image]\ndigest = \"sha256:{}\"\n", "a".repeat(64));
        let error = parse::<Module>("demo.toml", &text).unwrap_err().to_string();
        assert_eq!(error, "demo.toml: pids: expected 1 to 4096, found 0");
    }
}
