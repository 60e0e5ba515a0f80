//! Ethereum-like chains from the outside: relays, and who deploys and changes the registry.

pub mod nodes;
mod pin;
pub mod registry;
pub mod relay;
pub mod serve;

pub use nodes::{Beacon, Execution};
pub use pin::pin;
pub use registry::{Registry, Signer};
pub use relay::{Ask, From, Relay};
