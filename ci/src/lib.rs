//! A node for the tests: a built image on its own card, a software TPM, the console, and the
//! owner's API.
//!
//! Invariants:
//! - A test changes only its card and its folder. The image and the user's keys stay as they are.
//! - The image is booted as it was built. QEMU's additions to a board are in the machine's
//!   `[qemu]`.
#![forbid(unsafe_code)]

pub mod pause;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use api::owner::Module;
use measure::Measurements;
use trustctl::appraisal::{self, ReferenceValues};
use trustctl::client::{Address, Client};
use trustctl::evidence::VerifiedEvidence;
use xtask::engine::sandbox::Sandbox;
use xtask::image::machine::{self, Machine, TEST_MACHINE};
use xtask::image::partition::partition_start;
use xtask::image::sparse;
use xtask::qemu::boot::Boot;
use xtask::qemu::console::{Console, free_port};

/// Timeout for a boot. An emulated boot takes about 20 s on an idle host with two cores.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// Timeout for one event on a node that runs.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const CARD_MIB: u64 = 1024;
const SECTOR_BYTES: u64 = 512;

/// A node's card, and the machine that boots from it.
pub struct Card {
    /// Folder of the test: the card, the owner's keys, logs.
    pub dir: PathBuf,
    /// Image that was copied to the card.
    pub image: PathBuf,
    tools: PathBuf,
    machine: Machine,
    /// Port on the host's loopback interface that is forwarded to the node's API.
    port: u16,
    /// Whether the machine has a TPM.
    pub tpm: bool,
    /// Whether the node can connect to the host's network. The address 10.0.2.2 is the host.
    pub external_network: bool,
}

fn path_from_env(name: &str) -> PathBuf {
    match std::env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set; run these tests with `cargo xtask test boot`"),
    }
}

impl Card {
    /// Makes a card for QEMU's own board, larger than the image on it.
    ///
    /// # Errors
    /// Returns the errors of [`Self::flash_image`].
    pub fn flash(test: &str) -> Result<Self> {
        Self::flash_for(TEST_MACHINE, test)
    }

    /// Makes a card with the image of a machine.
    ///
    /// # Errors
    /// Returns the errors of [`Self::flash_image`].
    pub fn flash_for(machine: &str, test: &str) -> Result<Self> {
        Self::flash_image(
            path_from_env("BASALT_IMAGES").join(machine).join(format!("basalt-{machine}.img")),
            machine,
            test,
        )
    }

    /// Makes a card with this image, whose measurements are in the same folder.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or written, or no port is free.
    pub fn flash_image(image: PathBuf, machine: &str, test: &str) -> Result<Self> {
        let dir = path_from_env("BASALT_SCRATCH").join(test);
        std::fs::create_dir_all(&dir)?;
        let (tools, port, machine) =
            (path_from_env("BASALT_TOOLS"), free_port()?, machine::load(machine)?);
        let card = Self { tools, machine, port, tpm: true, external_network: false, image, dir };
        sparse::copy(&card.image, &card.disk())?;
        std::fs::File::options().write(true).open(card.disk())?.set_len(CARD_MIB << 20)?;
        // The folder has the owner's keys and its own list of known nodes.
        let keys = trustctl::keys::folder()?;
        for name in ["owner.key", "owner.crt", "approver.key"] {
            std::fs::copy(keys.join(name), card.dir.join(name))
                .with_context(|| format!("no {name}"))?;
        }
        Ok(card)
    }

