//! Log entries of a log file: reading them, appending one, and the leaves of the log's Merkle tree.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use ledger::merkle::{Hash, leaf_hash};
use ledger::{ImageStatement, LogEntry, SigningKey, Statement, Status};

/// Digest that no image has. A revocation of it only takes a sequence number.
pub const NO_IMAGE: &str =
    "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Time after which a revocation expires. Revocations are final, so it has no effect.
pub const REVOCATION_SECONDS: u64 = 100 * 365 * 86_400;

/// Parses the entries of a log without verifying them.
///
/// # Errors
/// Returns an error that names the first line that is not a log entry.
pub fn entries(log: &str) -> Result<Vec<LogEntry>> {
    let lines = ledger::split_checkpoint(log).0.lines().enumerate();
    lines
        .map(|(n, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("line {} of the log is not a log entry", n + 1))
        })
        .collect()
}

/// Returns the log with one more entry, signed with `key`. `statement` gets the entry's sequence
/// number. A checkpoint is removed, because it covers the shorter log.
///
/// # Errors
/// Returns the errors of [`entries`].
pub fn append(
    log: &str,
    ledger: &str,
    key: &SigningKey,
    statement: impl FnOnce(u64) -> Statement,
) -> Result<String> {
    let before = ledger::split_checkpoint(log).0;
    let seq = entries(before)?.last().map_or(0, |e| e.statement.seq()) + 1;
    let mut entry = LogEntry::new(statement(seq));
    entry.sign(ledger, key);
    Ok(format!("{before}{}\n", entry.line()))
}

/// Returns the log with one more entry for an image. It is valid from an hour ago, because a node's
/// clock may be behind, until a day from now.
///
/// # Errors
/// Returns the errors of [`append`] and [`now`].
pub fn append_image(
    log: &str,
    digest: &str,
    status: Status,
    ledger: &str,
    key: &SigningKey,
) -> Result<String> {
    let now = now()?;
    append(log, ledger, key, |seq| {
        ImageStatement {
            digest: digest.to_owned(),
            exp: now + 86_400,
            iat: now - 3600,
            seq,
            status,
        }
        .into()
    })
}

/// Returns the log with another entry in the place of the newest one, which `key` signed: a
/// revocation of [`NO_IMAGE`]. It needs one signature. A node that has it rejects every other entry
/// with this sequence number, so a copy of the signature is of no use any more. A checkpoint is
/// removed.
///
/// # Errors
/// Returns an error if `key` did not sign the newest entry, or if that entry is a revocation, which
/// one signature completes. Returns the errors of [`entries`] and [`now`].
pub fn withdraw(log: &str, ledger: &str, key: &SigningKey) -> Result<String> {
    let mut entries = entries(log)?;
    let newest = entries.pop().context("the log is empty")?;
    let (seq, public) = (newest.statement.seq(), crate::keys::public_hex(key));
    ensure!(
        newest.signatures.iter().any(|signature| signature.key == public),
        "the newest log entry, {seq}, has no signature of {public}; nothing to withdraw"
    );
    ensure!(
        !matches!(&newest.statement, Statement::Image(image) if image.status == Status::Revoked),
        "log entry {seq} is a revocation: one signature completes it, and it is final"
    );
    let before: String = entries.iter().map(|entry| entry.line() + "\n").collect();
    let iat = now()?;
    append(&before, ledger, key, |seq| {
        ImageStatement {
            digest: NO_IMAGE.to_owned(),
            exp: iat + REVOCATION_SECONDS,
            iat,
            seq,
            status: Status::Revoked,
        }
        .into()
    })
}

/// Returns the leaves of the log's Merkle tree. They depend on the ledger's name, as the signatures
/// do.
///
/// # Errors
/// Returns an error that names the first line that is missing or has an invalid signature.
pub fn leaves(log: &str, ledger: &str) -> Result<Vec<Hash>> {
    let leaf = |(n, entry): (usize, &LogEntry)| {
        ensure!(
            entry.statement.seq() == n as u64 + 1,
            "line {}: log entries are missing or out of order",
            n + 1
        );
        entry.verify_signatures(ledger).with_context(|| format!("line {}", n + 1))?;
        Ok(leaf_hash(&entry.statement.signed_bytes(ledger)))
    };
    entries(log)?.iter().enumerate().map(leaf).collect()
}

/// Returns the time in seconds since 1970.
///
/// # Errors
/// Returns an error if the clock is before 1970.
pub fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}
