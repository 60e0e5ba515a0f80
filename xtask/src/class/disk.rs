//! The disk image: partition table, boot partition (FAT), root partition, data partition (ext4).

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use measure::{BootFacts, Digest, Measurements};

use super::root::Facts;
use crate::plan::{Plan, Step};
use crate::store::Inputs;
use crate::{hash, recipe};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Identity of the disk; anything, but always the same.
const DISK_ID: u32 = 0xba5a_1700;
/// The data file system can grow to this many blocks of 4 KiB: 1 TiB.
const MOST_BLOCKS: u64 = 1 << 28;

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/disk.rs")?;
    inputs.path(&format!("configs/machines/{}.toml", plan.machine_name))?.path("lib/measure/src")?.path("image/release.toml")?;
    inputs.add("variant", plan.variant.as_str());
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let root = plan.planned(&Step::Root)?;
    let facts: Facts = serde_json::from_str(&std::fs::read_to_string(root.file("facts.json"))?)?;
    let command_line = command_line(plan, &facts);
    std::fs::write(out.join("cmdline.txt"), format!("{command_line}\n"))?;
    let kernel = plan.planned(&Step::Kernel)?.file(&plan.machine.kernel);
    let dtb = plan.planned(&Step::DeviceTree)?.file("machine.dtb");
    std::fs::copy(&kernel, out.join(&plan.machine.kernel))?;
    std::fs::copy(&dtb, out.join("machine.dtb"))?;
    boot_partition(plan, out)?;
    data_partition(plan, out)?;

    let image = format!("basalt-{}.img", plan.machine_name);
    assemble(plan, out, &root.file("root.img"), &out.join(&image))?;
    predict(plan, &facts, &command_line, &dtb, out)?;
    for part in ["boot.fat", "data.ext4", "machine.dtb", &plan.machine.kernel] {
        std::fs::remove_file(out.join(part))?;
    }
    let (sandbox, log) = plan.sandbox("disk")?;
    sandbox
        .write(out, "/out")
        .run(&log, ["xz", "--keep", "--threads=0", "--block-size=16MiB", "--arm64", "--lzma2=preset=6", &format!("/out/{image}")])
}

/// What the firmware hands to the kernel: the machine's own words, then the verity table
/// (kernel: Documentation/admin-guide/device-mapper/dm-init.rst and verity.rst).
fn command_line(plan: &Plan, facts: &Facts) -> String {
    let (device, blocks) = (plan.machine.partition(2), facts.data_blocks);
    format!(
        "{} dm-mod.create=\"root,,,ro,0 {} verity 1 {device} {device} 4096 4096 {blocks} {} sha256 {} {} 1 panic_on_corruption\" dm-mod.waitfor={device} root=/dev/dm-0 rootfstype=erofs ro rootwait",
        plan.machine.cmdline,
        blocks * 8,
        blocks + 1,
        facts.verity_root,
        facts.salt
    )
}

fn boot_partition(plan: &Plan, out: &Path) -> Result<()> {
    File::create(out.join("boot.fat"))?.set_len(plan.machine.boot_mib * MIB)?;
    let epoch = recipe::release()?.source_date_epoch;
    let files = [plan.machine.kernel.as_str(), "cmdline.txt", "machine.dtb"];
    for file in files {
        set_time(&out.join(file), epoch)?;
    }
    let (sandbox, log) = plan.sandbox("disk")?;
    let sandbox = sandbox.write(out, "/out").cwd("/out");
    sandbox.run(&log, ["mkfs.vfat", "--invariant", "-i", &format!("{DISK_ID:08x}"), "-n", "BASALT", "boot.fat"])?;
    for file in files {
        sandbox.run(&log, ["mcopy", "-m", "-i", "boot.fat", file, "::"])?;
    }
    Ok(())
}

fn data_partition(plan: &Plan, out: &Path) -> Result<()> {
    File::create(out.join("data.ext4"))?.set_len(plan.machine.data_mib * MIB)?;
    let (sandbox, log) = plan.sandbox("disk")?;
    let uuid = "b5a17000-0000-4000-8000-000000000002";
    sandbox.write(out, "/out").run(
        &log,
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-I",
            "256",
            "-m",
            "0",
            "-L",
            "data",
            "-U",
            uuid,
            "-J",
            "size=4",
            "-E",
            &format!("hash_seed={uuid},resize={MOST_BLOCKS},root_owner=0:0,nodiscard"),
            "/out/data.ext4",
        ],
    )
}

fn assemble(plan: &Plan, out: &Path, root: &Path, image: &Path) -> Result<()> {
    let parts = [(0x0c, out.join("boot.fat")), (0x83, root.to_owned()), (0x83, out.join("data.ext4"))];
    let mut file = File::create(image)?;
    let mut table = [0u8; 512];
    table[440..444].copy_from_slice(&DISK_ID.to_le_bytes());
    let mut at = MIB;
    for (n, (kind, part)) in parts.iter().enumerate() {
        let length = part.metadata()?.len();
        let rounded = length.next_multiple_of(MIB);
        let entry = &mut table[446 + 16 * n..][..16];
        // Start and end as cylinder, head, sector are long out of use: the values that mean "look at the numbers behind".
        entry[..8].copy_from_slice(&[if n == 0 { 0x80 } else { 0 }, 0xfe, 0xff, 0xff, *kind, 0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&u32::try_from(at / SECTOR)?.to_le_bytes());
        entry[12..].copy_from_slice(&u32::try_from(rounded / SECTOR)?.to_le_bytes());
        copy_sparse(part, &mut file, at)?;
        at += rounded;
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&table)?;
    file.set_len(at).with_context(|| format!("cannot write the image of {}", plan.machine_name))?;
    Ok(())
}

/// Copies a file to an offset, leaving blocks of zeros as holes.
fn copy_sparse(from: &Path, to: &mut File, at: u64) -> Result<()> {
    let data = std::fs::read(from)?;
    for (n, block) in data.chunks(1 << 16).enumerate() {
        if block.iter().any(|b| *b != 0) {
            to.seek(SeekFrom::Start(at + ((n as u64) << 16)))?;
            to.write_all(block)?;
        }
    }
    Ok(())
}

fn set_time(path: &Path, epoch: u64) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch);
    Ok(File::options().write(true).open(path)?.set_modified(time)?)
}

/// Writes `measurements.json` with the very functions that init measures with.
fn predict(plan: &Plan, facts: &Facts, command_line: &str, dtb: &Path, out: &Path) -> Result<()> {
    let digest = |hex: &str| -> Result<Digest> { measure::unhex(hex).and_then(|b| b.try_into().ok()).context("a digest is malformed") };
    ensure!(
        measure::verity_root(command_line) == Some(&facts.verity_root),
        "the command line's verity table is not found again by the code that init reads it with"
    );
    let events = measure::boot_events(&BootFacts {
        variant: &plan.variant,
        machine: &plan.machine_name,
        command_line,
        device_tree: measure::device_tree_digest(&std::fs::read(dtb)?)?,
        verity_root: &facts.verity_root,
        init: digest(&facts.init)?,
        trustd: digest(&facts.trustd)?,
        engine: digest(&facts.engine)?,
        configuration: digest(&facts.configuration)?,
    });
    let measurements = Measurements::predict(&plan.machine_name, &plan.variant, &recipe::release()?.version, &events);
    std::fs::write(out.join("measurements.json"), serde_json::to_string_pretty(&measurements)? + "\n")?;
    std::fs::write(out.join("image.sha256"), hash::file(&out.join(format!("basalt-{}.img", plan.machine_name)))?)?;
    Ok(())
}
