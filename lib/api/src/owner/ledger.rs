//! The log of approvals, and bundles of the chain.

use serde::{Deserialize, Serialize};

/// The log: answer of `GET /v1/ledger` and request of `PUT /v1/ledger`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogText {
    /// Log entries, one per line, and the checkpoint (docs/ledger.md).
    pub log: String,
}

/// Answer of `PUT /v1/ledger`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerUpdate {
    /// Number of statements in the node's log.
    pub statements: u64,
    /// Whether the request changed the node's log.
    pub updated: bool,
}

/// Answer of `PUT /v1/ledger/bundle`. The request is a bundle as relays give it (docs/chain.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleUpdate {
    /// Whether the bundle changed what the node knows of the chain.
    pub updated: bool,
}

/// Answer of `POST /v1/ledger/reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReset {
    /// Number of statements in the log that is the beginning from here on.
    pub statements: u64,
}
