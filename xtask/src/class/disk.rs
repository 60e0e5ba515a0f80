//! The disk image: partition table, boot partition (FAT), root partition, data partition (ext4).

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use measure::{Board, BootFacts, Digest, FileList, Measurements};
use policy::Policies;

use super::root::Facts;
use crate::bmap::Bmap;
use crate::cmd::build_image::ZEROS;
use crate::plan::{Plan, Step};
use crate::qemu::partition_start;
use crate::store::Inputs;
use crate::{firmware, hash, keys, recipe};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Identity of the disk; anything, but always the same.
const DISK_ID: u32 = 0xba5a_1700;
/// The data file system can grow to this many blocks of 4 KiB: 1 TiB.
const MOST_BLOCKS: u64 = 1 << 28;

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs
        .path("xtask/src/class/disk.rs")?
        .path("xtask/src/bmap.rs")?
        .path("xtask/src/machine.rs")?
        .path("xtask/src/firmware.rs")?;
    inputs.path("lib/measure/src")?.path("image/release.toml")?;
    inputs.add("machine", plan.machine.hash_without_qemu()?);
    inputs.path("lib/policy/src")?;
    inputs.add("variant", plan.variant.as_str());
    inputs.add("signer", keys::policy_signer()?.public().hex());
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let root = plan.planned(&Step::Root)?;
    let facts: Facts = serde_json::from_str(&std::fs::read_to_string(root.file("facts.json"))?)?;
    let command_line = command_line(plan, &facts);
    let work = tempfile::tempdir_in(plan.store.scratch())?;
    let boot = work.path().join("boot");
    boot_files(plan, &command_line, &boot)?;
    let measurements = predict(plan, &facts, &command_line, &boot)?;
    std::fs::write(
        out.join("measurements.json"),
        serde_json::to_string_pretty(&measurements)? + "\n",
    )?;
    // On the card too, where it is not measured: it is made from what is.
    let policies = Policies::sign(&keys::policy_signer()?, &measurements.boards).text();
    std::fs::write(out.join(policy::FILE), &policies)?;
    std::fs::write(boot.join(policy::FILE), &policies)?;
    same_times(&boot)?;
    boot_partition(plan, work.path())?;
    data_partition(plan, work.path())?;

    let image = out.join(format!("basalt-{}.img", plan.machine_name));
    let parts = [
        (0x0c, work.path().join("boot.fat")),
        (0x83, root.file("root.img")),
        (0x83, work.path().join("data.ext4")),
    ];
    assemble(plan, &parts, &image)?;
    std::fs::write(
        out.join(format!("basalt-{}.img.bmap", plan.machine_name)),
        block_map(&image)?.to_xml(),
    )?;
    Ok(std::fs::write(out.join("image.sha256"), hash::file(&image)?)?)
}

/// What the firmware hands to the kernel: the machine's own words, what init must know of it, then
/// the verity table (kernel: Documentation/admin-guide/device-mapper/dm-init.rst and verity.rst).
fn command_line(plan: &Plan, facts: &Facts) -> String {
    let (device, blocks) = (plan.machine.partition(2), facts.data_blocks);
    format!(
        "{} {} dm-mod.create=\"root,,,ro,0 {} verity 1 {device} {device} 4096 4096 {blocks} {} sha256 {} {} 1 panic_on_corruption\" dm-mod.waitfor={device} root=/dev/dm-0 rootfstype=erofs ro rootwait",
        plan.machine.cmdline,
        plan.machine.words(&plan.machine_name),
        blocks * 8,
        blocks + 1,
        facts.verity_root,
        facts.salt
    )
}

