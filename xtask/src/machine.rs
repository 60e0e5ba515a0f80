//! Machines: each board is a file of data under configs/machines/.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::{config, paths};

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    pub description: String,
    /// Kernel command line before the verity table, which the build appends.
    pub cmdline: String,
    /// The disk as the kernel names it, and how a partition's number is appended to it.
    pub disk: String,
    pub partition_infix: String,
    /// Sizes of the partitions, in MiB. The data partition grows to the card at first boot.
    pub boot_mib: u64,
    pub data_mib: u64,
    /// The kernel image that the boot partition carries.
    pub kernel: String,
    /// How the device tree is had.
    pub device_tree: DeviceTree,
    /// How long init waits for the TPM, in seconds.
    pub tpm_wait_s: u64,
    pub qemu: Qemu,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "from")]
pub enum DeviceTree {
    /// QEMU makes it: dumped once with the settings of `[qemu]`, then shipped in the boot partition.
    Qemu,
    /// The kernel's own, a file that image/recipes/kernel.toml lists.
    Kernel { file: String },
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qemu {
    pub machine: String,
    pub cpu: String,
    pub cpus: u32,
    pub memory_mib: u32,
    pub tpm_device: String,
    pub disk_device: String,
    pub net_device: String,
}

impl Machine {
    pub fn partition(&self, number: u32) -> String {
        format!("{}{}{number}", self.disk, self.partition_infix)
    }
}

pub fn names() -> Result<Vec<String>> {
    config::names(&paths::repo().join("configs/machines"))
}

pub fn load(name: &str) -> Result<Machine> {
    let path = paths::repo().join("configs/machines").join(format!("{name}.toml"));
    if !path.exists() {
        bail!("there is no machine {name:?}; configs/machines has: {}", names()?.join(", "));
    }
    config::read(&path)
}
