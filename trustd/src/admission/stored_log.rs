//! A log whose text is in a file: the image's log, or the one on the data partition.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger::{LogEntry, MAX_LINE_BYTES, MAX_NOTE_BYTES};

/// Text of a log at one moment. Copies share the open file. Bytes that are appended to it later,
/// and its removal, do not change this text.
#[derive(Clone, Debug)]
pub(super) struct StoredLog {
    /// The file, or `None` for a log without entries.
    file: Option<Arc<File>>,
    /// Path of the file.
    pub(super) path: PathBuf,
    /// Length of the entries in bytes. More bytes of the file do not count.
    pub(super) entries_len: u64,
    /// Text after the entries.
    pub(super) checkpoint: Option<String>,
    /// Whether more entries can be appended to the file.
    pub(super) is_appendable: bool,
}

impl StoredLog {
    /// Makes a log without entries.
    pub(super) fn empty(path: &Path) -> Self {
        Self {
            file: None,
            path: path.to_owned(),
            entries_len: 0,
            checkpoint: None,
            is_appendable: false,
        }
    }

    /// Opens a file of which the first `entries_len` bytes are the log's entries.
    ///
    /// # Errors
    /// The file cannot be opened, or is shorter.
    pub(super) fn open(
        path: &Path,
        entries_len: u64,
        checkpoint: Option<String>,
    ) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?.len();
        if found < entries_len {
            let problem = format!("expected at least {entries_len} bytes, found {found}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let (file, path) = (Some(Arc::new(file)), path.to_owned());
        Ok(Self { file, path, entries_len, checkpoint, is_appendable: true })
    }

    /// Opens a file with the text of a log: entries and, after an empty line, a checkpoint. A
    /// missing file is a log without entries.
    ///
    /// # Errors
    /// The file cannot be read, or its checkpoint is too long or not UTF-8 text.
    pub(super) fn open_text(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::empty(path)),
            Err(error) => return Err(error),
        };
        let (mut reader, mut entries_len) = (BufReader::new(&file), 0);
        let mut line = Vec::new();
        let mut checkpoint = None;
        loop {
            line.clear();
            let limit = MAX_LINE_BYTES as u64 + 1;
            let read = Read::by_ref(&mut reader).take(limit).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            if line == b"\n" {
                let mut text = String::new();
                reader.take(MAX_NOTE_BYTES as u64 + 1).read_to_string(&mut text)?;
                checkpoint = Some(text);
                break;
            }
            entries_len += read as u64;
        }
        let (file, path) = (Some(Arc::new(file)), path.to_owned());
        Ok(Self { file, path, entries_len, checkpoint, is_appendable: false })
    }

    /// Reads the entries in the given range of bytes.
    pub(super) fn entries(&self, from: u64, to: u64) -> FileRange {
        FileRange { file: self.file.clone(), at: from, end: to.min(self.entries_len) }
    }

    /// Reads all of the text: the entries, an empty line and the checkpoint.
    pub(super) fn text(&self) -> impl Read + Send + use<> {
        let checkpoint =
            self.checkpoint.as_ref().map(|text| format!("\n{text}")).unwrap_or_default();
        self.entries(0, self.entries_len).chain(io::Cursor::new(checkpoint.into_bytes()))
    }

    /// Returns the place at which the last entry begins.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn last_line_start(&self) -> io::Result<u64> {
        let from = self.entries_len.saturating_sub(MAX_LINE_BYTES as u64 + 1);
        let mut tail = Vec::new();
        self.entries(from, self.entries_len).read_to_end(&mut tail)?;
        let before_last = tail.split_last().map_or(&[][..], |(_, rest)| rest);
        let newline = before_last.iter().rposition(|byte| *byte == b'\n');
        Ok(from + newline.map_or(0, |at| at as u64 + 1))
    }

    /// Returns the number of lines in the first `len` bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn count_lines(&self, len: u64) -> io::Result<u64> {
        let (mut reader, mut lines) = (self.entries(0, len), 0);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(lines),
                n => lines += buffer[..n].iter().filter(|byte| **byte == b'\n').count() as u64,
            }
        }
    }

    /// Returns the longer of two copies of one log, or `None` if their statements differ at a
    /// common place. Ignores signatures and verifies none. Of two copies of the same length it
    /// returns `self`, if it has entries.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn longer_copy<'a>(&'a self, other: &'a Self) -> io::Result<Option<&'a Self>> {
        let (mut own, mut others) = (
            BufReader::new(self.entries(0, self.entries_len)),
            BufReader::new(other.entries(0, other.entries_len)),
        );
        let (mut line, mut other_line) = (Vec::new(), Vec::new());
        loop {
            line.clear();
            other_line.clear();
            let limit = MAX_LINE_BYTES as u64;
            let found = Read::by_ref(&mut own).take(limit).read_until(b'\n', &mut line)?;
            let other_found =
                Read::by_ref(&mut others).take(limit).read_until(b'\n', &mut other_line)?;
            match (found, other_found) {
                (0, 0) if self.entries_len == 0 && self.checkpoint.is_none() => {
                    return Ok(Some(other));
                }
                (_, 0) => return Ok(Some(self)),
                (0, _) => return Ok(Some(other)),
                _ if line == other_line || is_same_statement(&line, &other_line) => {}
                _ => return Ok(None),
            }
        }
    }
}

/// Reports whether two lines are entries with the same statement.
pub(super) fn is_same_statement(a: &[u8], b: &[u8]) -> bool {
    let statement = |line| serde_json::from_slice::<LogEntry>(line).ok().map(|e| e.statement);
    statement(a).is_some_and(|a| statement(b) == Some(a))
}

/// Reads a range of a file that other readers share.
#[derive(Debug)]
pub(super) struct FileRange {
    file: Option<Arc<File>>,
    at: u64,
    end: u64,
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(file) = &self.file else { return Ok(0) };
        let len = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = len.min(buffer.len());
        let read = file.read_at(&mut buffer[..len], self.at)?;
        if read == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &str) -> (tempfile::TempDir, StoredLog) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("log"), text).unwrap();
        let log = StoredLog::open_text(&dir.path().join("log")).unwrap();
        (dir, log)
    }

    #[test]
    fn a_text_is_split_at_its_empty_line_and_read_back() {
        for (text, entries_len, checkpoint) in [
            ("", 0, None),
            ("a\nbc\n", 5, None),
            ("a\nbc", 4, None),
            ("a\n\nnote\n\n— s\n", 2, Some("note\n\n— s\n")),
            ("\nnote\n", 0, Some("note\n")),
        ] {
            let (_dir, log) = stored(text);
            assert_eq!((log.entries_len, log.checkpoint.as_deref()), (entries_len, checkpoint));
            let mut read = String::new();
            log.text().read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
        }
        let (_dir, log) = stored("first\nsecond\n\nnote\n");
        assert_eq!((log.last_line_start().unwrap(), log.count_lines(13).unwrap()), (6, 2));
        assert_eq!(stored("one\n").1.last_line_start().unwrap(), 0);
        assert_eq!(StoredLog::empty(Path::new("none")).last_line_start().unwrap(), 0);
    }

    #[test]
    fn a_file_that_is_shorter_than_its_entries_is_not_opened() {
        let (dir, _) = stored("abc\n");
        assert!(StoredLog::open(&dir.path().join("log"), 4, None).is_ok());
        assert!(StoredLog::open(&dir.path().join("log"), 5, None).is_err());
    }
}
