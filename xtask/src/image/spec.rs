//! The choice of an image: a machine and a variant.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::engine::{layers, paths};
use crate::image::machine::{self, Machine};

/// An image to build.
pub struct ImageSpec {
    /// Name of the machine's file in `configs/machines/`.
    pub machine_name: String,
    /// The machine.
    pub machine: Machine,
    /// Name of the variant's file in `configs/variants/`.
    pub variant: String,
}

impl ImageSpec {
    /// Reads the machine and checks that the variant exists.
    ///
    /// # Errors
    ///
    /// Fails if there is no such machine or variant, or if the machine's file is invalid.
    pub fn new(machine: &str, variant: &str) -> Result<Self> {
        let variants = layers::current().names("configs/variants")?;
        if !variants.iter().any(|v| v == variant) {
            bail!(
                "configs/variants has no variant {variant:?}; expected one of: {}",
                variants.join(", ")
            );
        }
        Ok(Self {
            machine: machine::load(machine)?,
            machine_name: machine.to_owned(),
            variant: variant.to_owned(),
        })
    }

    /// Returns the file name of the disk image.
    pub fn file_name(&self) -> String {
        format!("basalt-{}.img", self.machine_name)
    }
}

/// Returns the output folder of a machine's image: `target/image/MACHINE/`.
pub fn output_dir(machine: &str) -> PathBuf {
    paths::repo().join("target/image").join(machine)
}
