//! Basalt's build system. `cargo xtask help` lists the commands; each is a file under `cmd/`.

pub mod bmap;
pub mod class;
pub mod cmd;
pub mod config;
pub mod console;
pub mod drives;
pub mod elf;
pub mod fetch;
pub mod firmware;
pub mod hash;
pub mod keys;
pub mod layers;
pub mod lock;
pub mod machine;
pub mod mirror;
pub mod paths;
pub mod plan;
pub mod progress;
pub mod qemu;
pub mod recipe;
pub mod sandbox;
pub mod store;
pub mod tree;
