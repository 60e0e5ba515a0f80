//! Statements at the end of a log, and what its Merkle tree is made of.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use ledger::merkle::{Hash, leaf};
use ledger::{ImageStatement, LogEntry, SigningKey, Statement, Status};

/// The statements of a log, nothing of them checked.
pub fn entries(log: &str) -> Result<Vec<LogEntry>> {
    let lines = ledger::parts(log).0.lines().enumerate();
    lines
        .map(|(n, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("line {} of the log is not a statement", n + 1))
        })
        .collect()
}

/// The log with one more statement, which is told its place. A checkpoint of the shorter log is
/// left out.
pub fn append(
    log: &str,
    ledger: &str,
    key: &SigningKey,
    statement: impl FnOnce(u64) -> Statement,
) -> Result<String> {
    let before = ledger::parts(log).0;
    let seq = entries(before)?.last().map_or(0, |e| e.statement.seq()) + 1;
    let mut entry = LogEntry::new(statement(seq));
    entry.sign(ledger, key);
    Ok(format!("{before}{}\n", entry.line()))
}

/// The log with one more statement: good from an hour ago, so that a node's clock may be behind,
/// until a day from now.
pub fn appended(
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

/// The leaves of the log's Merkle tree. Under another ledger's name they would be others, and no
/// signature would hold.
pub fn leaves(log: &str, ledger: &str) -> Result<Vec<Hash>> {
    let leaf_of = |(n, entry): (usize, &LogEntry)| {
        anyhow::ensure!(
            entry.statement.seq() == n as u64 + 1,
            "line {}: statements are missing or in another order",
            n + 1
        );
        entry.holds(ledger).map_err(|problem| anyhow::anyhow!("line {}: {problem}", n + 1))?;
        Ok(leaf(&entry.statement.signed_bytes(ledger)))
    };
    entries(log)?.iter().enumerate().map(leaf_of).collect()
}

/// Seconds since 1970.
pub fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}
