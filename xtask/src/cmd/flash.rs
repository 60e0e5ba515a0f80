//! `cargo xtask flash DEVICE`: an image onto a card, read back and compared.
//!
//! Invariant: the partition table is written last, after all else was read back, so that a card is
//! either whole or no disk at all.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use ledger::VerifyingKey;
use policy::Policies;
use sha2::{Digest as _, Sha256};
use trustctl::keys;
use trustctl::verdict::Expected;

use crate::bmap::{BLOCK, Bmap, Range};
use crate::class::disk;
use crate::drives::{Drive, Host};
use crate::paths;
use crate::progress::{self, Task};

#[derive(clap::Args)]
pub struct Args {
    /// The whole device (/dev/sdX, /dev/mmcblkN), or a file; without it, removable devices are
    /// listed
    device: Option<PathBuf>,
    /// The machine that the card is for
    #[arg(long)]
    machine: Option<String>,
    /// An image elsewhere, with all that its builder signed beside it
    #[arg(long)]
    image: Option<PathBuf>,
    /// The public key of whoever built that image, in hex; without it, your own builder.key
    #[arg(long, requires = "image")]
    builder: Option<String>,
    /// A node.toml that is put on the card's boot partition: host name, address, time servers,
    /// owner of this one node
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// A layer that the machine is of, as for build-image
    #[arg(long, value_name = "DIR")]
    layer: Vec<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub fn run(args: Args) -> Result<()> {
    crate::layers::lay(&args.layer)?;
    let Some(device) = args.device else { return list() };
    let wanted = args
        .machine
        .clone()
        .or_else(|| args.image.is_none().then(|| super::DEFAULT_MACHINE.to_owned()));
    if let Some(machine) = &wanted {
        crate::machine::load(machine)?;
    }
    let mut image = match args.image {
        Some(image) => image,
        None => {
            let machine = wanted.clone().unwrap_or_default();
            paths::output(&machine).join(format!("basalt-{machine}.img"))
        }
    };
    let builder = keys::builder(args.builder.as_deref(), &keys::folder()?)?;
    let mut map = check_image(&image, wanted.as_deref(), &builder)?;
    let same = |a: &Path, b: &Path| {
        Some(a.metadata().ok().map(|m| (m.dev(), m.ino())))
            == Some(b.metadata().ok().map(|m| (m.dev(), m.ino())))
    };
    ensure!(
        !same(&device, &image),
        "{} is the image itself; nothing was written",
        device.display()
    );
    let card = open(&device, map.image_size)?;
    if !args.yes {
        confirm(&device, &card, &image)?;
    }
    let work = tempfile::tempdir()?;
    if let Some(settings) = &args.settings {
        image = with_settings(&image, &map, settings, work.path())?;
        map = disk::block_map(&image)?;
    }
    write(&image, &map, &card, &device.display().to_string())?;
    println!(
        "{} is done: read back and compared. Put the card into the board and switch it on.",
        device.display()
    );
    if let Some(settings) = args.settings {
        println!(
            "Next: trustctl --node HOST:7443 attest --expect measurements.json --settings {}",
            settings.display()
        );
    }
    Ok(())
}

/// The whole of it without questions, for programs.
pub fn flash(image: &Path, machine: &str, device: &Path) -> Result<()> {
    let map = check_image(image, Some(machine), &keys::builder(None, &keys::folder()?)?)?;
    write(image, &map, &open(device, map.image_size)?, &device.display().to_string())
}

/// A copy of the image with the owner's file on its boot partition.
fn with_settings(image: &Path, map: &Bmap, settings: &Path, work: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(settings)
        .with_context(|| format!("cannot read {}", settings.display()))?;
    let shipped = std::fs::read_to_string(crate::layers::current().find("configs/node.toml"))?;
    ensure!(
        text.len() as u64 <= measure::LARGEST_SETTINGS,
        "{} is larger than {} bytes",
        settings.display(),
        measure::LARGEST_SETTINGS
    );
    let node = ::config::node(&shipped, Some(&text))
        .with_context(|| format!("{}: a node would stop at it", settings.display()))?;
    let policies = policies(image, &node.keys, settings)?;
    let plan = super::tools_plan()?;
    let copy = work.join("card.img");
    super::build_image::sparse_copy(image, &copy)?;
    let source = File::open(&copy)?;
    for range in &map.ranges {
        signed(&source, map, range)?;
    }
    std::fs::write(work.join("node.toml"), text)?;
    std::fs::write(work.join(policy::FILE), policies.text())?;
    let (sandbox, log) = plan.sandbox("settings")?;
    let place = format!("card.img@@{}", crate::qemu::partition_start(&copy, 1)?);
    sandbox
        .write(work, "/work")
        .cwd("/work")
        .run(&log, ["mcopy", "-o", "-i", &place, "node.toml", policy::FILE, "::"])?;
    Ok(copy)
}

/// Settings are measured, so the image's own policies do not let such a boot have the root key.
fn policies(image: &Path, keys: &::config::Keys, settings: &Path) -> Result<Policies> {
    let beside = |name: &str| image.with_file_name(name);
    let read = |name: &str| {
        std::fs::read(beside(name))
            .with_context(|| format!("cannot read {}", beside(name).display()))
    };
    let shipped = Policies::read(&read(policy::FILE)?)
        .with_context(|| beside(policy::FILE).display().to_string())?;
    let wanted = keys.signer.as_ref().unwrap_or(&shipped.signer);
    let own = keys::policy_signer(&keys::load(&keys::folder()?.join(keys::BUILDER), "builder")?);
    let found = own.public().hex();
    ensure!(
        *wanted == found,
        "a node with these settings takes policies of {wanted}, and yours are of {found}; put keys.signer = \"{found}\" into {}",
        settings.display()
    );
    let expected = Expected::image(&beside("measurements.json"), Some(settings))?;
    Ok(Policies::sign(&own, &expected.boards))
}

fn list() -> Result<()> {
    let drives: Vec<Drive> = Host::this().drives()?.into_iter().filter(Drive::removable).collect();
    if drives.is_empty() {
        println!("no removable device is there; insert the card and run this again");
        return Ok(());
    }
    for drive in &drives {
        let uses = drive.uses()?;
        let state =
            if uses.is_empty() { String::new() } else { format!("   in use: {}", uses.join(", ")) };
        println!(
            "/dev/{:10} {:>10}  {}{state}",
            drive.name,
            progress::size(drive.size()?),
            drive.model()
        );
    }
    println!("\nNext: cargo xtask flash /dev/NAME   (everything on it is lost)");
    Ok(())
}

/// The image is whole, its builder signed it, and it is for this machine.
fn check_image(image: &Path, wanted: Option<&str>, builder: &VerifyingKey) -> Result<Bmap> {
    let shown = image.display();
    let (dir, name) = (
        image.parent().filter(|d| *d != Path::new("")).unwrap_or(Path::new(".")),
        image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    );
    ensure!(image.is_file(), "there is no {shown}; run `cargo xtask build-image` first");
    let manifest = trustctl::image::verify(dir, builder)
        .with_context(|| format!("{shown} is not what its builder signed"))?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != manifest.machine) {
        bail!("{shown} is an image for {}, not for {wanted}", manifest.machine);
    }
    let map = format!("{name}.bmap");
    for covered in [&name, &map] {
        ensure!(manifest.outputs.contains_key(covered), "the builder signed no {covered}");
    }
    let map = Bmap::parse(&std::fs::read_to_string(dir.join(map))?)?;
    let found = image.metadata()?.len();
    ensure!(
        found == map.image_size,
        "{shown} is not whole: expected {} bytes, found {found}; build or fetch it again",
        map.image_size
    );
    Ok(map)
}

