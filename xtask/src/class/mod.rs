//! How each kind of step is built. What is built stands in image/ and configs/.

pub mod disk;
pub mod dtb;
pub mod kernel;
pub mod module;
pub mod program;
pub mod root;
