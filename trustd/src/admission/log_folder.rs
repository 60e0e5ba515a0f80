//! The persisted log on the data partition.
//!
//! Invariants:
//! - `ledger-head.json` names the file with the entries, the number of its bytes that count, and
//!   the checkpoint. Replacing this small file is the step from one log to the next. A kill before
//!   it leaves the old log, a kill after it the new one.
//! - Entries are written and synchronized before the head that counts them. Bytes that the head
//!   does not count are removed before others are appended.
//! - Bytes that a head counts never change. A log with other bytes gets a file of its own.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::AdmissionError;
use super::spool::Spool;
use super::stored_log::StoredLog;
use crate::util::atomic_file;
use crate::util::failpoint::fail_point;

/// The temporary file next to it must not be that of the high-water mark.
const HEAD: &str = "ledger-head.json";
/// File of a log without a head: entries and checkpoint in one text.
const TEXT: &str = "ledger.jsonl";
const SPOOL: &str = "ledger.incoming";

/// Content of `ledger-head.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    /// Number of the file with the entries.
    file: u64,
    /// Number of the file's bytes that count.
    length: u64,
}

/// A new text of a log: the first `common` bytes of a stored log, then other entries.
pub(super) struct NewText {
    pub(super) common: u64,
    pub(super) entries: Spool,
    pub(super) checkpoint: Option<String>,
}

/// The folder with the persisted log. Its methods block.
pub(super) struct LogFolder {
    data: PathBuf,
    /// Number of the newest write.
    newest_write: u64,
}

/// Returns where a spool below `data` can have its file.
pub(super) fn spool_path(data: &Path, number: u64) -> PathBuf {
    data.join(format!("{SPOOL}.{number}"))
}

fn entries_name(number: u64) -> String {
    format!("ledger.{number}.jsonl")
}

/// Returns the number of a file with entries.
fn entries_number(name: &str) -> Option<u64> {
    name.strip_prefix("ledger.")?.strip_suffix(".jsonl")?.parse().ok()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AdmissionError {
    let path = path.to_owned();
    move |source| AdmissionError::Io { path, source }
}

impl LogFolder {
    pub(super) fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), newest_write: 0 }
    }

    /// Opens the persisted log and removes what a kill left of a step that was not completed.
    ///
    /// # Errors
    /// [`AdmissionError::Io`] if a file cannot be read or is not the one that the head describes.
    pub(super) fn open(&self) -> Result<StoredLog, AdmissionError> {
        let log = match self.read_head()? {
            None => {
                let path = self.data.join(TEXT);
                StoredLog::open_text(&path).map_err(failed(&path))?
            }
            Some(Head { checkpoint, file, length }) => {
                let path = self.data.join(entries_name(file));
                StoredLog::open(&path, length, checkpoint).map_err(failed(&path))?
            }
        };
        self.remove_files_except(&log.path);
        Ok(log)
    }

    fn read_head(&self) -> Result<Option<Head>, AdmissionError> {
        let path = self.data.join(HEAD);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed(&path))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| failed(&path)(error.into()))
    }

    fn remove_files_except(&self, keep: &Path) {
        for (path, name) in self.files() {
            let is_ours = entries_number(&name).is_some() || name.starts_with(SPOOL);
            // The text without a head is older than every head.
            if (is_ours || name == TEXT) && path != keep {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let entries = std::fs::read_dir(&self.data).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)))
    }

    /// Writes a log that shares its beginning with `known`. If it continues all of `known`, and the
    /// disk has no newer state than `known` (`can_append`), only the difference is written. Writes
    /// are numbered, because one that hung can begin after a later one.
    ///
    /// # Errors
    /// [`AdmissionError::Io`]. The disk then has the old log or the new one.
    /// [`AdmissionError::Superseded`] if a write with a greater number began before.
    pub(super) fn write(
        &mut self,
        number: u64,
        known: &StoredLog,
        new: NewText,
        can_append: bool,
    ) -> Result<StoredLog, AdmissionError> {
        if number < self.newest_write {
            return Err(AdmissionError::Superseded);
        }
        self.newest_write = number;
        let NewText { common, entries, checkpoint } = new;
        let length = common + entries.len();
        let append = can_append && known.is_appendable && common == known.entries_len;
        let path = if append { known.path.clone() } else { self.unused_path() };
        let (new_entries, is_longer) = (entries, length > known.entries_len);
        let written = || -> io::Result<()> {
            let mut entries = new_entries.into_reader()?;
            if append {
                return if is_longer { append_at(&path, common, &mut entries) } else { Ok(()) };
            }
            let mut options = File::options();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            io::copy(&mut known.entries(0, common).chain(entries), &mut file)?;
            file.sync_all()?;
            atomic_file::sync_folder(&path)
        };
        written().map_err(failed(&path))?;
        fail_point("log-written");
        let name = path.file_name().and_then(|name| name.to_str()).and_then(entries_number);
        let head = Head { checkpoint: checkpoint.clone(), file: name.unwrap_or_default(), length };
        let head_path = self.data.join(HEAD);
        let text = serde_json::to_vec(&head).map_err(|error| failed(&head_path)(error.into()))?;
        atomic_file::write(&head_path, &text).map_err(failed(&head_path))?;
        fail_point("log-head");
        let stored = StoredLog::open(&path, length, checkpoint).map_err(failed(&path))?;
        if !append {
            self.remove_files_except(&path);
        }
        Ok(stored)
    }

    /// Returns the path of a file with entries that does not exist yet.
    fn unused_path(&self) -> PathBuf {
        let last = self.files().filter_map(|(_, name)| entries_number(&name)).max();
        self.data.join(entries_name(last.map_or(1, |last| last.saturating_add(1))))
    }
}

/// Replaces everything after the first `at` bytes of a file, and synchronizes it.
fn append_at(path: &Path, at: u64, entries: &mut impl Read) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    io::copy(entries, &mut file)?;
    file.sync_data()
}