/// Opens what is to be overwritten, if it may be.
fn open(device: &Path, needed: u64) -> Result<File> {
    let shown = device.display();
    let meta = device.metadata().with_context(|| {
        format!("{shown} is not there; `cargo xtask flash` lists removable devices")
    })?;
    let mut options = File::options();
    options.read(true).write(true);
    let block = meta.file_type().is_block_device();
    if block {
        if let Some(why) = Host::this().drive_of_number(meta.rdev())?.refusal()? {
            bail!("{shown} {why}; nothing was written");
        }
        // The kernel refuses this while anything holds the device.
        options.custom_flags(nix::libc::O_EXCL);
    } else {
        ensure!(meta.is_file(), "{shown} is neither a device for blocks nor a file");
    }
    let file = options
        .open(device)
        .with_context(|| format!("cannot open {shown} for itself alone; nothing was written"))?;
    let opened = file.metadata()?;
    ensure!(
        (opened.dev(), opened.ino(), opened.rdev()) == (meta.dev(), meta.ino(), meta.rdev()),
        "{shown} became something else while it was opened; nothing was written"
    );
    let size =
        if block { Host::this().drive_of_number(opened.rdev())?.size()? } else { opened.len() };
    ensure!(
        size >= needed,
        "{shown} is too small: the image has {}, found {}; nothing was written",
        progress::size(needed),
        progress::size(size)
    );
    Ok(file)
}