/// All that the boot partition holds, in `boot`; every board of the machine finds its files there.
fn boot_files(plan: &Plan, command_line: &str, boot: &Path) -> Result<()> {
    std::fs::create_dir(boot)?;
    let machine = &plan.machine;
    std::fs::write(boot.join("cmdline.txt"), format!("{command_line}\n"))?;
    std::fs::write(boot.join("config.txt"), &machine.config_txt)?;
    std::fs::copy(plan.planned(&plan.kernel())?.file(&machine.kernel), boot.join(&machine.kernel))?;
    let trees = plan.planned(&Step::DeviceTree)?;
    for board in &machine.boards {
        std::fs::copy(trees.file(&board.dtb), boot.join(&board.dtb))?;
    }
    for (from, name) in &machine.firmware {
        let path = plan.planned(&Step::Tree("firmware".into()))?.file(from);
        std::fs::copy(&path, boot.join(name))
            .with_context(|| format!("the machine's file names {from} under firmware, which no package of the set firmware has"))?;
    }
    for board in &machine.boards {
        let loaded = firmware::load(boot, board)?;
        ensure!(
            (loaded.command_line.as_str(), loaded.kernel.as_str(), loaded.device_tree.as_str())
                == (command_line, machine.kernel.as_str(), board.dtb.as_str()),
            "config.txt makes {} start other files than the build measured: {loaded:?}",
            board.name
        );
    }
    Ok(())
}

fn same_times(boot: &Path) -> Result<()> {
    let epoch = recipe::release()?.source_date_epoch;
    for name in hash::walk(boot)? {
        set_time(&boot.join(name), epoch)?;
    }
    Ok(())
}

fn boot_partition(plan: &Plan, work: &Path) -> Result<()> {
    File::create(work.join("boot.fat"))?.set_len(plan.machine.boot_mib * MIB)?;
    let (sandbox, log) = plan.sandbox("disk")?;
    let sandbox = sandbox.write(work, "/work").cwd("/work");
    // Every generation of the boards' firmware reads FAT32.
    sandbox.run(
        &log,
        [
            "mkfs.vfat",
            "--invariant",
            "-F",
            "32",
            "-s",
            "1",
            "-i",
            &format!("{DISK_ID:08x}"),
            "-n",
            "BASALT",
            "boot.fat",
        ],
    )?;
    let mut copy = vec!["mcopy".to_owned(), "-m".into(), "-i".into(), "boot.fat".into()];
    copy.extend(
        hash::walk(&work.join("boot"))?.iter().map(|name| format!("boot/{}", name.display())),
    );
    copy.push("::".into());
    sandbox.run(&log, copy)
}

fn data_partition(plan: &Plan, work: &Path) -> Result<()> {
    File::create(work.join("data.ext4"))?.set_len(plan.machine.data_mib * MIB)?;
    let (sandbox, log) = plan.sandbox("disk")?;
    let uuid = "b5a17000-0000-4000-8000-000000000002";
    sandbox.write(work, "/work").run(
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
            "/work/data.ext4",
        ],
    )
}

fn assemble(plan: &Plan, parts: &[(u8, PathBuf)], image: &Path) -> Result<()> {
    let mut file = File::create(image)?;
    let mut table = [0u8; 512];
    table[440..444].copy_from_slice(&DISK_ID.to_le_bytes());
    let mut at = MIB;
    for (n, (kind, part)) in parts.iter().enumerate() {
        let length = part.metadata()?.len();
        let rounded = length.next_multiple_of(MIB);
        let entry = &mut table[446 + 16 * n..][..16];
        // Start and end as cylinder, head, sector are long out of use: the values that mean "look
        // at the numbers behind".
        entry[..8].copy_from_slice(&[
            if n == 0 { 0x80 } else { 0 },
            0xfe,
            0xff,
            0xff,
            *kind,
            0xfe,
            0xff,
            0xff,
        ]);
        entry[8..12].copy_from_slice(&u32::try_from(at / SECTOR)?.to_le_bytes());
        entry[12..].copy_from_slice(&u32::try_from(rounded / SECTOR)?.to_le_bytes());
        copy_sparse(part, &mut file, at)?;
        at += rounded;
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&table)?;
    file.set_len(at).with_context(|| format!("cannot write the image of {}", plan.machine_name))
}

