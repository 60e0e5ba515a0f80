//! Basalt's build system. `cargo xtask help` lists the commands.
//!
//! The layers, each of which imports only those above it in this list:
//!
//! - `engine`: cache, build graph, sandbox; knows no image.
//! - `lint`: checks of the repository's own text.
//! - `image`: descriptions of machines, recipes and keys; file formats.
//! - `rules`: how each kind of step is built, one file per rule.
//! - `qemu`: starts a finished image in an emulated machine.
//! - `cmd`: the commands, one file each.

pub mod cmd;
pub mod engine;
pub mod image;
pub mod lint;
pub mod qemu;
pub mod rules;