fn confirm(device: &Path, card: &File, image: &Path) -> Result<()> {
    let meta = card.metadata()?;
    let what = if meta.file_type().is_block_device() {
        let drive = Host::this().drive_of_number(meta.rdev())?;
        format!("{} {}", drive.model(), progress::size(drive.size()?))
    } else {
        format!("a file of {}", progress::size(meta.len()))
    };
    let shown = device.display();
    print!(
        "Everything on {shown} ({}) will be lost, and {} written to it. Type yes: ",
        what.trim(),
        image.display()
    );
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(answer.trim() == "yes", "nothing was written");
    Ok(())
}

/// A card, or what a test puts in its place.
trait Card {
    fn put(&self, data: &[u8], at: u64) -> std::io::Result<()>;
    fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()>;
    /// What was written is on the medium, and what is read next comes from there.
    fn settle(&self) -> std::io::Result<()>;
}

impl Card for File {
    fn put(&self, data: &[u8], at: u64) -> std::io::Result<()> {
        self.write_all_at(data, at)
    }

    fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()> {
        self.read_exact_at(data, at)
    }

    fn settle(&self) -> std::io::Result<()> {
        self.sync_all()?;
        Ok(nix::fcntl::posix_fadvise(
            self,
            0,
            0,
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )?)
    }
}

const UNFINISHED: &str =
    "the card is not done and will not boot; check it and run the command again";

/// What a range of the image holds, if it is still what the map says.
fn signed(source: &File, map: &Bmap, range: &Range) -> Result<Vec<u8>> {
    let mut data = vec![0; range.length(map.image_size) as usize];
    source.read_exact_at(&mut data, range.start())?;
    let found = measure::hex(&Sha256::digest(&data));
    ensure!(
        found == range.sha256,
        "the image changed while it was used: blocks {} to {}",
        range.first,
        range.last
    );
    Ok(data)
}

