//! The sealed root key, and the keys that are derived from it for modules.

pub mod derive;
pub mod error;
pub mod node_secret;
pub mod root_key;
pub mod seal;
mod sealed_file;
pub mod sign;