/// What has to be written to a card: all but the end of the boot partition, where no file lies.
///
/// Zeros count elsewhere, too: tables of a file system must not show what was on the card before.
pub fn block_map(image: &Path) -> Result<Bmap> {
    let (start, root, end) =
        (partition_start(image, 1)?, partition_start(image, 2)?, image.metadata()?.len());
    let mut boot = vec![0; usize::try_from(root - start)?];
    File::open(image)?.read_exact_at(&mut boot, start)?;
    let used = fat_end(&boot).context("the boot partition is not FAT32")?;
    Bmap::of(image, &[(0, start + used), (root, end)])
}

/// Where the last cluster that belongs to a file ends (Microsoft, FAT specification 1.03: the boot
/// sector, and entries of 4 bytes).
fn fat_end(fat32: &[u8]) -> Option<u64> {
    let byte = |at: usize| Some(u64::from(*fat32.get(at)?));
    let word = |at: usize| Some(byte(at)? | byte(at + 1)? << 8);
    let long = |at: usize| Some(word(at)? | word(at + 2)? << 16);
    let (sector, cluster, reserved, copies, length) =
        (word(11)?, byte(13)?, word(14)?, byte(16)?, long(36)?);
    let entries = (length * sector / 4) as usize;
    let first = (reserved * sector) as usize;
    let last = (2..entries)
        .rev()
        .find(|n| long(first + 4 * n).is_some_and(|e| e & 0x0fff_ffff != 0))? as u64;
    Some((reserved + copies * length) * sector + (last - 1) * cluster * sector)
}

/// Copies a file to an offset, leaving blocks of zeros as holes.
fn copy_sparse(from: &Path, to: &mut File, at: u64) -> Result<()> {
    let data = std::fs::read(from)?;
    for (n, block) in data.chunks(ZEROS.len()).enumerate() {
        if *block != ZEROS[..block.len()] {
            to.seek(SeekFrom::Start(at + (n * ZEROS.len()) as u64))?;
            to.write_all(block)?;
        }
    }
    Ok(())
}

fn set_time(path: &Path, epoch: u64) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch);
    Ok(File::options().write(true).open(path)?.set_modified(time)?)
}

/// With the very functions that init measures with.
fn predict(plan: &Plan, facts: &Facts, command_line: &str, boot: &Path) -> Result<Measurements> {
    let digest = |hex: &str| -> Result<Digest> {
        measure::unhex(hex).and_then(|b| b.try_into().ok()).context("a digest is malformed")
    };
    ensure!(
        measure::verity_root(command_line) == Some(&facts.verity_root),
        "the command line's verity table is not found again by the code that init reads it with"
    );
    // init reads it with the same code.
    ::config::Machine::from_command_line(command_line)?;
    ensure!(
        measure::own_words(command_line) == command_line,
        "the command line begins with a word that only firmware may put there"
    );
    let mut files = FileList::default();
    for name in hash::walk(boot)? {
        files.add(
            &format!("/boot/{}", name.display()).to_ascii_lowercase(),
            &std::fs::read(boot.join(&name))?,
        )?;
    }
    let mut boards = Vec::new();
    for board in &plan.machine.boards {
        let events = measure::boot_events(&BootFacts {
            variant: &plan.variant,
            machine: &plan.machine_name,
            command_line,
            device_tree: measure::device_tree_digest(&std::fs::read(boot.join(&board.dtb))?)?,
            boot_partition: files.digest(),
            node_settings: measure::no_settings(),
            verity_root: &facts.verity_root,
            init: digest(&facts.init)?,
            trustd: digest(&facts.trustd)?,
            engine: digest(&facts.engine)?,
            configuration: digest(&facts.configuration)?,
        });
        boards.push(Board::predict(&board.name, &events));
    }
    Ok(Measurements {
        machine: plan.machine_name.clone(),
        variant: plan.variant.clone(),
        version: recipe::release()?.version,
        boards,
    })
}
