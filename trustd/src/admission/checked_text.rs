//! The entries of a text, checked by all processors while the text is read.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use ledger::{
    CheckedEntries, Extension, HighWaterMark, Log, LogError, MAX_LINE_BYTES, MAX_LOG_BYTES,
    MAX_NOTE_BYTES, TrustPolicy, first_batch,
};

use super::error::AdmissionError;
use super::stored_log::StoredLog;
use crate::util::parallel;

/// Length of the text that is checked at once. The first part is shorter, and each is twice as long
/// as the one before, so that a text whose first line is invalid costs little.
const FIRST_PART_BYTES: usize = 32 * 1024;
const MAX_PART_BYTES: usize = 1 << 20;

/// Reason why the entries of a text are not all valid.
pub(super) enum Stop {
    /// The text cannot be read.
    Input(io::Error),
    /// The line is invalid.
    Entry { error: LogError, line: Vec<u8> },
}

/// A text whose entries extend a log.
pub(super) struct CheckedText<'a> {
    extension: Extension,
    input: &'a mut (dyn Read + Send),
    /// What was read and not checked yet; begins at a line.
    buffer: Vec<u8>,
    /// Length of the log so far.
    len: u64,
    /// Number of entries that were checked.
    pub(super) checked_entries: u64,
    /// Length of their lines.
    pub(super) checked_bytes: u64,
}

impl<'a> CheckedText<'a> {
    /// Begins to read entries that follow `len` bytes of a log.
    pub(super) fn new(extension: Extension, input: &'a mut (dyn Read + Send), len: u64) -> Self {
        let buffer = Vec::new();
        Self { extension, input, buffer, len, checked_entries: 0, checked_bytes: 0 }
    }

    /// Checks the entries, and calls `accept` with each part of the text that is valid.
    pub(super) fn check_entries(&mut self, accept: &mut dyn FnMut(&[u8])) -> Result<(), Stop> {
        let mut part_bytes = FIRST_PART_BYTES;
        loop {
            fill(&mut self.buffer, part_bytes, self.input).map_err(Stop::Input)?;
            let is_end = self.buffer.len() < part_bytes;
            let batches = self.batches(part_bytes, is_end);
            if batches.is_empty() {
                if is_end || self.buffer.first() == Some(&b'\n') {
                    return Ok(());
                }
                // A line is longer than this part.
                part_bytes = MAX_PART_BYTES;
                continue;
            }
            let appended = self.append(&batches);
            let (valid, next) = match appended {
                Ok(valid) => (valid, (2 * part_bytes).min(MAX_PART_BYTES)),
                // The approvers are others now.
                Err((None, valid)) => (valid, FIRST_PART_BYTES),
                Err((Some(error), valid)) => {
                    accept(&self.buffer[..valid]);
                    let line = self.buffer[valid..].split_inclusive(|byte| *byte == b'\n').next();
                    return Err(Stop::Entry { error, line: line.unwrap_or_default().to_vec() });
                }
            };
            accept(&self.buffer[..valid]);
            self.buffer.drain(..valid);
            part_bytes = next;
        }
    }

    /// Returns the batches of the first `part_bytes` of the buffer, as ranges, up to an empty line
    /// or the last whole line.
    fn batches(&self, part_bytes: usize, is_end: bool) -> Vec<std::ops::Range<usize>> {
        let (mut whole, part) = (0, &self.buffer[..part_bytes.min(self.buffer.len())]);
        for line in part.split_inclusive(|byte| *byte == b'\n') {
            let is_whole = line.ends_with(b"\n") || is_end || line.len() > MAX_LINE_BYTES;
            if line == b"\n" || !is_whole {
                break;
            }
            whole += line.len();
        }
        let (mut batches, mut at) = (Vec::new(), 0);
        while at < whole {
            let len = first_batch(&self.buffer[at..whole]).len();
            batches.push(at..at + len);
            at += len;
        }
        batches
    }

