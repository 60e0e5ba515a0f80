//! Library of the `trustctl` command line, which the build and the tests use too: keys, logs of
//! approvals, the client of a node's API, and attestation.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
mod api_calls;
#[cfg(feature = "client")]
pub mod appraisal;
#[cfg(feature = "chain")]
pub mod chain;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod endorsement;
#[cfg(feature = "client")]
pub mod evidence;
#[cfg(feature = "client")]
mod http;
pub mod image;
pub mod keys;
pub mod known_nodes;
#[cfg(feature = "client")]
pub mod module;
#[cfg(feature = "client")]
pub mod peers;
pub mod statement;
#[cfg(feature = "client")]
mod tls;
#[cfg(feature = "client")]
pub mod witness;
