//! Boots an image in QEMU in place of the firmware: reads kernel, command line and device tree from
//! the image's boot partition and starts QEMU with them.
//!
//! QEMU does not emulate a whole board. The machine's `[qemu]` therefore lists edits of the device
//! tree, which are applied here and are not part of the image.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use measure::Measurements;
use policy::Policies;

use crate::engine::hash;
use crate::engine::sandbox::{Net, Sandbox};
use crate::image::firmware::{self, BootConfig};
use crate::image::machine::{Machine, Qemu};
use crate::image::partition::partition_start;
use crate::image::{device_tree, keys};

/// A machine to start.
pub struct Boot<'a> {
    /// Folder of the tools sysroot.
    pub tools: &'a Path,
    /// The machine that the image was built for.
    pub machine: &'a Machine,
    /// Folder of `disk.img`, which also receives the boot files, the TPM's state and the logs.
    pub dir: &'a Path,
    /// Port of the host's loopback interface that is forwarded to the node's API.
    pub port: u16,
    /// Whether the machine has a TPM.
    pub tpm: bool,
    /// Whether the node has access to the host's network. The API's port is forwarded in both
    /// cases.
    pub external_network: bool,
}

/// File name of the edited device tree, which QEMU passes to the kernel.
const QEMU_DTB: &str = "qemu.dtb";

