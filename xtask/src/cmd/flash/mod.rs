//! `cargo xtask flash DEVICE`: writes an image to a memory card, reads it back and compares.
//!
//! Invariant: nothing is written before the image is verified and the device is known to be a
//! removable device that is not in use.

mod card;
mod drives;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use ledger::VerifyingKey;
use policy::Policies;
use trustctl::image::read_measurements;
use trustctl::keys;

use super::{DEFAULT_MACHINE, Session};
use crate::engine::layers;
use crate::engine::progress;
use crate::image::bmap::Bmap;
use crate::image::partition::partition_start;
use crate::image::places::PLACES;
use crate::image::spec::output_dir;
use crate::image::{machine, sparse};
use crate::rules::{disk, sysroot};
use card::{read_verified, write};
use drives::{Drive, Host};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Whole device (/dev/sdX, /dev/mmcblkN) or file to write to; without it, the removable devices
    /// are listed
    device: Option<PathBuf>,
    /// Write the image of this machine, or require that --image is for it
    #[arg(long)]
    machine: Option<String>,
    /// Write this image file; the files that its builder signed must be in the same folder
    #[arg(long)]
    image: Option<PathBuf>,
    /// Verify the image with this builder's public key (hex) instead of your own builder.key
    #[arg(long, requires = "image")]
    builder: Option<String>,
    /// Copy a node.toml to the boot partition: host name, address, time servers and owner of this
    /// node
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Add the layer that defines the machine, as for build-image
    #[arg(long, value_name = "DIR")]
    layer: Vec<PathBuf>,
    /// Write without asking for confirmation
    #[arg(long)]
    yes: bool,
}

/// Writes an image to a device, or lists the removable devices.
///
/// # Errors
///
/// Fails if the image is not the one that its builder signed, the device must not be overwritten,
/// or the card returns other data than was written.
pub fn run(args: Args) -> Result<()> {
    layers::add(&args.layer, &PLACES)?;
    let Some(device) = args.device else { return list() };
    let machine_name =
        args.machine.clone().or_else(|| args.image.is_none().then(|| DEFAULT_MACHINE.to_owned()));
    if let Some(machine) = &machine_name {
        machine::load(machine)?;
    }
    let mut image = match args.image {
        Some(image) => image,
        None => {
            let machine = machine_name.clone().unwrap_or_default();
            output_dir(&machine).join(format!("basalt-{machine}.img"))
        }
    };
    let builder = keys::builder(args.builder.as_deref(), &keys::folder()?)?;
    let mut map = check_image(&image, machine_name.as_deref(), &builder)?;
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
        "{} is written and verified\nNext: put the card into the board and switch the board on",
        device.display()
    );
    if let Some(settings) = args.settings {
        println!(
            "Then: trustctl attest HOST:7443 --expect measurements.json --settings {}",
            settings.display()
        );
    }
    Ok(())
}

/// Writes an image to a device without asking for confirmation.
///
/// # Errors
///
/// Fails as [`run`] does.
pub fn flash(image: &Path, machine: &str, device: &Path) -> Result<()> {
    let map = check_image(image, Some(machine), &keys::builder(None, &keys::folder()?)?)?;
    write(image, &map, &open(device, map.image_size)?, &device.display().to_string())
}

/// Returns a copy of the image that has the owner's settings on its boot partition.
fn with_settings(image: &Path, map: &Bmap, settings: &Path, work: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(settings)
        .with_context(|| format!("cannot read {}", settings.display()))?;
    let shipped = std::fs::read_to_string(layers::current().find("configs/node.toml"))?;
    ensure!(
        text.len() as u64 <= measure::MAX_SETTINGS_BYTES,
        "{} has {} bytes, the limit is {}",
        settings.display(),
        text.len(),
        measure::MAX_SETTINGS_BYTES
    );
    let node = ::config::parse_node(&shipped, Some(&text))
        .with_context(|| format!("{} is invalid, a node would not boot", settings.display()))?;
    let policies = policies(image, &node.keys, settings)?;
    let session = Session::open_test()?;
    let copy = work.join("card.img");
    sparse::copy(image, &copy)?;
    let source = File::open(&copy)?;
    for range in &map.ranges {
        read_verified(&source, map, range)?;
    }
    std::fs::write(work.join("node.toml"), text)?;
    std::fs::write(work.join(policy::FILE_NAME), policies.text())?;
    let (sandbox, log) = sysroot::sandbox(&session.graph, "settings")?;
    let place = format!("card.img@@{}", partition_start(&copy, 1)?);
    sandbox
        .write(work, "/work")
        .cwd("/work")
        .run(&log, ["mcopy", "-o", "-i", &place, "node.toml", policy::FILE_NAME, "::"])?;
    Ok(copy)
}

/// Signs new policies for the settings: the settings are measured, so the policies of the image do
/// not unseal the root key after such a boot.
fn policies(image: &Path, keys: &::config::Keys, settings: &Path) -> Result<Policies> {
    let path = image.with_file_name(policy::FILE_NAME);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let shipped =
        Policies::parse(&bytes).with_context(|| format!("{} is invalid", path.display()))?;
    let expected = keys.signer.as_ref().unwrap_or(&shipped.signer);
    let own = keys::policy_signer(&keys::load(&keys::folder()?.join(keys::BUILDER), "builder")?);
    let found = own.public().hex();
    ensure!(
        *expected == found,
        "a node with these settings accepts only policies that {expected} signed, and your key is \
         {found}; set keys.signer = \"{found}\" in {}",
        settings.display()
    );
    let measurements =
        read_measurements(&image.with_file_name("measurements.json"), Some(settings))?;
    Ok(Policies::sign(&own, &measurements.boards))
}

