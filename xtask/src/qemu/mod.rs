//! Starts a finished image in an emulated machine.
//!
//! Invariant: nothing here imports `cmd`.

pub mod boot;
pub mod console;