fn write(image: &Path, map: &Bmap, card: &dyn Card, name: &str) -> Result<()> {
    let source = File::open(image)?;
    let failed = |what: &str, at: u64| {
        format!(
            "{what} {name} failed at {} of {}: {UNFINISHED}",
            progress::size(at),
            progress::size(map.image_size)
        )
    };
    // Whatever is on the card now stops being a disk first.
    card.put(&[0; BLOCK as usize], 0).with_context(|| failed("writing", 0))?;
    card.settle().with_context(|| failed("writing", 0))?;

    let task = Task::begin("write", &format!("{} to {name}", progress::size(map.mapped())));
    task.bytes(map.mapped());
    let mut table = Vec::new();
    for range in &map.ranges {
        let mut data = signed(&source, map, range)?;
        if range.first == 0 {
            let rest = data.split_off(BLOCK as usize);
            table = std::mem::replace(&mut data, rest);
            card.put(&data, BLOCK)
        } else {
            card.put(&data, range.start())
        }
        .with_context(|| failed("writing", range.start()))?;
        task.advance(range.length(map.image_size));
    }
    card.settle().with_context(|| failed("writing", map.image_size))?;
    task.done(&progress::size(map.mapped()));

    let task = Task::begin("read back", name);
    task.bytes(map.mapped());
    for range in &map.ranges {
        let mut data = vec![0; range.length(map.image_size) as usize];
        card.get(&mut data, range.start())
            .with_context(|| failed("reading back", range.start()))?;
        if range.first == 0 {
            data[..BLOCK as usize].copy_from_slice(&table);
        }
        let found = measure::hex(&Sha256::digest(&data));
        ensure!(
            found == range.sha256,
            "{name} does not keep what is written to it: blocks {} to {}, expected SHA-256 {}, found {found}; {UNFINISHED}",
            range.first,
            range.last,
            range.sha256
        );
        task.advance(data.len() as u64);
    }
    // Now it becomes a disk.
    card.put(&table, 0).and_then(|()| card.settle()).with_context(|| failed("writing", 0))?;
    let mut first = vec![0; BLOCK as usize];
    card.get(&mut first, 0).with_context(|| failed("reading back", 0))?;
    ensure!(first == table, "{name} does not keep its partition table; {UNFINISHED}");
    task.done("everything as written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;
    use std::cell::{Cell, RefCell};

    struct Memory {
        data: RefCell<Vec<u8>>,
        /// Bytes that can be written before the card goes away.
        lasts: Cell<usize>,
        /// A bit that does not hold, at this place.
        weak: Option<usize>,
    }

    impl Card for Memory {
        fn put(&self, data: &[u8], at: u64) -> std::io::Result<()> {
            let left = self
                .lasts
                .get()
                .checked_sub(data.len())
                .ok_or(std::io::Error::from_raw_os_error(nix::libc::EIO))?;
            self.lasts.set(left);
            self.data.borrow_mut()[at as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }

        fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()> {
            data.copy_from_slice(&self.data.borrow()[at as usize..][..data.len()]);
            if let Some(byte) =
                self.weak.and_then(|w| w.checked_sub(at as usize)).and_then(|w| data.get_mut(w))
            {
                *byte ^= 1;
            }
            Ok(())
        }

        fn settle(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const SIZE: usize = 64 * BLOCK as usize;

    fn image(dir: &Path) -> (PathBuf, Bmap) {
        let path = dir.join("x.img");
        let data: Vec<u8> = (0..SIZE).map(|n| (n / 7 + 1) as u8).collect();
        std::fs::write(&path, data).unwrap();
        let map = Bmap::of(&path, &[(0, 8 * BLOCK), (32 * BLOCK, SIZE as u64)]).unwrap();
        (path, map)
    }

    fn memory(lasts: usize, weak: Option<usize>) -> Memory {
        Memory { data: RefCell::new(vec![0xee; SIZE]), lasts: Cell::new(lasts), weak }
    }

    #[test]
    fn mapped_blocks_are_written_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        let card = memory(usize::MAX, None);
        write(&path, &map, &card, "card").unwrap();
        let (is, was) = (card.data.borrow(), std::fs::read(&path).unwrap());
        let (a, b) = (8 * BLOCK as usize, 32 * BLOCK as usize);
        assert!(is[..a] == was[..a] && is[b..] == was[b..] && is[a..b].iter().all(|x| *x == 0xee));
    }

    #[test]
    fn a_card_that_goes_away_at_any_moment_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        let all = (map.mapped() + BLOCK) as usize;
        for lasts in (BLOCK as usize..all).step_by(BLOCK as usize) {
            let card = memory(lasts, None);
            let error = format!("{:#}", write(&path, &map, &card, "card").unwrap_err());
            assert!(
                error.contains("will not boot") && error.contains("Input/output error"),
                "{error}"
            );
            assert!(
                card.data.borrow()[..BLOCK as usize].iter().all(|x| *x == 0),
                "no partition table after {lasts} bytes"
            );
        }
    }

    #[test]
    fn a_bit_that_does_not_hold_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        for weak in [0, 5000, 40 * BLOCK as usize, SIZE - 1] {
            let error = write(&path, &map, &memory(usize::MAX, Some(weak)), "card")
                .unwrap_err()
                .to_string();
            assert!(error.contains("does not keep"), "{error}");
        }
    }

    #[test]
    fn the_wrong_the_truncated_and_the_altered_image_are_refused() {
        use trustctl::image::{FORMAT, MANIFEST, Manifest, SIGNATURE, sign};
        let dir = tempfile::tempdir().unwrap();
        let (made, map) = image(dir.path());
        let path = dir.path().join("basalt-rpi4.img");
        std::fs::rename(made, &path).unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put(
            "measurements.json",
            r#"{"machine":"rpi4","variant":"prod","version":"0","boards":[]}"#,
        );
        put("basalt-rpi4.img.bmap", &map.to_xml());
        put(policy::FILE, &Policies::sign(&policy::Signer::of_builder(&[7; 32]), &[]).text());
        let names = ["measurements.json", policy::FILE, "basalt-rpi4.img.bmap", "basalt-rpi4.img"];
        let manifest = Manifest {
            format: FORMAT.into(),
            machine: "rpi4".into(),
            variant: "prod".into(),
            version: "0".into(),
            inputs: Default::default(),
            outputs: names
                .iter()
                .map(|n| ((*n).to_owned(), hash::file(&dir.path().join(n)).unwrap()))
                .collect(),
            tools: Default::default(),
        };
        let key = ledger::SigningKey::from_bytes(&[7; 32]);
        let text = serde_json::to_string(&manifest).unwrap();
        put(SIGNATURE, &sign(text.as_bytes(), &key));
        put(MANIFEST, &text);
        check_image(&path, Some("rpi4"), &key.verifying_key()).unwrap();
        let says = |machine| {
            format!("{:#}", check_image(&path, Some(machine), &key.verifying_key()).unwrap_err())
        };
        assert!(says("rpi3").contains("is an image for rpi4, not for rpi3"));
        let stranger = ledger::SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert!(
            format!("{:#}", check_image(&path, None, &stranger).unwrap_err())
                .contains("not signed by the builder")
        );
        File::options().write(true).open(&path).unwrap().write_all_at(&[0], 20_000).unwrap();
        assert!(says("rpi4").contains("basalt-rpi4.img is altered"));
        File::options().write(true).open(&path).unwrap().set_len(SIZE as u64 - 1).unwrap();
        assert!(says("rpi4").contains("basalt-rpi4.img is altered"));
        std::fs::remove_file(&path).unwrap();
        assert!(says("rpi4").contains("build-image"));
    }

    #[test]
    fn a_file_is_a_card_if_it_is_large_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("card");
        std::fs::write(&path, vec![0; 10]).unwrap();
        assert!(open(&path, 11).unwrap_err().to_string().contains("too small"));
        open(&path, 10).unwrap();
        assert!(open(dir.path(), 10).unwrap_err().to_string().contains("neither"));
        assert!(
            format!("{:#}", open(&dir.path().join("none"), 10).unwrap_err())
                .contains("lists removable devices")
        );
        assert!(open(Path::new("/dev/null"), 10).unwrap_err().to_string().contains("neither"));
    }
}