/// Lists the removable devices.
fn list() -> Result<()> {
    let drives: Vec<Drive> = Host::this().drives()?.into_iter().filter(Drive::removable).collect();
    if drives.is_empty() {
        println!("no removable device found; insert the card and run this command again");
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
    println!("\nNext: cargo xtask flash /dev/NAME   (erases everything on the device)");
    Ok(())
}

/// Verifies that the image is complete, signed by its builder and for this machine, and returns its
/// block map.
fn check_image(image: &Path, machine: Option<&str>, builder: &VerifyingKey) -> Result<Bmap> {
    let shown = image.display();
    let (dir, name) = (
        image.parent().filter(|d| *d != Path::new("")).unwrap_or(Path::new(".")),
        image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    );
    ensure!(image.is_file(), "{shown} does not exist; run `cargo xtask build-image` first");
    let manifest = trustctl::image::verify(dir, builder)
        .with_context(|| format!("{shown} is not the image that its builder signed"))?;
    if let Some(machine) = machine.filter(|machine| *machine != manifest.machine) {
        bail!("{shown} is an image for {}, not for {machine}", manifest.machine);
    }
    let map = format!("{name}.bmap");
    for covered in [&name, &map] {
        ensure!(
            manifest.outputs.contains_key(covered),
            "the manifest that the builder signed does not list {covered}"
        );
    }
    let map = Bmap::parse(&std::fs::read_to_string(dir.join(map))?)?;
    let found = image.metadata()?.len();
    ensure!(
        found == map.image_size,
        "{shown} is incomplete: expected {} bytes, found {found}; build it or download it again",
        map.image_size
    );
    Ok(map)
}

/// Opens the device for exclusive use, if it may be overwritten and is large enough.
fn open(device: &Path, needed: u64) -> Result<File> {
    let shown = device.display();
    let meta = device.metadata().with_context(|| {
        format!("cannot access {shown}; `cargo xtask flash` lists removable devices")
    })?;
    let mut options = File::options();
    options.read(true).write(true);
    let block = meta.file_type().is_block_device();
    if block {
        if let Some(reason) = Host::this().drive_of_number(meta.rdev())?.rejection()? {
            bail!("{shown} {reason}; nothing was written");
        }
        // With O_EXCL, the kernel rejects the open while the device is mounted or in use.
        options.custom_flags(nix::libc::O_EXCL);
    } else {
        ensure!(meta.is_file(), "{shown} is neither a block device nor a file");
    }
    let file = options
        .open(device)
        .with_context(|| format!("cannot open {shown} for exclusive use; nothing was written"))?;
    let opened = file.metadata()?;
    ensure!(
        (opened.dev(), opened.ino(), opened.rdev()) == (meta.dev(), meta.ino(), meta.rdev()),
        "{shown} was replaced while it was opened; nothing was written"
    );
    let size =
        if block { Host::this().drive_of_number(opened.rdev())?.size()? } else { opened.len() };
    ensure!(
        size >= needed,
        "{shown} is too small: the image needs {}, the device has {}; nothing was written",
        progress::size(needed),
        progress::size(size)
    );
    Ok(file)
}

/// Asks the user to confirm that the device is overwritten.
fn confirm(device: &Path, card: &File, image: &Path) -> Result<()> {
    let meta = card.metadata()?;
    let description = if meta.file_type().is_block_device() {
        let drive = Host::this().drive_of_number(meta.rdev())?;
        format!("{} {}", drive.model(), progress::size(drive.size()?))
    } else {
        format!("a file of {}", progress::size(meta.len()))
    };
    let shown = device.display();
    print!(
        "This erases everything on {shown} ({}) and writes {} to it. Type yes to continue: ",
        description.trim(),
        image.display()
    );
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(answer.trim() == "yes", "not confirmed; nothing was written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::hash;
    use card::tests::{SIZE, image};
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn wrong_truncated_and_modified_images_are_rejected() {
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
        put(
            policy::FILE_NAME,
            &Policies::sign(&policy::Signer::from_builder_key(&[7; 32]), &[]).text(),
        );
        let names =
            ["measurements.json", policy::FILE_NAME, "basalt-rpi4.img.bmap", "basalt-rpi4.img"];
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
        let rejection = |machine| {
            format!("{:#}", check_image(&path, Some(machine), &key.verifying_key()).unwrap_err())
        };
        assert!(rejection("rpi3").contains("is an image for rpi4, not for rpi3"));
        let other_key = ledger::SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert!(
            format!("{:#}", check_image(&path, None, &other_key).unwrap_err())
                .contains("not signed by the builder")
        );
        File::options().write(true).open(&path).unwrap().write_all_at(&[0], 20_000).unwrap();
        assert!(rejection("rpi4").contains("basalt-rpi4.img is altered"));
        File::options().write(true).open(&path).unwrap().set_len(SIZE as u64 - 1).unwrap();
        assert!(rejection("rpi4").contains("basalt-rpi4.img is altered"));
        std::fs::remove_file(&path).unwrap();
        assert!(rejection("rpi4").contains("build-image"));
    }

    #[test]
    fn a_file_that_is_large_enough_is_accepted_as_a_card() {
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
