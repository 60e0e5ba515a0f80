//! `cargo xtask flash DEVICE`: an image onto a card, read back and compared.
//!
//! Invariant: the partition table is written last, after all else was read back, so that a card is either whole or no disk at all.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use measure::Measurements;
use sha2::{Digest as _, Sha256};

use crate::bmap::{BLOCK, Bmap, Range};
use crate::drives::{self, Drive};
use crate::progress::{self, Task};
use crate::{hash, paths};

#[derive(clap::Args)]
pub struct Args {
    /// The whole device (/dev/sdX, /dev/mmcblkN), or a file; without it, removable devices are listed
    device: Option<PathBuf>,
    /// The machine that the card is for
    #[arg(long)]
    machine: Option<String>,
    /// An image elsewhere, with its .bmap and measurements.json beside it
    #[arg(long)]
    image: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub fn run(args: Args) -> Result<()> {
    let Some(device) = args.device else { return list() };
    let wanted = args.machine.clone().or_else(|| args.image.is_none().then(|| super::DEFAULT_MACHINE.to_owned()));
    if let Some(machine) = &wanted {
        crate::machine::load(machine)?;
    }
    let image = match args.image {
        Some(image) => image,
        None => {
            let machine = wanted.clone().unwrap_or_default();
            paths::output(&machine).join(format!("basalt-{machine}.img"))
        }
    };
    let map = check_image(&image, wanted.as_deref())?;
    let same =
        |a: &Path, b: &Path| Some(a.metadata().ok().map(|m| (m.dev(), m.ino()))) == Some(b.metadata().ok().map(|m| (m.dev(), m.ino())));
    ensure!(!same(&device, &image), "{} is the image itself; nothing was written", device.display());
    let card = open(&device, map.image_size)?;
    if !args.yes {
        confirm(&device, &card, &image)?;
    }
    write(&image, &map, &card, &device.display().to_string())?;
    println!("{} is done: read back and compared. Put the card into the board and switch it on.", device.display());
    Ok(())
}

/// The whole of it without questions, for programs.
pub fn flash(image: &Path, machine: &str, device: &Path) -> Result<()> {
    let map = check_image(image, Some(machine))?;
    write(image, &map, &open(device, map.image_size)?, &device.display().to_string())
}

fn list() -> Result<()> {
    let drives: Vec<Drive> = drives::all()?.into_iter().filter(Drive::removable).collect();
    if drives.is_empty() {
        println!("no removable device is there; insert the card and run this again");
        return Ok(());
    }
    for drive in &drives {
        let uses = drive.uses()?;
        let state = if uses.is_empty() { String::new() } else { format!("   in use: {}", uses.join(", ")) };
        println!("/dev/{:10} {:>10}  {}{state}", drive.name, progress::size(drive.size()?), drive.model());
    }
    println!("\nNext: cargo xtask flash /dev/NAME   (everything on it is lost)");
    Ok(())
}

/// The image is whole, and it is for this machine.
fn check_image(image: &Path, wanted: Option<&str>) -> Result<Bmap> {
    let beside = |name: &str| -> Result<String> {
        let path = image.with_file_name(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}; run `cargo xtask build-image` first", path.display()))
    };
    let measurements: Measurements = serde_json::from_str(&beside("measurements.json")?).context("measurements.json is malformed")?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != measurements.machine) {
        bail!("{} is an image for {}, not for {wanted}", image.display(), measurements.machine);
    }
    let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let map = Bmap::parse(&beside(&format!("{name}.bmap"))?)?;
    let found = image.metadata().with_context(|| format!("cannot read {}", image.display()))?.len();
    ensure!(
        found == map.image_size,
        "{} is not whole: expected {} bytes, found {found}; build or fetch it again",
        image.display(),
        map.image_size
    );
    let expected = beside("image.sha256")?;
    ensure!(hash::file(image)? == expected.trim(), "{} is altered: it has another hash than image.sha256 says", image.display());
    Ok(map)
}

