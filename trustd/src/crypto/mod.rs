//! Cryptography for modules.

pub mod keys;
