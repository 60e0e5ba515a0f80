//! Ethereum-like chains from the outside: relays, and who deploys and changes the registry.

pub mod nodes;
pub mod relay;

pub use nodes::{Beacon, Execution};
pub use relay::{Ask, From, Relay};