/// Opens what is to be overwritten, if it may be.
fn open(device: &Path, needed: u64) -> Result<File> {
    let shown = device.display();
    let meta = device.metadata().with_context(|| format!("{shown} is not there; `cargo xtask flash` lists removable devices"))?;
    let mut options = File::options();
    options.read(true).write(true);
    let (file, size) = if meta.file_type().is_block_device() {
        let drive = drives::of_number(meta.rdev())?;
        if let Some(whole) = drive.whole() {
            bail!("{shown} is a partition; name the whole device, /dev/{whole}");
        }
        let uses = drive.uses()?;
        ensure!(uses.is_empty(), "{shown} is in use: {}; nothing was written", uses.join(", "));
        ensure!(drive.removable(), "{shown} is built in, not a card; nothing was written");
        // The kernel refuses this while anything holds the device.
        let file = options.custom_flags(nix::libc::O_EXCL).open(device);
        (file.with_context(|| format!("cannot open {shown} for itself alone; nothing was written"))?, drive.size()?)
    } else if meta.is_file() {
        (options.open(device)?, meta.len())
    } else {
        bail!("{shown} is neither a device for blocks nor a file");
    };
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
        let drive = drives::of_number(meta.rdev())?;
        format!("{} {}", drive.model(), progress::size(drive.size()?))
    } else {
        format!("a file of {}", progress::size(meta.len()))
    };
    let shown = device.display();
    print!("Everything on {shown} ({}) will be lost, and {} written to it. Type yes: ", what.trim(), image.display());
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
        Ok(nix::fcntl::posix_fadvise(self, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

const UNFINISHED: &str = "the card is not done and will not boot; check it and run the command again";

fn write(image: &Path, map: &Bmap, card: &dyn Card, name: &str) -> Result<()> {
    let source = File::open(image)?;
    let read = |range: &Range| -> Result<Vec<u8>> {
        let mut data = vec![0; range.length(map.image_size) as usize];
        source.read_exact_at(&mut data, range.start())?;
        let found = measure::hex(&Sha256::digest(&data));
        ensure!(found == range.sha256, "the image changed while it was written: blocks {} to {}", range.first, range.last);
        Ok(data)
    };
    let failed =
        |what: &str, at: u64| format!("{what} {name} failed at {} of {}: {UNFINISHED}", progress::size(at), progress::size(map.image_size));
    // Whatever is on the card now stops being a disk first.
    card.put(&[0; BLOCK as usize], 0).with_context(|| failed("writing", 0))?;
    card.settle().with_context(|| failed("writing", 0))?;

    let task = Task::begin("write", &format!("{} to {name}", progress::size(map.mapped())));
    task.bytes(map.mapped());
    let mut table = Vec::new();
    for range in &map.ranges {
        let mut data = read(range)?;
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
        card.get(&mut data, range.start()).with_context(|| failed("reading back", range.start()))?;
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
            let left = self.lasts.get().checked_sub(data.len()).ok_or(std::io::Error::from_raw_os_error(nix::libc::EIO))?;
            self.lasts.set(left);
            self.data.borrow_mut()[at as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }

        fn get(&self, data: &mut [u8], at: u64) -> std::io::Result<()> {
            data.copy_from_slice(&self.data.borrow()[at as usize..][..data.len()]);
            if let Some(byte) = self.weak.and_then(|w| w.checked_sub(at as usize)).and_then(|w| data.get_mut(w)) {
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
            assert!(error.contains("will not boot") && error.contains("Input/output error"), "{error}");
            assert!(card.data.borrow()[..BLOCK as usize].iter().all(|x| *x == 0), "no partition table after {lasts} bytes");
        }
    }

    #[test]
    fn a_bit_that_does_not_hold_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        for weak in [0, 5000, 40 * BLOCK as usize, SIZE - 1] {
            let error = write(&path, &map, &memory(usize::MAX, Some(weak)), "card").unwrap_err().to_string();
            assert!(error.contains("does not keep"), "{error}");
        }
    }

    #[test]
    fn the_wrong_the_truncated_and_the_altered_image_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, map) = image(dir.path());
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("measurements.json", r#"{"machine":"rpi4","variant":"prod","version":"0","boards":[]}"#);
        put("x.img.bmap", &map.to_xml());
        put("image.sha256", &hash::file(&path).unwrap());
        check_image(&path, Some("rpi4")).unwrap();
        let says = |machine| check_image(&path, Some(machine)).unwrap_err().to_string();
        assert!(says("rpi3").contains("is an image for rpi4, not for rpi3"));
        File::options().write(true).open(&path).unwrap().write_all_at(&[0], 20_000).unwrap();
        assert!(says("rpi4").contains("is altered"));
        File::options().write(true).open(&path).unwrap().set_len(SIZE as u64 - 1).unwrap();
        assert!(says("rpi4").contains("not whole"));
    }

    #[test]
    fn a_file_is_a_card_if_it_is_large_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("card");
        std::fs::write(&path, vec![0; 10]).unwrap();
        assert!(open(&path, 11).unwrap_err().to_string().contains("too small"));
        open(&path, 10).unwrap();
        assert!(open(dir.path(), 10).unwrap_err().to_string().contains("neither"));
        assert!(format!("{:#}", open(&dir.path().join("none"), 10).unwrap_err()).contains("lists removable devices"));
        assert!(open(Path::new("/dev/null"), 10).unwrap_err().to_string().contains("neither"));
    }
}
