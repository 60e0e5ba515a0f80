//! The gate against a real Docker Engine, in namespaces of its own: `cargo xtask test engine`.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod api;
mod bench;
mod gate;
mod images;
mod kills;
mod ledger;
mod node;
mod registry;
mod upgrade;
mod watch;
