//! The gate against a real Docker Engine, in namespaces of its own: `cargo xtask test engine`.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod alone;
mod api;
mod attest;
mod bench;
mod chain;
mod devnet;
mod gate;
mod images;
mod kills;
mod ledger;
mod node;
#[allow(unreachable_pub)]
#[path = "../../../ci/src/pause.rs"]
mod pause;
mod registry;
mod socket;
mod upgrade;
mod watch;
