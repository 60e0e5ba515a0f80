//! The disk image: partition table, boot partition (FAT), root partition, data partition (ext4).

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use measure::{Board, BootComponents, Digest, FileList, Measurements};
use policy::Policies;

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::hash;
use crate::image::bmap::Bmap;
use crate::image::partition::partition_start;
use crate::image::spec::ImageSpec;
use crate::image::{firmware, keys, recipe, sparse};
use crate::rules::root::{self, RootMetadata};
use crate::rules::{dtb, kernel, sysroot};

const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;
/// Identity of the disk: arbitrary, but always the same.
const DISK_ID: u32 = 0xba5a_1700;
/// Blocks of 4 KiB that the data file system can grow to: 1 TiB.
const MAX_DATA_BLOCKS: u64 = 1 << 28;

/// The disk image of one machine.
struct Disk(Rc<ImageSpec>);

/// Returns the step that assembles the disk image.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(Disk(image.clone()))
}

/// Returns the name of the step, which is also that of its log.
fn name(image: &ImageSpec) -> String {
    format!("disk-{}", image.machine_name)
}

impl Rule for Disk {
    fn name(&self) -> String {
        name(&self.0)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        let image = &self.0;
        let mut needs =
            vec![sysroot::tools_step(), kernel::step(image), dtb::step(image), root::step(image)];
        if !image.machine.firmware.is_empty() {
            needs.push(sysroot::step("firmware"));
        }
        Ok(needs)
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        for file in ["bmap", "firmware", "machine", "partition", "sparse", "spec"] {
            inputs.path(&format!("xtask/src/image/{file}.rs"))?;
        }
        inputs.path("lib/measure/src")?.path("lib/policy/src")?.path("image/release.toml")?;
        inputs
            .add("machine", self.0.machine.hash_without_qemu()?)
            .add("variant", self.0.variant.as_str())
            .add("signer", keys::policy_signer()?.public().hex());
        Ok(())
    }