    /// Returns the path of the card.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    fn boot_with(&self) -> Boot<'_> {
        Boot {
            tools: &self.tools,
            machine: &self.machine,
            dir: &self.dir,
            port: self.port,
            tpm: self.tpm,
            external_network: self.external_network,
        }
    }

    /// Boots and returns the console.
    ///
    /// # Errors
    /// Returns an error if the card does not boot on this board, or QEMU cannot be started.
    pub fn boot(&self) -> Result<Console> {
        if self.machine.device_tree.is_for_physical_board() {
            self.sign_policies()?;
        }
        Console::start(&self.boot_with())
    }

    /// Writes policies to the card that unseal its root key with the present settings, on the
    /// emulated board.
    ///
    /// # Errors
    /// Returns an error if the boot partition is invalid or there is no key of a builder.
    pub fn sign_policies(&self) -> Result<()> {
        let boot = self.boot_with();
        boot.unpack()?;
        boot.sign_policies(&self.measurements()?)
    }

    /// Boots and waits until all services run.
    ///
    /// # Errors
    /// Returns the errors of [`Self::boot`], and the last line if the node stops or panics.
    pub fn boot_to_ready(&self) -> Result<Console> {
        let mut console = self.boot()?;
        let line = console
            .wait_for_any(&["ready: all services run", "STOPPED", "Kernel panic"], BOOT_TIMEOUT)?;
        if !line.contains("ready") {
            bail!("the node stopped: {line}");
        }
        Ok(console)
    }

    /// Returns a client of the node's API with the owner's keys.
    pub fn client(&self) -> Client {
        Client::new(Address::Tls(format!("127.0.0.1:{}", self.port)), &self.dir)
    }

    /// Returns the measurements that the build predicted for the image.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is malformed.
    pub fn measurements(&self) -> Result<Measurements> {
        let text = std::fs::read_to_string(self.image.with_file_name("measurements.json"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Returns the start of a partition on the card, in bytes.
    ///
    /// # Errors
    /// Returns an error if the partition table cannot be read.
    pub fn partition(&self, number: u32) -> Result<u64> {
        partition_start(&self.disk(), number)
    }

    /// Returns the number of data blocks of the root partition, which the hash tree follows.
    ///
    /// # Errors
    /// Returns an error if the predicted kernel command line has no verity table.
    pub fn verity_data_blocks(&self) -> Result<u64> {
        let events = &self.measurements()?.boards[0].events;
        let line = &events
            .iter()
            .find(|e| e.content.kind == "kernel-command-line")
            .context("the measurements have no kernel command line")?
            .content
            .data;
        let table =
            line.split_once(" verity ").context("the kernel command line has no verity table")?.1;
        Ok(table.split(' ').nth(5).context("the verity table is too short")?.parse()?)
    }

    /// Flips one bit of the first occurrence of these bytes on the card.
    ///
    /// # Errors
    /// Returns an error if the image does not contain the bytes.
    pub fn flip_bit_of(&self, bytes: &[u8]) -> Result<()> {
        let data = std::fs::read(&self.image)?;
        self.flip_bit_at(
            data.windows(bytes.len())
                .position(|window| window == bytes)
                .context("the image does not contain these bytes")? as u64,
        )
    }

    /// Flips one bit of the byte at this offset of the card.
    ///
    /// # Errors
    /// Returns an error if the card cannot be read or written there.
    pub fn flip_bit_at(&self, at: u64) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options().read(true).write(true).open(self.disk())?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
    }

    /// Runs a shell script in the tools sysroot. `$BOOT` is the boot partition for mtools. The node
    /// must be off.
    ///
    /// # Errors
    /// Returns an error if the script fails.
    pub fn edit_boot_partition(&self, script: &str) -> Result<()> {
        let boot = format!("disk.img@@{}", self.partition(1)?);
        self.sandbox()
            .env("BOOT", boot)
            .run(&self.dir.join("boot-partition.log"), ["sh", "-c", script])
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new(&self.tools).write(&self.dir, "/work").cwd("/work")
    }

    /// Runs a shell script in the tools sysroot on the data partition, which is the file
    /// `data.img`. The node must be off. Returns the standard output.
    ///
    /// # Errors
    /// Returns an error if the script fails.
    pub fn edit_data_partition(&self, script: &str) -> Result<String> {
        use std::os::unix::fs::FileExt as _;
        let disk = std::fs::File::options().read(true).write(true).open(self.disk())?;
        let mut entry = [0; 8];
        // The data partition is the third entry of the table. Its last two fields are the first
        // sector and the number of sectors.
        disk.read_exact_at(&mut entry, 446 + 32 + 8)?;
        let sectors = |at: usize| {
            u64::from(u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]))
                * SECTOR_BYTES
        };
        let (start, length) = (sectors(0), sectors(4));
        let part = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.dir.join("data.img"))?;
        part.set_len(length)?;
        copy_differing(&disk, start, &part, 0, length)?;
        let output = self.sandbox().output(&self.dir.join("data.log"), ["sh", "-c", script])?;
        copy_differing(&part, 0, &disk, start, length)?;
        Ok(String::from_utf8(output)?)
    }

    /// Returns what the emulated board measures: the image's prediction with the device tree that
    /// QEMU was given.
    ///
    /// # Errors
    /// Returns an error if the card was never booted or the measurements are malformed.
    pub fn predict(&self) -> Result<Measurements> {
        let mut measurements = self.measurements()?;
        let tree = self.boot_with().device_tree_digest()?;
        measurements.boards.truncate(1);
        measurements.boards =
            measurements.boards.iter().map(|board| board.with_device_tree(&tree)).collect();
        Ok(measurements)
    }

    /// Attests the node and requires the predicted platform. The nonce is new, the TPM signed the
    /// quote, and the logs replay to it.
    ///
    /// # Errors
    /// Returns the errors of [`Self::attest_with`].
    pub fn attest(&self) -> Result<VerifiedEvidence> {
        self.attest_with(&self.predict()?)
    }

    /// Attests the node and requires these measurements.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached or its evidence is rejected.
    pub fn attest_with(&self, measurements: &Measurements) -> Result<VerifiedEvidence> {
        let reference =
            ReferenceValues { measurements: Some(measurements.clone()), ..Default::default() };
        Ok(appraisal::attest(&self.client(), &reference)?.1?.evidence)
    }

    /// Polls the modules until the node has this one and `condition` is true for it.
    ///
    /// # Errors
    /// Returns an error with the module's last state, or the last error of the node, after the
    /// timeout.
    pub fn wait_for_module(
        &self,
        name: &str,
        timeout: Duration,
        condition: impl Fn(&Module) -> bool,
    ) -> Result<Module> {
        poll_until(timeout, &format!("the module {name}"), || {
            let module = trustctl::module::find(&self.client(), name);
            let module = module.map_err(|error| format!("{error:#}"))?;
            if condition(&module) { Ok(module) } else { Err(format!("{module:?}")) }
        })
    }
}

