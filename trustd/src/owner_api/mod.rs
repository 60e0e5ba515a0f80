//! The owner's API, over TLS and on the node's own socket; docs/api.md describes it.

pub mod access;
pub mod attest;
pub mod common;
pub mod locked;
mod metrics;
pub mod routes;
mod snapshot;
mod status_page;
pub mod tls;
