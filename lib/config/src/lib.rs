//! The configuration files of a node, as types that are always valid.
//!
//! Invariants:
//! - Unknown keys are rejected, and keys carry their unit.
//! - A text that parses here is accepted by the device, because the build checks every file with
//!   the code that reads it on the device.
//! - The crate does no I/O.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod boot;
mod chain;
mod error;
mod hex;
mod host;
mod image;
mod ledger;
mod log_source;
mod machine;
mod module;
mod network;
mod node;
mod registry;
mod service;

pub use boot::{Boot, Tpm};
pub use chain::{Chain, ChainFork, Preset, RequiredApproval};
pub use error::{ConfigError, ConfigProblem, InvalidValue, Position};
pub use host::canonical_host;
pub use image::{Image, ImageBuild, ImageSource};
pub use ledger::{Checkpoints, Ledger, LedgerKind};
pub use log_source::LogSource;
pub use machine::Machine;
pub use module::{
    Access, CryptoUse, Health, KeyBinding, Module, Network, Port, Protocol, Quota, Volume,
};
pub use network::{Addressing, InterfaceAddress};
pub use node::{Api, AttestationAccess, Keys, Node, Owner, Store, parse_node};
pub use registry::{Registry, Repository, parse_repository};
pub use service::{Ready, Service};

/// Parses one TOML file. `file` is its name for the error message.
///
/// # Errors
///
/// Returns [`ConfigError::Toml`] if the text is not TOML, does not match the schema or holds a
/// value that is not allowed.
pub fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::from_toml(file, text, &error))
}

/// Checks a name that serves as a file name, a label of a host name and a container name.
pub(crate) fn check_name(name: &str) -> Result<(), InvalidValue> {
    let good = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    let expected = "a name of 1 to 32 characters a-z, 0-9 and '-', with no '-' first or last";
    Err(InvalidValue::text(expected, name))
}

/// Checks that a text is `sha256:` and 64 lower-case hex digits.
///
/// # Errors
///
/// Returns [`InvalidValue`] for any other text.
pub fn check_digest(digest: &str) -> Result<(), InvalidValue> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if is_lower_hex(hex, 64) => Ok(()),
        _ => Err(InvalidValue::text("a digest, sha256: and 64 lower-case hex digits", digest)),
    }
}

/// Reports whether a text consists of exactly this many lower-case hex digits.
pub(crate) fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
