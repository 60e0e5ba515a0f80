//! Plays the firmware: takes kernel, command line and device tree out of the very image and starts
//! QEMU with them.
//!
//! What QEMU lacks of a board is edited into the device tree here, from the machine's `[qemu]`; the
//! image has none of it.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use measure::Measurements;
use policy::Policies;

use crate::class::dtb;
use crate::firmware::{self, Loaded};
use crate::machine::{Machine, Qemu};
use crate::sandbox::{Net, Sandbox};

/// One machine to start. `dir` holds `disk.img` and gets everything else.
pub struct Boot<'a> {
    /// The extracted tools tree.
    pub tools: &'a Path,
    pub machine: &'a Machine,
    pub dir: &'a Path,
    /// On the host's loopback, leads to the node's API.
    pub port: u16,
    pub tpm: bool,
    /// Whether the node reaches what the host reaches; the API's port is forwarded in any case.
    pub outside: bool,
}

/// The device tree that the kernel gets.
const PLAYED_TREE: &str = "qemu.dtb";

impl Boot<'_> {
    fn sandbox(&self) -> Sandbox {
        Sandbox::new(self.tools).write(self.dir, "/work").cwd("/work")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("firmware.log")
    }

    fn board(&self) -> Result<&Qemu> {
        let description = &self.machine.description;
        self.machine.qemu.as_ref().with_context(|| {
            format!(
                "QEMU has no such board ({description}): its image is built and never booted here"
            )
        })
    }

    /// Where the boot partition's files lie once they are unpacked.
    pub fn boot_files(&self) -> PathBuf {
        self.dir.join("boot")
    }

    /// Copies the files of the partition that the firmware would choose out of the disk.
    pub fn unpack(&self) -> Result<()> {
        self.unpack_partition(1)?;
        match firmware::boot_partition(&self.boot_files())? {
            1 => Ok(()),
            other => self.unpack_partition(other),
        }
    }

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

    /// A software TPM that ends when QEMU does. Its state lasts in `dir`.
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

    /// The tree that the firmware would hand over, edited for what QEMU lacks.
    fn device_tree(&self, loaded: &Loaded) -> Result<()> {
        let q = self.board()?;
        std::fs::copy(self.boot_files().join(&loaded.device_tree), self.dir.join(PLAYED_TREE))?;
        let (sandbox, log) = (self.sandbox(), self.log());
        if let Some(overlay) = &q.overlay {
            dtb::merge(&sandbox, &log, overlay, PLAYED_TREE)?;
        }
        for edit in &q.edits {
            // Options come first, then the file, then what begins with the path of a node.
            let at = edit
                .iter()
                .position(|word| word.starts_with('/'))
                .with_context(|| format!("the edit {edit:?} names no node"))?;
            let mut args = vec!["fdtput"];
            args.extend(edit[..at].iter().map(String::as_str));
            args.push(PLAYED_TREE);
            args.extend(edit[at..].iter().map(String::as_str));
            sandbox.run(&log, args)?;
        }
        Ok(())
    }

    /// Lets the board that is played have its root key: its device tree is not the real board's,
    /// and its card may have settings. For cards of one's own images, once they are unpacked.
    pub fn sign_policies(&self, image: &Measurements) -> Result<()> {
        let files = self.boot_files();
        self.device_tree(&firmware::load(&files, self.machine.first_board()?)?)?;
        let mut board = image
            .boards
            .first()
            .context("the image is for no board")?
            .with_device_tree(&self.device_tree_digest()?);
        let settings = crate::hash::walk(&files)?
            .into_iter()
            .find(|name| name.as_os_str().eq_ignore_ascii_case("node.toml"));
        if let Some(settings) = settings {
            board = board.with_settings(&std::fs::read(files.join(settings))?);
        }
        std::fs::write(
            self.dir.join(policy::FILE),
            Policies::sign(&crate::keys::policy_signer()?, &[board]).text(),
        )?;
        let place = format!("disk.img@@{}", partition_start(&self.dir.join("disk.img"), 1)?);
        self.sandbox().run(
            &self.log(),
            ["mcopy", "-o", "-i", &place, policy::FILE, &format!("::{}", policy::FILE)],
        )
    }

    /// The digest of the device tree that the last start used.
    pub fn device_tree_digest(&self) -> Result<measure::Digest> {
        Ok(measure::device_tree_digest(&std::fs::read(self.dir.join(PLAYED_TREE))?)?)
    }

    /// QEMU with its serial console on `serial`; it begins at once, so the TPM must be there.
    pub fn qemu(&self, serial: &str) -> Result<Command> {
        let q = self.board()?;
        let loaded = firmware::load(&self.boot_files(), self.machine.first_board()?)?;
        self.device_tree(&loaded)?;
        let line = format!("{}{}", q.firmware_words, loaded.command_line);
        let mut args: Vec<String> =
            vec!["qemu-system-aarch64".into(), "-machine".into(), q.machine.clone()];
        args.extend(q.options.iter().cloned());
        let mut add = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        add("-display", "none");
        add("-kernel", &format!("boot/{}", loaded.kernel));
        // The tree that QEMU made promises a TPM at an address; without one, reading there would be
        // a fault of the bus.
        if self.tpm || self.machine.device_tree.is_of_a_real_board() {
            add("-dtb", PLAYED_TREE);
        }
        add("-append", &line);
        add("-drive", &format!("file=disk.img,format=raw,{}", q.drive));
        if let Some(disk) = &q.disk_device {
            add("-device", disk);
        }
        add(
            "-netdev",
            &format!(
                "user,id=net,restrict={},hostfwd=tcp:127.0.0.1:{}-:7443",
                if self.outside { "off" } else { "on" },
                self.port
            ),
        );
        add("-device", &q.net_device);
        add("-serial", serial);
        if self.tpm {
            add("-chardev", "socket,id=chrtpm,path=tpm.sock");
            add("-tpmdev", "emulator,id=tpm0,chardev=chrtpm");
            add("-device", &q.tpm_device);
        }
        if serial != "mon:stdio" {
            add("-monitor", "none");
        }
        self.sandbox().net(Net::Host).command(args)
    }
}

/// Where a primary partition begins, in bytes: entries of 16 bytes from 446 on, the first sector at
/// 8.
pub fn partition_start(disk: &Path, number: u32) -> Result<u64> {
    ensure!((1..=4).contains(&number), "a disk has partitions 1 to 4, not {number}");
    let mut sector = [0; 4];
    let at = 446 + 16 * u64::from(number - 1) + 8;
    std::fs::File::open(disk)?
        .read_exact_at(&mut sector, at)
        .with_context(|| format!("{} is no disk", disk.display()))?;
    let start = u64::from(u32::from_le_bytes(sector)) * 512;
    ensure!(start > 0, "{} has no partition {number}", disk.display());
    Ok(start)
}
