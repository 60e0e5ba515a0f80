//! Plays the firmware: takes kernel, command line and device tree out of the very image and starts QEMU with them.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::machine::Machine;
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

/// Where the boot partition begins, in bytes (see class/disk.rs).
const BOOT_OFFSET: u64 = 1 << 20;

impl Boot<'_> {
    fn sandbox(&self) -> Sandbox {
        Sandbox::new(self.tools).write(self.dir, "/work").cwd("/work")
    }

    /// Copies the boot partition's files out of the disk.
    pub fn unpack(&self) -> Result<()> {
        let log = self.dir.join("unpack.log");
        let disk = format!("disk.img@@{BOOT_OFFSET}");
        self.sandbox().run(&log, ["mcopy", "-n", "-o", "-i", &disk, "::*", "."])
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

    /// QEMU with its serial console on `serial`; it begins at once, so the TPM must be there.
    pub fn qemu(&self, serial: &str) -> Result<Command> {
        let q = &self.machine.qemu;
        let line = std::fs::read_to_string(self.dir.join("cmdline.txt"))?;
        let mut args: Vec<String> = vec!["qemu-system-aarch64".into()];
        let mut add = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        add("-machine", &q.machine);
        add("-cpu", &q.cpu);
        add("-smp", &q.cpus.to_string());
        add("-m", &q.memory_mib.to_string());
        add("-display", "none");
        add("-kernel", &self.machine.kernel);
        if self.tpm {
            add("-dtb", "machine.dtb");
        } // Without one, QEMU's own tree is right: reading from a device that is not there would be a fault of the bus.
        add("-append", line.trim_end());
        add("-drive", "file=disk.img,if=none,id=disk,format=raw");
        add("-device", &q.disk_device);
        add(
            "-netdev",
            &format!("user,id=net,restrict={},hostfwd=tcp:127.0.0.1:{}-:7443", if self.outside { "off" } else { "on" }, self.port),
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
