//! The sealed root key, and the keys that are derived from it for modules.

pub mod derive;
pub mod root_key;
pub mod seal;
pub mod sign;
