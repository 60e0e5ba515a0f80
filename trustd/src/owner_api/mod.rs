//! The owner's API, over TLS and on the node's own socket. docs/api.md describes it.
//!
//! | file | content |
//! |---|---|
//! | `tls.rs`, `connection.rs`, `access.rs` | TLS, the role of a client, a router per role |
//! | `state.rs`, `route.rs` | the state of the handlers, and entries of the route table |
//! | `attest.rs` | attestation, which anonymous clients may request too |
//! | `common.rs` | calls that a locked node answers too: audit log, policies, recovery, power |
//! | `routes.rs` | all routes of a node that has its root key |
//! | `modules.rs`, `ledger.rs`, `status.rs` | the handlers of those routes |
//! | `status_page.rs`, `metrics.rs` | the status as HTML and for Prometheus |
//! | `locked.rs` | the API of a locked node |

pub mod access;
pub mod attest;
mod common;
pub mod connection;
mod host;
mod ledger;
pub mod locked;
mod metrics;
mod modules;
mod route;
pub mod routes;
pub mod state;
mod status;
mod status_page;
pub mod tls;
