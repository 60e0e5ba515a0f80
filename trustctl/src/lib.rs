//! What the command line, the build and the tests share: keys, and the client of a node's API.
#![forbid(unsafe_code)]

pub mod appraisal;
#[cfg(feature = "chain")]
pub mod chain;
pub mod client;
pub mod endorsement;
pub mod evidence;
pub mod image;
pub mod keys;
pub mod module;
pub mod peers;
pub mod statement;
pub mod witness;
