//! The build engine: a cache, a build graph and a sandbox, independent of images.
//!
//! Invariant: nothing here imports `image`, `rules`, `qemu` or `cmd` (`cargo xtask test lint`
//! checks this). Rules, which implement [`graph::Rule`], describe the steps of a build.

pub mod cache;
pub mod fetch;
pub mod graph;
pub mod hash;
pub mod host;
pub mod layers;
pub mod lock;
pub mod mirror;
pub mod paths;
pub mod progress;
pub mod sandbox;
pub mod sysroot;
pub mod toml_file;
