//! How each kind of step is built. What is built stands in image/ and configs/.

pub mod baseline;
pub mod disk;
pub mod download;
pub mod dtb;
pub mod kernel;
pub mod manifest;
pub mod module;
pub mod packed;
pub mod parts;
pub mod program;
pub mod root;
