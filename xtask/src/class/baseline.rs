//! What an image is measured against: Debian with systemd, its generic kernel and the same engine.
//!
//! The packages are laid out here and configure themselves in an emulated machine, under this
//! project's kernel; there is no other way to run their scripts on a host of another architecture
//! without its administrator's help.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::plan::{Plan, Step};
use crate::sandbox::Sandbox;
use crate::store::Inputs;
use crate::{fetch, layers, lock};

pub const SET: &str = "baseline";
const SCRIPTS: &str = "image/baseline";
/// Room for the packages before and after they are unpacked.
const DISK_MIB: u64 = 3072;
const LONGEST_S: &str = "5400";

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/baseline.rs")?.path(SCRIPTS)?;
    inputs.add("lock", lock::load(SET, plan.locked)?.hash());
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(plan.store.scratch())?;
    let stage = work.path().join("stage");
    std::fs::create_dir_all(stage.join("debs"))?;
    for package in lock::load(SET, true)?.package {
        let name = format!(
            "{}_{}_{}.deb",
            package.name,
            package.version.replace(':', "%3a"),
            package.architecture
        );
        std::fs::copy(fetch::blob(&package.sha256)?, stage.join("debs").join(name))?;
    }
    for (name, path) in layers::current().files(SCRIPTS)? {
        std::fs::copy(path, stage.join(&name))?;
        std::fs::set_permissions(stage.join(&name), std::fs::Permissions::from_mode(0o755))?;
    }
    let kernel = plan.planned(&plan.kernel())?.dir;
    let tree = plan.planned(&Step::Tree(SET.into()))?.dir;
    let (sandbox, log) = plan.sandbox(SET)?;
    let sandbox = sandbox
        .write(work.path(), "/work")
        .write(out, "/out")
        .read(&kernel, "/in")
        .read(&tree, "/src")
        .cwd("/work");
    file_system(&sandbox, &log, "/src", "/out/root.img")?;
    file_system(&sandbox, &log, "/work/stage", "stage.img")?;
    let machine = crate::machine::load(crate::cmd::TEST_MACHINE)?;
    let q = machine.qemu.context("the machine for tests has no [qemu]")?;
    let mut qemu = vec![
        "timeout".to_owned(),
        LONGEST_S.into(),
        "qemu-system-aarch64".into(),
        "-machine".into(),
        q.machine.clone(),
    ];
    qemu.extend(
        [
            "-cpu",
            "cortex-a72",
            "-smp",
            "2",
            "-m",
            "2048",
            "-display",
            "none",
            "-nic",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]
        .map(str::to_owned),
    );
    qemu.extend(["-serial", "stdio", "-kernel", "/in/Image"].map(str::to_owned));
    for (n, image) in ["/out/root.img", "stage.img"].iter().enumerate() {
        qemu.extend([
            "-drive".into(),
            format!("file={image},format=raw,if=none,id=d{n}"),
            "-device".into(),
            format!("virtio-blk-device,drive=d{n}"),
        ]);
    }
    // The last device that is named becomes the first disk.
    let line = "console=ttyAMA0 root=/dev/vdb rw panic=-1 init=/usr/bin/bash -- -c \"mkdir -p /mnt && mount /dev/vda /mnt && exec bash /mnt/second-stage\"";
    qemu.extend(["-append".into(), line.into()]);
    sandbox.run(&log, qemu)?;
    let said = std::fs::read_to_string(&log)?;
    ensure!(
        said.contains("second stage: done"),
        "the packages did not configure themselves; the console is in {}",
        log.display()
    );
    for name in ["vmlinuz", "initrd", "config", "executables", "setuid"] {
        sandbox.run(&log, ["debugfs", "-R", &format!("dump /{name} /out/{name}"), "stage.img"])?;
        ensure!(
            out.join(name).metadata().is_ok_and(|m| m.len() > 0),
            "the baseline gave no {name}"
        );
    }
    // Made anew from its files, so that nothing that was deleted counts.
    let last = "mkdir files && debugfs -R 'rdump / files' /out/root.img && rm -rf files/lost+found && rm /out/root.img";
    sandbox.run(&log, ["sh", "-c", last])?;
    file_system(&sandbox, &log, "/work/files", "/out/root.img")?;
    sandbox.run(&log, ["xz", "-k", &format!("--threads={}", Plan::jobs()), "-6", "/out/root.img"])
}

fn file_system(sandbox: &Sandbox, log: &Path, from: &str, to: &str) -> Result<()> {
    sandbox.run(
        log,
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-m",
            "0",
            "-E",
            "root_owner=0:0",
            "-d",
            from,
            to,
            &format!("{DISK_MIB}M"),
        ],
    )
}
