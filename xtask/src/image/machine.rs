//! Machines: each is a file in `configs/machines/`. The code contains no machine's name except for
//! the test machine's.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::{hash, layers, toml_file};

/// Folder of the machines.
const FOLDER: &str = "configs/machines";
/// Machine of the long tests and of the benchmarks: QEMU's `virt` board, the fastest to emulate.
pub const TEST_MACHINE: &str = "virt";

/// A machine: its disk, kernel, firmware and boards.
#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// Name of the hardware, for messages.
    pub description: String,
    /// Kernel command line before the verity table, which the build appends.
    pub cmdline: String,
    /// Device file of the disk, such as `/dev/mmcblk0`.
    pub disk: String,
    /// Text between the disk's name and a partition's number, such as `p`.
    pub partition_infix: String,
    /// Size of each boot partition, in MiB.
    pub boot_mib: u64,
    /// Size of the data partition in the image, in MiB. It grows to the end of the card at first
    /// boot.
    pub data_mib: u64,
    /// Name of the kernel's recipe in `image/recipes/kernels/`.
    #[serde(default = "default_kernel_recipe")]
    pub kernel_recipe: String,
    /// File name of the kernel image in the boot partition.
    pub kernel: String,
    /// Content of the boot partition's config.txt, which the firmware reads.
    pub config_txt: String,
    /// Files of the package set `firmware` and their names in the boot partition.
    #[serde(default)]
    pub firmware: std::collections::BTreeMap<String, String>,
    /// The boards that boot this image. QEMU emulates the first.
    pub boards: Vec<Board>,
    /// Source of the device trees.
    pub device_tree: DeviceTree,
    /// Time limit of init for the TPM to appear, in seconds.
    pub tpm_wait_s: u64,
    /// Settings of the emulator. `None` if QEMU does not support the board: the image is then built
    /// but not booted by tests.
    pub qemu: Option<Qemu>,
}

/// A board that can boot a machine's image.
#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Board {
    /// Name of the board, for messages.
    pub name: String,
    /// File name of the device tree that the firmware selects for the board.
    pub dtb: String,
    /// Sections of config.txt that apply to this board in addition to `[all]`.
    #[serde(default)]
    pub sections: Vec<String>,
}

/// Source of a machine's device trees.
#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "from")]
pub enum DeviceTree {
    /// QEMU generates the tree. It is dumped with the settings of `[qemu]` and stored in the boot
    /// partition.
    Qemu,
    /// The kernel's build generates the trees that its recipe lists. Overlays of the repository are
    /// merged into them.
    Kernel {
        /// Names of the overlays in `image/device-tree/`.
        overlays: Vec<String>,
        /// Properties that every board's tree must have after the merge. They are checked at build
        /// time, because tests in the emulator do not cover all of them.
        expect: Vec<PropertyCheck>,
    },
}

/// Returns the recipe of machines that select none.
fn default_kernel_recipe() -> String {
    "kernel".into()
}

impl DeviceTree {
    /// Returns whether the trees describe physical boards and not a board of the emulator.
    pub fn is_for_physical_board(&self) -> bool {
        matches!(self, Self::Kernel { .. })
    }
}

/// A property that a device tree must have.
#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PropertyCheck {
    /// Path of the node.
    pub node: String,
    /// Name of the property.
    pub property: String,
    /// Expected value in the format of fdtget: strings and decimal numbers, separated by spaces.
    pub value: String,
}

/// Settings of the emulator for a machine.
#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qemu {
    /// Argument of `-machine`.
    pub machine: String,
    /// Further arguments, such as processor and memory, if the board does not fix them.
    #[serde(default)]
    pub options: Vec<String>,
    /// Argument of `-device` for the TPM.
    pub tpm_device: String,
    /// End of the argument of `-drive`, which attaches the card.
    pub drive: String,
    /// Argument of `-device` for the card, if `drive` does not select a device.
    pub disk_device: Option<String>,
    /// Argument of `-device` for the network interface.
    pub net_device: String,
    /// Kernel parameters that the board's own firmware inserts before those of cmdline.txt, with a
    /// trailing space.
    #[serde(default)]
    pub firmware_words: String,
    /// Name of an overlay that adapts the device tree to QEMU, which does not emulate the whole
    /// board. It is merged when QEMU is started and is never part of an image.
    pub overlay: Option<String>,
    /// Edits of the device tree that adapt it to QEMU. Each is a list of arguments of fdtput.
    #[serde(default)]
    pub edits: Vec<Vec<String>>,
}

impl Machine {
    /// Returns the device file of a partition.
    pub fn partition(&self, number: u32) -> String {
        format!("{}{}{number}", self.disk, self.partition_infix)
    }

    /// Returns the kernel parameters that pass the machine's properties to init.
    pub fn kernel_parameters(&self, name: &str) -> String {
        let partitions = format!("{}{}", self.disk, self.partition_infix);
        ::config::Machine {
            name: name.to_owned(),
            disk: self.disk.clone(),
            partitions,
            tpm_wait_s: self.tpm_wait_s,
        }
        .kernel_parameters()
    }

    /// Returns the hash of the settings that an image can depend on: all except for `[qemu]`.
    ///
    /// # Errors
    ///
    /// Fails if the machine cannot be serialised.
    pub fn hash_without_qemu(&self) -> Result<String> {
        let bare = Self { qemu: None, ..self.clone() };
        Ok(hash::bytes(serde_json::to_string(&bare)?.as_bytes()))
    }

    /// Returns the board that QEMU emulates.
    ///
    /// # Errors
    ///
    /// Fails if the machine has no board.
    pub fn first_board(&self) -> Result<&Board> {
        match self.boards.first() {
            Some(board) => Ok(board),
            None => bail!("the machine {:?} has no board", self.description),
        }
    }
}

/// Returns the names of all machines.
///
/// # Errors
///
/// Fails if `configs/machines/` cannot be listed.
pub fn names() -> Result<Vec<String>> {
    layers::current().names(FOLDER)
}

/// Reads a machine.
///
/// # Errors
///
/// Fails if there is no such machine, or if its file is invalid or lists no board.
pub fn load(name: &str) -> Result<Machine> {
    let path = layers::current().find(&format!("{FOLDER}/{name}.toml"));
    if !path.exists() {
        bail!("{FOLDER} has no machine {name:?}; expected one of: {}", names()?.join(", "));
    }
    let machine: Machine = toml_file::read(&path)?;
    ensure!(
        !machine.boards.is_empty(),
        "{}: boards is empty; expected at least one board",
        path.display()
    );
    Ok(machine)
}
