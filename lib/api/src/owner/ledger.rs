//! The log of approvals, and bundles of the chain.

use serde::{Deserialize, Serialize};

/// Answer of `PUT /v1/ledger`. The request is the text of a log (docs/ledger.md).
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
