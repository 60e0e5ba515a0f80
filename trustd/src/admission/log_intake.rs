//! Verification of a log while its text arrives. Blocks, and uses all processors.
//!
//! Invariants:
//! - Lines that are equal to those of the known log are compared and neither parsed nor verified.
//! - Verification stops at the first problem. Text is kept only after it is verified.
//! - What was refused once is recognised by its hash and costs no verification.
//! - The memory in use does not depend on the length of the text, except for the images of its
//!   entries.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use ledger::{
    Extension, HighWaterMark, Log, LogEntry, LogError, MAX_LINE_BYTES, TrustPolicy,
    VerifiedExtension,
};
use sha2::{Digest as _, Sha256};

use super::checked_text::{CheckedText, Stop, fill};
use super::error::AdmissionError;
use super::log_folder::NewText;
use super::spool::Spool;
use super::stored_log::{StoredLog, is_same_statement};

/// Length of the blocks in which a text is compared with the known one.
const COMPARE_BYTES: usize = 64 * 1024;
/// Refused text up to this length is held in memory until it is compared with what was refused
/// before. Longer text is read a second time if it differs.
const MAX_HELD_BYTES: u64 = 256 * 1024;

/// What a new log is compared with and continues.
pub(super) struct Base {
    pub(super) policy: Arc<TrustPolicy>,
    /// Changes with every change of the known log.
    pub(super) generation: u64,
    pub(super) stored: StoredLog,
    /// Continues the known log.
    pub(super) extension: Extension,
    /// Sequence number of the entry that set the present approvers.
    pub(super) approvers_since: u64,
    /// Newest state that the node has seen.
    pub(super) seen: HighWaterMark,
    /// Whether all that is known is on disk.
    pub(super) is_persisted: bool,
    /// Where the spool can have its file.
    pub(super) spool: PathBuf,
}

/// Text that was refused: the first bytes after those that it has in common with the known log.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    generation: u64,
    common: u64,
    len: u64,
    /// Whether the text ended there.
    at_end: bool,
    sha256: [u8; 32],
    problem: LogError,
}

/// Effort that a text caused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Number of entries that were verified.
    pub(super) entries: u64,
    /// Length of their lines, and of the rest of the text.
    pub(super) bytes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        (self.entries, self.bytes) = (self.entries + other.entries, self.bytes + other.bytes);
    }
}

/// Result of an intake.
pub(super) struct Report {
    pub(super) result: Result<Intake, Rejection>,
    pub(super) cost: Cost,
    /// Set if the text was refused because of its content.
    pub(super) refusal: Option<Refusal>,
}

/// A text that was not rejected.
pub(super) enum Intake {
    /// It is the known log.
    Unchanged,
    /// It differs from the known log and is valid.
    Verified(Box<Candidate>),
}

/// A valid log that was not applied yet.
pub(super) struct Candidate {
    pub(super) generation: u64,
    pub(super) verified: VerifiedExtension,
    /// Whether `verified` continues the known log, and not a log without entries.
    pub(super) continues: bool,
    pub(super) text: NewText,
    /// Log whose first bytes the text has in common.
    pub(super) stored: StoredLog,
}

impl Candidate {
    /// Returns a reader of the whole text, to verify it again.
    ///
    /// # Errors
    /// The text could not be kept.
    pub(super) fn into_reader(self) -> io::Result<Box<dyn Read + Send>> {
        let NewText { common, entries, checkpoint } = self.text;
        let checkpoint = checkpoint.map(|text| format!("\n{text}")).unwrap_or_default();
        let entries = self.stored.entries(0, common).chain(entries.into_reader()?);
        Ok(Box::new(entries.chain(io::Cursor::new(checkpoint.into_bytes()))))
    }
}

