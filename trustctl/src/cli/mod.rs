//! The commands of the command line, one file per group.

pub(crate) mod attest;
pub(crate) mod chain;
pub(crate) mod command;
#[cfg(test)]
mod documented;
pub(crate) mod image;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod module;
pub(crate) mod node;
pub(crate) mod output;
pub(crate) mod policy;
pub(crate) mod registry;
pub(crate) mod relay;
pub(crate) mod vrf;
