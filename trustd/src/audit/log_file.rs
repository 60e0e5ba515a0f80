//! Files of the audit log: one record per line, and the hash chain of the persistent log.

use std::path::Path;

use measure::{Record, hex, parse_log};
use sha2::{Digest as _, Sha256};

use super::error::AuditError;
use crate::util::atomic_file;

/// Reads a log.
///
/// # Errors
/// [`AuditError::Io`] if the file cannot be read, [`AuditError::Log`] if it is not a log.
pub(super) fn read(path: &Path) -> Result<Vec<Record>, AuditError> {
    let text = std::fs::read_to_string(path).map_err(io_error(path))?;
    parse_log(&text, 0).map_err(|source| AuditError::Log { path: path.to_owned(), source })
}

/// Removes an incomplete last line, which a kill while a line was appended leaves, and reads the
/// rest. The intent file still has the whole record.
///
/// # Errors
/// [`AuditError`] as for [`read`], and [`AuditError::Io`] if the file cannot be written.
pub(super) fn read_complete_lines(path: &Path) -> Result<Vec<Record>, AuditError> {
    let text = std::fs::read_to_string(path).map_err(io_error(path))?;
    let complete = text.rfind('\n').map_or(0, |n| n + 1);
    if complete < text.len() {
        atomic_file::write(path, &text.as_bytes()[..complete]).map_err(io_error(path))?;
    }
    read(path)
}

/// Appends a record.
///
/// # Errors
/// [`AuditError::Io`].
pub(super) fn append(path: &Path, record: &Record) -> Result<(), AuditError> {
    atomic_file::append(path, record.line().as_bytes()).map_err(io_error(path))
}

/// Returns the hash of all lines up to and including `line`, given the hash of those before it.
pub(super) fn extend_chain(head: &str, line: &str) -> String {
    hex(&Sha256::new().chain_update(head.as_bytes()).chain_update(line.as_bytes()).finalize())
}

/// Adds the path to an I/O error.
pub(super) fn io_error(path: &Path) -> impl Fn(std::io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io { path: path.clone(), source }
}
