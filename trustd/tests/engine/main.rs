//! Tests of trustd with a real Docker Engine, in their own namespaces: `cargo xtask test engine`.

// Helpers of tests may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod api;
mod attest;
mod bench;
mod chain;
mod devnet;
mod enforce;
mod evidence;
mod gate;
#[path = "../common/hang.rs"]
mod hang;
mod hostile_module;
mod images;
mod kills;
mod ledger;
mod module_calls;
mod node;
mod owner;
#[allow(unreachable_pub)]
#[path = "../../../ci/src/pause.rs"]
mod pause;
mod real_engine;
mod real_tools;
mod registry;
mod socket;
mod socket_host;
mod tools;
mod unpacked;
mod upgrade;
mod verbs;
mod watch;
