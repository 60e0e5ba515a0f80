//! Registries as they are: every case is a server on loopback that misbehaves in one way. A case
//! asserts what the node makes of it, and how many requests it takes at most.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod budgets;
mod certificates;
mod credentials;
mod node;
mod pauses;
mod redirects;
mod server;
mod sources;
mod transfers;
