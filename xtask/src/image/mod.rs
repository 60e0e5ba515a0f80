//! Descriptions of images: machines, recipes, keys, and the file formats that an image consists of.
//!
//! Invariant: nothing here imports `rules`, `qemu` or `cmd`. The code contains no machine's name
//! except for the test machine's; each machine is a file in `configs/machines/`.

pub mod bmap;
pub mod device_tree;
pub mod elf;
pub mod firmware;
pub mod keys;
pub mod machine;
pub mod partition;
pub mod places;
pub mod recipe;
pub mod sbom;
pub mod sparse;
pub mod spec;
