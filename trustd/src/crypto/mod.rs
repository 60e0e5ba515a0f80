//! Cryptography for modules: their keys, and what is computed with them. No I/O but random numbers.

pub mod keys;
pub mod seal;
pub mod sign;
pub mod spread;
