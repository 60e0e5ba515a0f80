//! A statement at the end of a log.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use ledger::{Entry, SigningKey, Statement, Status};

/// The log with one more statement: good from an hour ago, so that a node's clock may be behind, until a day from now.
pub fn appended(log: &str, digest: &str, status: Status, ledger: &str, key: &SigningKey) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seq = log.lines().count() as u64 + 1;
    let mut entry = Entry::new(Statement { digest: digest.to_owned(), exp: now + 86_400, iat: now - 3600, seq, status });
    entry.sign(ledger, key);
    Ok(format!("{log}{}\n", entry.line()))
}
