//! The rules: how each kind of step is built, one file per rule. What is built is data in `image/`
//! and `configs/`.
//!
//! A new kind of step is a new file here that implements [`Rule`](crate::engine::graph::Rule), its
//! `mod` line, and its mention by the step that needs it (or in [`deliverables`]).
//!
//! Invariant: no rule imports a command or `qemu`.

pub mod baseline;
pub mod crates;
pub mod disk;
pub mod dtb;
pub mod image_xz;
pub mod kernel;
pub mod manifest;
pub mod module;
pub mod program;
pub mod root;
pub mod root_xz;
pub mod sbom;
pub mod sysroot;

use std::rc::Rc;

use crate::engine::graph::Step;
use crate::image::spec::ImageSpec;

/// Returns the steps whose files the user gets, in the order in which they are built; the last one
/// needs all others.
pub fn deliverables(image: &Rc<ImageSpec>) -> Vec<Step> {
    vec![disk::step(image), image_xz::step(image), sbom::step(image), manifest::step(image)]
}
