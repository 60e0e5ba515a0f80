//! Machines: each is a file of data under configs/machines/; nothing in this program knows one by
//! name.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{config, hash, layers};

const FOLDER: &str = "configs/machines";

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
    /// The recipe of image/recipes/kernels that its kernel is made by.
    #[serde(default = "usual_kernel")]
    pub kernel_recipe: String,
    /// The kernel image that the boot partition carries.
    pub kernel: String,
    /// What the firmware reads: config.txt of the boot partition.
    pub config_txt: String,
    /// Files of the package set `firmware` = their names on the boot partition.
    #[serde(default)]
    pub firmware: std::collections::BTreeMap<String, String>,
    /// The boards that boot this image. The first is the one that QEMU plays.
    pub boards: Vec<Board>,
    /// How the device trees are had.
    pub device_tree: DeviceTree,
    /// How long init waits for the TPM, in seconds.
    pub tpm_wait_s: u64,
    /// None: QEMU has no such board, the image is built and never booted here.
    pub qemu: Option<Qemu>,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Board {
    pub name: String,
    /// The device tree's file, which the firmware picks by the board.
    pub dtb: String,
    /// Sections of config.txt that are for this board, beside `[all]`.
    #[serde(default)]
    pub sections: Vec<String>,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "from")]
pub enum DeviceTree {
    /// QEMU makes it: dumped once with the settings of `[qemu]`, then shipped in the boot
    /// partition.
    Qemu,
    /// The kernel's own, files that its recipe lists, with overlays of image/device-tree/ merged
    /// in.
    Kernel {
        overlays: Vec<String>,
        /// What must be in every board's tree then; the emulator cannot show all of it.
        expect: Vec<Expect>,
    },
}

fn usual_kernel() -> String {
    "kernel".into()
}

impl DeviceTree {
    pub fn is_of_a_real_board(&self) -> bool {
        matches!(self, Self::Kernel { .. })
    }
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expect {
    pub node: String,
    pub property: String,
    /// As fdtget prints it: strings and decimal numbers, separated by spaces.
    pub value: String,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qemu {
    pub machine: String,
    /// Processor, memory and the like, where the board leaves a choice.
    #[serde(default)]
    pub options: Vec<String>,
    pub tpm_device: String,
    /// How the card is attached: the end of `-drive`, and a device where that names none.
    pub drive: String,
    pub disk_device: Option<String>,
    pub net_device: String,
    /// What the board's own firmware puts before the words of cmdline.txt, with a space at its end.
    #[serde(default)]
    pub firmware_words: String,
    /// What QEMU lacks of the board: merged into the device tree by whoever plays the firmware,
    /// never part of an image.
    pub overlay: Option<String>,
    /// Arguments of fdtput, one edit each.
    #[serde(default)]
    pub edits: Vec<Vec<String>>,
}

impl Machine {
    pub fn partition(&self, number: u32) -> String {
        format!("{}{}{number}", self.disk, self.partition_infix)
    }

    /// What init must know of the machine, as it stands on the command line.
    pub fn words(&self, name: &str) -> String {
        let partitions = format!("{}{}", self.disk, self.partition_infix);
        ::config::Machine {
            name: name.to_owned(),
            disk: self.disk.clone(),
            partitions,
            tpm_wait_s: self.tpm_wait_s,
        }
        .words()
    }

    /// Of all that an image can depend on: what QEMU lacks of a board is not part of it.
    pub fn hash_without_qemu(&self) -> Result<String> {
        let bare = Self { qemu: None, ..self.clone() };
        Ok(hash::bytes(serde_json::to_string(&bare)?.as_bytes()))
    }

    /// The board that QEMU plays.
    pub fn first_board(&self) -> Result<&Board> {
        match self.boards.first() {
            Some(board) => Ok(board),
            None => bail!("the machine names no board"),
        }
    }
}

pub fn names() -> Result<Vec<String>> {
    layers::current().names(FOLDER)
}

pub fn load(name: &str) -> Result<Machine> {
    let path = layers::current().find(&format!("{FOLDER}/{name}.toml"));
    if !path.exists() {
        bail!("there is no machine {name:?}; {FOLDER} has: {}", names()?.join(", "));
    }
    let machine: Machine = config::read(&path)?;
    ensure!(
        !machine.boards.is_empty(),
        "{}: boards names none; at least one is needed",
        path.display()
    );
    Ok(machine)
}
