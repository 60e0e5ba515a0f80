//! The commands of the command line, one file per group.

pub(crate) mod attest;
#[cfg(feature = "chain")]
pub(crate) mod chain;
pub(crate) mod image;
pub(crate) mod log;
pub(crate) mod node;
pub(crate) mod output;
pub(crate) mod policy;
#[cfg(feature = "chain")]
pub(crate) mod relay;