impl Boot<'_> {
    /// Returns a sandbox in the tools sysroot whose working folder is `dir`.
    fn sandbox(&self) -> Sandbox {
        Sandbox::new(self.tools).write(self.dir, "/work").cwd("/work")
    }

    /// Returns the path of the log of the programs that prepare the boot.
    fn log(&self) -> PathBuf {
        self.dir.join("firmware.log")
    }

    /// Returns the machine's settings of QEMU.
    fn qemu_settings(&self) -> Result<&Qemu> {
        let description = &self.machine.description;
        self.machine.qemu.as_ref().with_context(|| {
            format!(
                "QEMU does not emulate this board ({description}): its image can be built but not \
                 booted here"
            )
        })
    }

    /// Returns the folder of the boot partition's unpacked files.
    pub fn boot_files(&self) -> PathBuf {
        self.dir.join("boot")
    }

    /// Unpacks the files of the boot partition that the firmware would select.
    ///
    /// # Errors
    ///
    /// Fails if `disk.img` has no such partition, or if autoboot.txt is invalid.
    pub fn unpack(&self) -> Result<()> {
        self.unpack_partition(1)?;
        match firmware::boot_partition(&self.boot_files())? {
            1 => Ok(()),
            other => self.unpack_partition(other),
        }
    }

    /// Unpacks the files of one partition.
    fn unpack_partition(&self, number: u32) -> Result<()> {
        let folder = self.boot_files();
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir(&folder)?;
        let start = partition_start(&self.dir.join("disk.img"), number)?;
        self.sandbox().run(
            &self.log(),
            ["mcopy", "-s", "-n", "-o", "-i", &format!("disk.img@@{start}"), "::*", "boot/"],
        )
    }

    /// Returns the command of a software TPM that ends with QEMU. Its state persists in `dir`.
    ///
    /// # Errors
    ///
    /// Fails if the folder of its state cannot be created.
    pub fn tpm(&self) -> Result<Command> {
        let state = self.dir.join("tpm");
        std::fs::create_dir_all(&state)?;
        let _ = std::fs::remove_file(self.dir.join("tpm.sock"));
        self.sandbox().command([
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            "dir=tpm",
            "--ctrl",
            "type=unixio,path=tpm.sock",
            "--terminate",
            "--flags",
            "not-need-init",
        ])
    }

    /// Copies the device tree that the firmware would pass to the kernel and adapts it to QEMU.
    fn write_device_tree(&self, config: &BootConfig) -> Result<()> {
        let settings = self.qemu_settings()?;
        std::fs::copy(self.boot_files().join(&config.device_tree), self.dir.join(QEMU_DTB))?;
        let (sandbox, log) = (self.sandbox(), self.log());
        if let Some(overlay) = &settings.overlay {
            device_tree::merge(&sandbox, &log, overlay, QEMU_DTB)?;
        }
        for edit in &settings.edits {
            // The order of arguments is: options, file, then the path of a node and its value.
            let at = edit
                .iter()
                .position(|word| word.starts_with('/'))
                .with_context(|| format!("edits of [qemu]: {edit:?} contains no path of a node"))?;
            let mut args = vec!["fdtput"];
            args.extend(edit[..at].iter().map(String::as_str));
            args.push(QEMU_DTB);
            args.extend(edit[at..].iter().map(String::as_str));
            sandbox.run(&log, args)?;
        }
        Ok(())
    }

    /// Signs a TPM policy for the emulated board and writes it to the boot partition, so that the
    /// TPM releases the root key: the board's device tree differs from the physical board's, and
    /// its card may have settings.
    ///
    /// The image must be built with the user's own keys, and its boot partition must be unpacked.
    ///
    /// # Errors
    ///
    /// Fails if the boot files are invalid, or if the policy cannot be signed or written.
    pub fn sign_policies(&self, image: &Measurements) -> Result<()> {
        let files = self.boot_files();
        self.write_device_tree(&firmware::load(&files, self.machine.first_board()?)?)?;
        let mut board = image
            .boards
            .first()
            .context("the measurements of the image list no board")?
            .with_device_tree(&self.device_tree_digest()?);
        let settings = hash::walk(&files)?
            .into_iter()
            .find(|name| name.as_os_str().eq_ignore_ascii_case("node.toml"));
        if let Some(settings) = settings {
            board = board.with_settings(&std::fs::read(files.join(settings))?);
        }
        std::fs::write(
            self.dir.join(policy::FILE_NAME),
            Policies::sign(&keys::policy_signer()?, &[board]).text(),
        )?;
        let place = format!("disk.img@@{}", partition_start(&self.dir.join("disk.img"), 1)?);
        self.sandbox().run(
            &self.log(),
            ["mcopy", "-o", "-i", &place, policy::FILE_NAME, &format!("::{}", policy::FILE_NAME)],
        )
    }

    /// Returns the digest of the device tree that the last start used.
    ///
    /// # Errors
    ///
    /// Fails if the machine was not started or the tree is malformed.
    pub fn device_tree_digest(&self) -> Result<measure::Digest> {
        Ok(measure::device_tree_digest(&std::fs::read(self.dir.join(QEMU_DTB))?)?)
    }

    /// Writes the device tree and returns the command of QEMU with its serial console on `serial`.
    /// The TPM must listen before the command is started.
    ///
    /// # Errors
    ///
    /// Fails if QEMU does not emulate the board, or if the boot files or the edits are invalid.
    pub fn qemu(&self, serial: &str) -> Result<Command> {
        let settings = self.qemu_settings()?;
        let config = firmware::load(&self.boot_files(), self.machine.first_board()?)?;
        self.write_device_tree(&config)?;
        let line = format!("{}{}", settings.firmware_words, config.command_line);
        let mut args: Vec<String> =
            vec!["qemu-system-aarch64".into(), "-machine".into(), settings.machine.clone()];
        args.extend(settings.options.iter().cloned());
        let mut add = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        add("-display", "none");
        add("-kernel", &format!("boot/{}", config.kernel));
        // The tree that QEMU generated lists a TPM at an address. Without a TPM, a read from that
        // address would be a bus error.
        if self.tpm || self.machine.device_tree.is_for_physical_board() {
            add("-dtb", QEMU_DTB);
        }
        add("-append", &line);
        add("-drive", &format!("file=disk.img,format=raw,{}", settings.drive));
        if let Some(disk) = &settings.disk_device {
            add("-device", disk);
        }
        add(
            "-netdev",
            &format!(
                "user,id=net,restrict={},hostfwd=tcp:127.0.0.1:{}-:7443",
                if self.external_network { "off" } else { "on" },
                self.port
            ),
        );
        add("-device", &settings.net_device);
        add("-serial", serial);
        if self.tpm {
            add("-chardev", "socket,id=chrtpm,path=tpm.sock");
            add("-tpmdev", "emulator,id=tpm0,chardev=chrtpm");
            add("-device", &settings.tpm_device);
        }
        if serial != "mon:stdio" {
            add("-monitor", "none");
        }
        self.sandbox().net(Net::Host).command(args)
    }
}