    fn label(&self) -> String {
        "assembling the image".into()
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let image = &*self.0;
        let root = graph.artifact(&root::step(&self.0))?;
        let metadata: RootMetadata =
            serde_json::from_str(&std::fs::read_to_string(root.file(root::METADATA))?)?;
        let command_line = command_line(image, &metadata);
        let work = tempfile::tempdir_in(graph.cache.scratch())?;
        let boot = work.path().join("boot");
        boot_files(graph, &self.0, &command_line, &boot)?;
        let measurements = predict(image, &metadata, &command_line, &boot)?;
        std::fs::write(
            out.join("measurements.json"),
            serde_json::to_string_pretty(&measurements)? + "\n",
        )?;
        // The policies are also on the card, where they are not measured: they are made from the
        // measurements.
        let policies = Policies::sign(&keys::policy_signer()?, &measurements.boards).text();
        std::fs::write(out.join(policy::FILE_NAME), &policies)?;
        std::fs::write(boot.join(policy::FILE_NAME), &policies)?;
        set_times(&boot)?;
        boot_partition(graph, image, work.path())?;
        data_partition(graph, image, work.path())?;

        let disk = out.join(image.file_name());
        let parts = [
            (0x0c, work.path().join("boot.fat")),
            (0x83, root.file("root.img")),
            (0x83, work.path().join("data.ext4")),
        ];
        assemble(&parts, &disk)
            .with_context(|| format!("cannot write the image of {}", image.machine_name))?;
        let bmap = out.join(format!("{}.bmap", image.file_name()));
        std::fs::write(bmap, block_map(&disk)?.to_xml())?;
        Ok(std::fs::write(out.join("image.sha256"), hash::file(&disk)?)?)
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Returns the kernel's command line: the machine's own words, the words for init, then the verity
/// table (kernel: Documentation/admin-guide/device-mapper/dm-init.rst and verity.rst).
fn command_line(image: &ImageSpec, metadata: &RootMetadata) -> String {
    let (device, blocks) = (image.machine.partition(2), metadata.data_blocks);
    format!(
        "{} {} dm-mod.create=\"root,,,ro,0 {} verity 1 {device} {device} 4096 4096 {blocks} {} \
         sha256 {} {} 1 panic_on_corruption\" dm-mod.waitfor={device} root=/dev/dm-0 \
         rootfstype=erofs ro rootwait",
        image.machine.cmdline,
        image.machine.kernel_parameters(&image.machine_name),
        blocks * 8,
        blocks + 1,
        metadata.verity_root,
        metadata.salt
    )
}

/// Puts all files of the boot partition into `boot`, and checks that every board of the machine
/// finds its files there.
fn boot_files(
    graph: &BuildGraph,
    image: &Rc<ImageSpec>,
    command_line: &str,
    boot: &Path,
) -> Result<()> {
    std::fs::create_dir(boot)?;
    let machine = &image.machine;
    std::fs::write(boot.join("cmdline.txt"), format!("{command_line}\n"))?;
    std::fs::write(boot.join("config.txt"), &machine.config_txt)?;
    let kernel = graph.artifact(&kernel::step(image))?;
    std::fs::copy(kernel.file(&machine.kernel), boot.join(&machine.kernel))?;
    let trees = graph.artifact(&dtb::step(image))?;
    for board in &machine.boards {
        std::fs::copy(trees.file(&board.dtb), boot.join(&board.dtb))?;
    }
    for (from, name) in &machine.firmware {
        let path = graph.artifact(&sysroot::step("firmware"))?.file(from);
        std::fs::copy(&path, boot.join(name)).with_context(|| {
            format!(
                "the machine's file names {from} under firmware, which no package of the set \
                 firmware has"
            )
        })?;
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

/// Sets the time of the release on every file, so that the partition is reproducible.
fn set_times(boot: &Path) -> Result<()> {
    let epoch = recipe::release()?.source_date_epoch;
    for name in hash::walk(boot)? {
        set_time(&boot.join(name), epoch)?;
    }
    Ok(())
}

fn boot_partition(graph: &BuildGraph, image: &ImageSpec, work: &Path) -> Result<()> {
    File::create(work.join("boot.fat"))?.set_len(image.machine.boot_mib * MIB)?;
    let (sandbox, log) = sysroot::sandbox(graph, &name(image))?;
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

fn data_partition(graph: &BuildGraph, image: &ImageSpec, work: &Path) -> Result<()> {
    File::create(work.join("data.ext4"))?.set_len(image.machine.data_mib * MIB)?;
    let (sandbox, log) = sysroot::sandbox(graph, &name(image))?;
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
            &format!("hash_seed={uuid},resize={MAX_DATA_BLOCKS},root_owner=0:0,nodiscard"),
            "/work/data.ext4",
        ],
    )
}

/// Writes the partitions, of the given types, and the table in front of them.
fn assemble(parts: &[(u8, PathBuf)], image: &Path) -> Result<()> {
    let mut file = File::create(image)?;
    let mut table = [0u8; 512];
    table[440..444].copy_from_slice(&DISK_ID.to_le_bytes());
    let mut at = MIB;
    for (n, (kind, part)) in parts.iter().enumerate() {
        let length = part.metadata()?.len();
        let rounded = length.next_multiple_of(MIB);
        let entry = &mut table[446 + 16 * n..][..16];
        // Start and end as cylinder, head, sector are obsolete: these values mean "use the sector
        // numbers that follow".
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
        entry[8..12].copy_from_slice(&u32::try_from(at / SECTOR_BYTES)?.to_le_bytes());
        entry[12..].copy_from_slice(&u32::try_from(rounded / SECTOR_BYTES)?.to_le_bytes());
        sparse::copy_to_offset(part, &mut file, at)?;
        at += rounded;
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&table)?;
    Ok(file.set_len(at)?)
}

/// Returns the blocks that have to be written to a card: all except for the end of the boot
/// partition, which no file uses.
///
/// Zeros elsewhere are written too: tables of a file system must not show what was on the card
/// before.
///
/// # Errors
///
/// Fails if the image cannot be read or its boot partition is not FAT32.
pub fn block_map(image: &Path) -> Result<Bmap> {
    let (start, root, end) =
        (partition_start(image, 1)?, partition_start(image, 2)?, image.metadata()?.len());
    let mut boot = vec![0; usize::try_from(root - start)?];
    File::open(image)?.read_exact_at(&mut boot, start)?;
    let used = fat_end(&boot).context("the boot partition is not FAT32")?;
    Bmap::from_image(image, &[(0, start + used), (root, end)])
}

/// Returns where the last cluster that belongs to a file ends (Microsoft, FAT specification 1.03:
/// the boot sector, and entries of 4 bytes).
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

fn set_time(path: &Path, epoch: u64) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch);
    Ok(File::options().write(true).open(path)?.set_modified(time)?)
}

/// Predicts the measurements of each board with the functions that init measures with.
fn predict(
    image: &ImageSpec,
    metadata: &RootMetadata,
    command_line: &str,
    boot: &Path,
) -> Result<Measurements> {
    let digest = |hex: &str| -> Result<Digest> {
        measure::unhex(hex).and_then(|b| b.try_into().ok()).context("a digest is malformed")
    };
    ensure!(
        measure::verity_root(command_line) == Some(&metadata.verity_root),
        "the code that init reads the command line with does not find the verity table"
    );
    // init parses the command line with the same code.
    ::config::Machine::from_command_line(command_line)?;
    ensure!(
        measure::strip_firmware_parameters(command_line) == command_line,
        "the command line begins with a word that only firmware may add"
    );
    let mut files = FileList::default();
    for name in hash::walk(boot)? {
        files.add(
            &format!("/boot/{}", name.display()).to_ascii_lowercase(),
            &std::fs::read(boot.join(&name))?,
        )?;
    }
    let mut boards = Vec::new();
    for board in &image.machine.boards {
        let events = measure::boot_events(&BootComponents {
            variant: &image.variant,
            machine: &image.machine_name,
            command_line,
            device_tree: measure::device_tree_digest(&std::fs::read(boot.join(&board.dtb))?)?,
            boot_partition: files.digest(),
            node_settings: measure::empty_settings_digest(),
            verity_root: &metadata.verity_root,
            init: digest(&metadata.init)?,
            trustd: digest(&metadata.trustd)?,
            engine: digest(&metadata.engine)?,
            configuration: digest(&metadata.configuration)?,
        });
        boards.push(Board::predict(&board.name, &events));
    }
    Ok(Measurements {
        machine: image.machine_name.clone(),
        variant: image.variant.clone(),
        version: recipe::release()?.version,
        boards,
    })
}