    /// Checks batches of the buffer and appends their entries. Returns the length of the entries
    /// that were appended, also with an error, and with `None` after which the approvers are
    /// others.
    fn append(
        &mut self,
        batches: &[std::ops::Range<usize>],
    ) -> Result<usize, (Option<LogError>, usize)> {
        let mut numbered = Vec::new();
        let mut seq = self.extension.next_seq();
        for range in batches {
            let lines = &self.buffer[range.clone()];
            numbered.push((seq, lines));
            seq += lines.split_inclusive(|byte| *byte == b'\n').count() as u64;
        }
        let (checker, first_failed) = (self.extension.checker(), AtomicU64::new(u64::MAX));
        let checked = parallel::map_long(numbered, |(seq, lines)| {
            // Batches after an invalid one are not needed.
            if seq > first_failed.load(Ordering::Relaxed) {
                return None;
            }
            let checked = checker.check(seq, lines);
            if checked.has_error() {
                first_failed.fetch_min(seq, Ordering::Relaxed);
            }
            Some((checked, lines.len()))
        });
        let (mut valid, mut result) = (0, Ok(()));
        for (checked, len) in checked.into_iter().flatten() {
            self.checked_entries += checked.len() as u64 + u64::from(checked.has_error());
            self.checked_bytes += len as u64;
            if result.is_ok() {
                result = self.append_batch(checked, &mut valid);
            }
        }
        result.map(|()| valid).map_err(|error| (error, valid))
    }

    /// Appends the entries of one batch, which begins at the byte `valid` of the buffer.
    fn append_batch(
        &mut self,
        checked: CheckedEntries,
        valid: &mut usize,
    ) -> Result<(), Option<LogError>> {
        let before = self.extension.next_seq();
        let appended = self.extension.append(checked);
        let count = usize::try_from(self.extension.next_seq() - before).unwrap_or_default();
        let lines = self.buffer[*valid..].split_inclusive(|byte| *byte == b'\n').take(count);
        let len: usize = lines.map(<[u8]>::len).sum();
        *valid += len;
        self.len += len as u64;
        if self.len > MAX_LOG_BYTES {
            return Err(Some(LogError::TooLong));
        }
        match appended {
            Ok(true) => Ok(()),
            Ok(false) => Err(None),
            Err(error) => Err(Some(error)),
        }
    }

    /// Returns the entries and the text after them, if there is one, after
    /// [`CheckedText::check_entries`].
    pub(super) fn into_end(mut self) -> io::Result<(Extension, Option<Vec<u8>>)> {
        if self.buffer.first() != Some(&b'\n') {
            return Ok((self.extension, None));
        }
        // A longer text is rejected by its length.
        fill(&mut self.buffer, MAX_NOTE_BYTES + 2, self.input)?;
        self.buffer.truncate(MAX_NOTE_BYTES + 2);
        self.buffer.remove(0);
        Ok((self.extension, Some(self.buffer)))
    }
}

/// Verifies a stored log from its first line. `seen` is the newest state that the node has seen.
///
/// # Errors
/// [`AdmissionError`] if the log is invalid, or if its file cannot be read.
pub(super) fn replay(
    policy: &TrustPolicy,
    stored: &StoredLog,
    seen: &HighWaterMark,
) -> Result<Log, AdmissionError> {
    let unreadable = |source| AdmissionError::Io { path: stored.path.clone(), source };
    let (mut log, mut input) = (Log::new(policy), stored.text());
    let mut text = CheckedText::new(log.extend(seen), &mut input, 0);
    text.check_entries(&mut |_| {}).map_err(|stop| match stop {
        Stop::Input(source) => unreadable(source),
        Stop::Entry { error, .. } => error.into(),
    })?;
    let (extension, checkpoint) = text.into_end().map_err(unreadable)?;
    let mut verified = extension.finish(checkpoint.as_deref())?;
    log.apply(&mut verified, usize::MAX)?;
    Ok(log)
}

/// Reads until the buffer has `len` bytes or the text ends.
pub(super) fn fill(buffer: &mut Vec<u8>, len: usize, input: &mut dyn Read) -> io::Result<()> {
    let missing = len.saturating_sub(buffer.len());
    buffer.reserve_exact(missing);
    input.take(missing as u64).read_to_end(buffer).map(drop)
}