/// Result of a real browser that rendered an HTML document.
pub struct Rendering {
    /// Document after it was loaded and its scripts, if any, ran.
    pub document: String,
    /// Screenshot in PNG.
    pub screenshot: Vec<u8>,
    /// Log of the browser with the console of the document.
    pub log: String,
}

impl Card {
    /// Renders a document of the card's folder in a browser, in a sandbox without a network.
    ///
    /// # Errors
    /// Returns an error if the browser fails or its output cannot be read.
    pub fn render(&self, file: &str) -> Result<Rendering> {
        let sandbox =
            Sandbox::new(&path_from_env("BASALT_BROWSER")).write(&self.dir, "/work").cwd("/work");
        let address = format!("file:///work/{file}");
        let run = |option: &str| -> Result<std::process::Output> {
            // The command in /usr/bin is a shell script, and the sandbox has no shell.
            let argv = [
                "/usr/lib/chromium/chromium-headless-shell",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                "--window-size=1100,900",
                option,
                &address,
            ];
            let output = sandbox.command(argv)?.output()?;
            anyhow::ensure!(
                output.status.success(),
                "the browser failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(output)
        };
        let output = run("--dump-dom")?;
        run("--screenshot=/work/page.png")?;
        Ok(Rendering {
            document: String::from_utf8(output.stdout)?,
            screenshot: std::fs::read(self.dir.join("page.png"))?,
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Copies the blocks in which two ranges differ. A hole in both files stays a hole.
fn copy_differing(
    from: &std::fs::File,
    at: u64,
    to: &std::fs::File,
    to_at: u64,
    length: u64,
) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let (mut one, mut two) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for offset in (0..length).step_by(1 << 20) {
        let n = (length - offset).min(1 << 20) as usize;
        from.read_exact_at(&mut one[..n], at + offset)?;
        to.read_exact_at(&mut two[..n], to_at + offset)?;
        if one[..n] != two[..n] {
            to.write_all_at(&one[..n], to_at + offset)?;
        }
    }
    Ok(())
}

/// Polls until `poll` returns a value.
///
/// # Errors
/// Returns the last error of `poll` after the timeout.
pub fn poll_until<T>(
    timeout: Duration,
    subject: &str,
    mut poll: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match poll() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                bail!(
                    "{subject} did not reach the expected state in {} s; last: {last}",
                    timeout.as_secs()
                )
            }
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Appends a statement of the user's approver to a log of approvals and returns the longer log.
///
/// # Errors
/// Returns an error if the key cannot be read or the log is malformed.
pub fn append_statement(
    log: &str,
    digest: &str,
    status: ledger::Status,
    keys: &Path,
) -> Result<String> {
    let key = trustctl::keys::load_approver(&keys.join("approver.key"))?;
    trustctl::statement::append_image(log, digest, status, "home", &key)
}
