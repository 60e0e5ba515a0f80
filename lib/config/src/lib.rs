//! The configuration files of a node, as types that are always valid.
//!
//! Invariants: unknown keys are refused; keys carry their unit; what parses here is what the device
//! accepts, because the build checks every file with the same code that reads it on the device. No
//! I/O.
#![forbid(unsafe_code)]

mod boot;
mod chain;
mod module;
mod node;
mod service;

pub use boot::{Boot, Machine, Tpm};
pub use chain::{Chain, ChainFork, Preset, Required};
pub use module::{
    Access, BoundTo, CryptoUse, Health, Image, Module, Network, Port, Protocol, Quota, Ship,
    Source, Volume, repository,
};
pub use node::{
    Addressing, Api, Attest, Checkpoints, Keys, Kind, Ledger, LogSource, Node, Owner, Registry,
    Store, Subnet, node,
};
pub use service::{Ready, Service};

#[derive(Debug, thiserror::Error)]
#[error("{file} is not as it should be: {problem}")]
pub struct ConfigError {
    pub file: String,
    pub problem: String,
}

/// Parses one file; `file` is only for the message.
pub fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text)
        .map_err(|error| ConfigError { file: file.to_owned(), problem: error.to_string() })
}

/// A name that can be a file name, a host name's label and a container's name.
pub(crate) fn valid_name(name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= 32
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        Ok(())
    } else {
        Err(format!("{name:?} is not a name: 1 to 32 of a-z, 0-9 and '-', not '-' first or last"))
    }
}

/// Checks that this is `sha256:` and 64 lower-case hex digits.
pub fn valid_digest(digest: &str) -> Result<(), String> {
    match digest.strip_prefix("sha256:") {
        Some(hex)
            if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            Ok(())
        }
        _ => Err(format!(
            "{digest:?} is not a digest: expected sha256: and 64 lower-case hex digits"
        )),
    }
}