/// Reason why a text was rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    /// The log is invalid.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The text cannot be read to its end.
    #[error("the log cannot be read")]
    Input(#[source] io::Error),
    /// The known log cannot be read.
    #[error("the stored log cannot be read")]
    Stored(#[source] io::Error),
    /// The same text was refused before.
    #[error(transparent)]
    Known(LogError),
    /// The text is not the one that was refused before, but it was not kept. It must be read again.
    #[error("the log changed while it was read")]
    Changed,
    /// The text does not begin with the known log's last line.
    #[error("the part of the log does not continue the known log")]
    Misaligned,
    /// The node could not use a log that is valid.
    #[error(transparent)]
    Node(#[from] AdmissionError),
}

/// Verifies a text from the byte `start` on: the beginning, or the known log's last line. `refused`
/// is what its source sent last and was refused.
pub(super) fn run(
    base: Base,
    input: &mut (dyn Read + Send),
    start: u64,
    refused: Option<&Refusal>,
) -> Report {
    let generation = base.generation;
    let mut cost = Cost::default();
    let mut progress = Progress { common: start, hash: Sha256::new(), len: 0, at_end: false };
    let result = verify(base, input, start, refused, &mut progress, &mut cost);
    let refusal = match &result {
        Err(Rejection::Log(error)) if cost.entries > 0 && progress.len > 0 => Some(Refusal {
            generation,
            common: progress.common,
            len: progress.len,
            at_end: progress.at_end,
            sha256: progress.hash.finalize().into(),
            problem: error.clone(),
        }),
        _ => None,
    };
    Report { result, cost, refusal }
}

/// Text that was looked at, beyond what it has in common with the known log.
struct Progress {
    common: u64,
    hash: Sha256,
    len: u64,
    at_end: bool,
}

impl Progress {
    fn add(&mut self, text: &[u8]) {
        self.hash.update(text);
        self.len += text.len() as u64;
    }
}

fn verify(
    base: Base,
    input: &mut (dyn Read + Send),
    start: u64,
    refused: Option<&Refusal>,
    progress: &mut Progress,
    cost: &mut Cost,
) -> Result<Intake, Rejection> {
    let (common, mut pending) = find_common(&base.stored, start, input)?;
    progress.common = common;
    if let Some(refused) = refused.filter(|r| r.generation == base.generation && r.common == common)
    {
        compare_with_refused(refused, &mut pending, input)?;
    }
    let continues = common == base.stored.entries_len;
    if !continues {
        if start > 0 {
            return Err(Rejection::Misaligned);
        }
        compare_line(&base, common, &mut pending, input, progress, cost)?;
    }
    let Base { policy, generation, stored, extension, seen, is_persisted, spool, .. } = base;
    // Lines with other signatures than the known ones are verified with all lines before them,
    // because the approvers may have been others.
    let (extension, repeated) =
        if continues { (extension, 0) } else { (Log::new(&policy).extend(&seen), common) };
    let beginning = stored.entries(0, repeated);
    let mut rest = beginning.chain(io::Cursor::new(pending)).chain(input);
    let mut text = CheckedText::new(extension, &mut rest, if continues { common } else { 0 });
    let (mut spool, mut skipped) = (Spool::new(spool), repeated);
    let checked = text.check_entries(&mut |lines: &[u8]| {
        let skip = usize::try_from(skipped).unwrap_or(usize::MAX).min(lines.len());
        skipped -= skip as u64;
        progress.add(&lines[skip..]);
        spool.push(&lines[skip..]);
    });
    (cost.entries, cost.bytes) =
        (cost.entries + text.checked_entries, cost.bytes + text.checked_bytes);
    match checked {
        Ok(()) => {}
        Err(Stop::Input(error)) => return Err(Rejection::Input(error)),
        Err(Stop::Entry { error, line }) => {
            progress.add(&line);
            return Err(error.into());
        }
    }
    let (extension, checkpoint) = text.into_end().map_err(Rejection::Input)?;
    if let Some(checkpoint) = &checkpoint {
        progress.add(b"\n");
        progress.add(checkpoint);
        cost.bytes += checkpoint.len() as u64;
    }
    progress.at_end = true;
    let is_same = checkpoint.as_deref() == stored.checkpoint.as_deref().map(str::as_bytes);
    if continues && spool.len() == 0 && is_same && is_persisted {
        return Ok(Intake::Unchanged);
    }
    let verified = extension.finish(checkpoint.as_deref())?;
    // A checkpoint that was verified is UTF-8 text.
    let checkpoint = checkpoint.map(|text| String::from_utf8_lossy(&text).into_owned());
    let text = NewText { common, entries: spool, checkpoint };
    let candidate = Candidate { generation, verified, continues, text, stored };
    Ok(Intake::Verified(Box::new(candidate)))
}

/// Compares a text, which begins at the byte `start` of the log, with the known entries. Returns
/// the number of bytes in the common lines, and what was read after them.
fn find_common(
    stored: &StoredLog,
    start: u64,
    input: &mut dyn Read,
) -> Result<(u64, Vec<u8>), Rejection> {
    let mut known = stored.entries(start, stored.entries_len);
    let (mut at, mut line_start) = (start, start);
    let (mut block, mut known_block) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let n = match input.read(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(Rejection::Input)?,
        };
        let left = usize::try_from(stored.entries_len - at).unwrap_or(usize::MAX);
        let expected = &mut known_block[..n.min(left)];
        known.read_exact(expected).map_err(Rejection::Stored)?;
        let same = if block[..expected.len()] == *expected {
            expected.len()
        } else {
            block.iter().zip(&*expected).take_while(|(a, b)| a == b).count()
        };
        if let Some(newline) = block[..same].iter().rposition(|byte| *byte == b'\n') {
            line_start = at + newline as u64 + 1;
        }
        at += same as u64;
        if same < n || n == 0 {
            let mut rest = Vec::new();
            let mut line = stored.entries(line_start, at);
            line.read_to_end(&mut rest).map_err(Rejection::Stored)?;
            rest.extend_from_slice(&block[same..n]);
            return Ok((line_start, rest));
        }
    }
}

/// Fails if a text is the one that was refused before. `pending` is the part that was read.
fn compare_with_refused(
    refused: &Refusal,
    pending: &mut Vec<u8>,
    input: &mut dyn Read,
) -> Result<(), Rejection> {
    let known = || Err(Rejection::Known(refused.problem.clone()));
    if refused.len <= MAX_HELD_BYTES {
        // One byte more shows whether the text ends.
        fill(pending, refused.len as usize + 1, input).map_err(Rejection::Input)?;
        let Some(text) = pending.get(..refused.len as usize) else { return Ok(()) };
        let is_end = pending.len() == text.len();
        let is_same = Sha256::digest(text)[..] == refused.sha256 && (is_end || !refused.at_end);
        return if is_same { known() } else { Ok(()) };
    }
    let head = std::mem::take(pending);
    let mut text = io::Cursor::new(head).chain(input);
    let (mut hash, mut left) = (Sha256::new(), refused.len);
    let mut block = vec![0; COMPARE_BYTES];
    while left > 0 {
        let limit = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match text.read(&mut block[..limit]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Err(Rejection::Changed),
            Ok(n) => {
                hash.update(&block[..n]);
                left -= n as u64;
            }
            Err(error) => return Err(Rejection::Input(error)),
        }
    }
    let is_same = hash.finalize()[..] == refused.sha256;
    let ends = !refused.at_end || text.read(&mut block).map_err(Rejection::Input)? == 0;
    if is_same && ends { known() } else { Err(Rejection::Changed) }
}

/// Compares the first line that differs from the known log. It may differ by its signatures only.
fn compare_line(
    base: &Base,
    common: u64,
    pending: &mut Vec<u8>,
    input: &mut dyn Read,
    progress: &mut Progress,
    cost: &mut Cost,
) -> Result<(), Rejection> {
    fill(pending, MAX_LINE_BYTES + 1, input).map_err(Rejection::Input)?;
    let before = base.stored.count_lines(common).map_err(Rejection::Stored)?;
    let end = pending.iter().position(|byte| *byte == b'\n').map_or(pending.len(), |at| at + 1);
    let line = &pending[..end];
    if matches!(line, b"" | b"\n") {
        return Err(LogError::RolledBack { seen: base.seen.seq, found: before }.into());
    }
    let mut known = Vec::new();
    let known_line = base.stored.entries(common, common + MAX_LINE_BYTES as u64);
    io::BufRead::read_until(&mut io::BufReader::new(known_line), b'\n', &mut known)
        .map_err(Rejection::Stored)?;
    // Entries before the last change of the approvers are verified by the replay only.
    let seq = before + 1;
    let is_same = is_same_statement(line, &known);
    if seq > base.approvers_since || serde_json::from_slice::<LogEntry>(line).is_err() {
        let checked = base.extension.checker().check(seq, line);
        *cost = Cost { entries: 1, bytes: line.len() as u64 };
        progress.add(line);
        checked.into_error().map_or(Ok(()), Err)?;
    }
    if !is_same {
        return Err(LogError::Forked { seq }.into());
    }
    // The line is verified again, with those before it.
    (progress.hash, progress.len) = (Sha256::new(), 0);
    Ok(())
}

#[cfg(test)]
mod tests;
