//! The baseline that an image is measured against: Debian with systemd, its generic kernel and the
//! same engine. No part of an image.
//!
//! The packages are extracted here and configure themselves in an emulated machine, under this
//! project's kernel. Without help of the host's administrator, there is no other way to run their
//! scripts on a host of another architecture.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::sandbox::Sandbox;
use crate::engine::{fetch, host, layers, lock};
use crate::image::machine::{self, Qemu, TEST_MACHINE};
use crate::image::spec::ImageSpec;
use crate::rules::{kernel, sysroot};

/// Package set of the baseline, and name of the step.
pub const SET: &str = "baseline";
const SCRIPTS: &str = "image/baseline";
/// Room for the packages before and after they are unpacked.
const DISK_MIB: u64 = 3072;
const TIMEOUT_S: &str = "5400";

/// The baseline, configured under the kernel of one image.
struct Baseline(Rc<ImageSpec>);

/// Returns the step that builds the baseline.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(Baseline(image.clone()))
}

impl Rule for Baseline {
    fn name(&self) -> String {
        SET.into()
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(vec![sysroot::tools_step(), kernel::step(&self.0), sysroot::step(SET)])
    }

    fn inputs(&self, graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        inputs.path(SCRIPTS)?;
        inputs.add("lock", lock::load(SET, graph.locked)?.hash());
        Ok(())
    }

    fn label(&self) -> String {
        "configuring Debian's packages in QEMU, about 15 minutes".into()
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let work = tempfile::tempdir_in(graph.cache.scratch())?;
        stage(&work.path().join("stage"))?;
        let kernel = graph.artifact(&kernel::step(&self.0))?.dir;
        let packages = graph.artifact(&sysroot::step(SET))?.dir;
        let (sandbox, log) = sysroot::sandbox(graph, SET)?;
        let sandbox = sandbox
            .write(work.path(), "/work")
            .write(out, "/out")
            .read(&kernel, "/in")
            .read(&packages, "/src")
            .cwd("/work");
        file_system(&sandbox, &log, "/src", "/out/root.img")?;
        file_system(&sandbox, &log, "/work/stage", "stage.img")?;
        let machine = machine::load(TEST_MACHINE)?;
        let q = machine.qemu.context("the machine for tests has no [qemu]")?;
        sandbox.run(&log, second_stage(&q))?;
        ensure!(
            std::fs::read_to_string(&log)?.contains("second stage: done"),
            "the packages did not configure themselves; the console is in {}",
            log.display()
        );
        for name in ["vmlinuz", "initrd", "config", "executables", "setuid"] {
            let dump = format!("dump /{name} /out/{name}");
            sandbox.run(&log, ["debugfs", "-R", &dump, "stage.img"])?;
            ensure!(
                out.join(name).metadata().is_ok_and(|m| m.len() > 0),
                "the baseline has no {name}"
            );
        }
        // The file system is made again from its files, so that deleted ones do not count.
        let last = "mkdir files && debugfs -R 'rdump / files' /out/root.img && \
             rm -rf files/lost+found && rm /out/root.img";
        sandbox.run(&log, ["sh", "-c", last])?;
        file_system(&sandbox, &log, "/work/files", "/out/root.img")?;
        let threads = format!("--threads={}", host::jobs());
        sandbox.run(&log, ["xz", "-k", &threads, "-6", "/out/root.img"])
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Puts the packages and the scripts of the second stage into a folder.
fn stage(to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.join("debs"))?;
    for package in lock::load(SET, true)?.package {
        let version = package.version.replace(':', "%3a");
        let name = format!("{}_{version}_{}.deb", package.name, package.architecture);
        std::fs::copy(fetch::blob(&package.sha256)?, to.join("debs").join(name))?;
    }
    for (name, path) in layers::current().files(SCRIPTS)? {
        std::fs::copy(path, to.join(&name))?;
        std::fs::set_permissions(to.join(&name), std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Returns the QEMU command that runs the script `second-stage` on the two file systems.
fn second_stage(q: &Qemu) -> Vec<String> {
    let mut qemu = vec!["timeout".to_owned(), TIMEOUT_S.into(), "qemu-system-aarch64".into()];
    qemu.extend(["-machine".into(), q.machine.clone()]);
    let options = "-cpu cortex-a72 -smp 2 -m 2048 -display none -nic none -monitor none \
        -no-reboot -serial stdio -kernel /in/Image";
    qemu.extend(options.split(' ').map(str::to_owned));
    for (n, image) in ["/out/root.img", "stage.img"].iter().enumerate() {
        qemu.extend([
            "-drive".into(),
            format!("file={image},format=raw,if=none,id=d{n}"),
            "-device".into(),
            format!("virtio-blk-device,drive=d{n}"),
        ]);
    }
    // The device that is named last becomes the first disk.
    let line = "console=ttyAMA0 root=/dev/vdb rw panic=-1 init=/usr/bin/bash -- -c \
        \"mkdir -p /mnt && mount /dev/vda /mnt && exec bash /mnt/second-stage\"";
    qemu.extend(["-append".into(), line.into()]);
    qemu
}

fn file_system(sandbox: &Sandbox, log: &Path, from: &str, to: &str) -> Result<()> {
    let size = format!("{DISK_MIB}M");
    let options = ["-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d", from, to, &size];
    sandbox.run(log, std::iter::once("mke2fs").chain(options))
}
