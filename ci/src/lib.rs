//! A node for a test: the image on a card of its own, a software TPM, a console, the owner's API.
#![forbid(unsafe_code)]

pub mod pause;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use measure::Measurements;
use serde_json::Value;
use trustctl::client::{Address, Client};
use xtask::cmd::build_image::sparse_copy;
use xtask::console::{Console, free_port};
use xtask::machine::{self, Machine};
use xtask::qemu::{Boot, partition_start};
use xtask::sandbox::Sandbox;

/// Generous: an emulated boot takes some 20 s on an idle host with two cores.
pub const BOOT_WITHIN: Duration = Duration::from_secs(240);
pub const SOON: Duration = Duration::from_secs(180);
const CARD_MIB: u64 = 1024;

pub struct Card {
    pub dir: PathBuf,
    pub image: PathBuf,
    tools: PathBuf,
    machine: Machine,
    port: u16,
    pub tpm: bool,
    /// Whether it reaches what this machine reaches: 10.0.2.2 is this machine itself.
    pub outside: bool,
}

fn setting(name: &str) -> PathBuf {
    match std::env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set: these tests are run by `cargo xtask test boot`"),
    }
}

impl Card {
    /// A card for QEMU's own board, larger than the image on it.
    pub fn flash(test: &str) -> Result<Self> {
        Self::flash_for("virt", test)
    }

    pub fn flash_for(machine: &str, test: &str) -> Result<Self> {
        Self::flash_image(
            setting("BASALT_IMAGES").join(machine).join(format!("basalt-{machine}.img")),
            machine,
            test,
        )
    }

    /// Of an image that lies elsewhere, with its measurements beside it.
    pub fn flash_image(image: PathBuf, machine: &str, test: &str) -> Result<Self> {
        let dir = setting("BASALT_SCRATCH").join(test);
        std::fs::create_dir_all(&dir)?;
        let (tools, port, machine) =
            (setting("BASALT_TOOLS"), free_port()?, machine::load(machine)?);
        let card = Self { tools, machine, port, tpm: true, outside: false, image, dir };
        sparse_copy(&card.image, &card.disk())?;
        std::fs::File::options().write(true).open(card.disk())?.set_len(CARD_MIB << 20)?;
        // The owner's keys, apart from the user's own list of known nodes.
        let keys = trustctl::keys::folder()?;
        for name in ["owner.key", "owner.crt", "approver.key"] {
            std::fs::copy(keys.join(name), card.dir.join(name))
                .with_context(|| format!("no {name}"))?;
        }
        Ok(card)
    }

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
            outside: self.outside,
        }
    }

    pub fn boot(&self) -> Result<Console> {
        if self.machine.device_tree.is_of_a_real_board() {
            self.sign_policies()?;
        }
        Console::start(&self.boot_with())
    }

    /// Lets this card have its root key as it now is: with its settings, on the board that is
    /// played.
    pub fn sign_policies(&self) -> Result<()> {
        let boot = self.boot_with();
        boot.unpack()?;
        boot.sign_policies(&self.measurements()?)
    }

    /// Boots and waits until all services run.
    pub fn boot_to_ready(&self) -> Result<Console> {
        let mut console = self.boot()?;
        let line = console
            .wait_for_any(&["ready: all services run", "STOPPED", "Kernel panic"], BOOT_WITHIN)?;
        if !line.contains("ready") {
            bail!("the node stopped: {line}");
        }
        Ok(console)
    }

    pub fn client(&self) -> Client {
        Client::new(Address::Tls(format!("127.0.0.1:{}", self.port)), &self.dir)
    }

    pub fn measurements(&self) -> Result<Measurements> {
        let text = std::fs::read_to_string(self.image.with_file_name("measurements.json"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Where a partition begins on the card, in bytes.
    pub fn partition(&self, number: u32) -> Result<u64> {
        partition_start(&self.disk(), number)
    }

    /// How many blocks of data the root partition has, before its hash tree.
    pub fn verity_data_blocks(&self) -> Result<u64> {
        let events = &self.measurements()?.boards[0].events;
        let line = &events
            .iter()
            .find(|e| e.content.kind == "kernel-command-line")
            .context("no command line")?
            .content
            .data;
        let table = line.split_once(" verity ").context("no verity table")?.1;
        Ok(table.split(' ').nth(5).context("a short verity table")?.parse()?)
    }

    /// Flips one bit where these bytes are first found on the card.
    pub fn flip_text(&self, what: &[u8]) -> Result<()> {
        let data = std::fs::read(&self.image)?;
        self.flip_at(
            data.windows(what.len())
                .position(|w| w == what)
                .context("the image does not hold these bytes")? as u64,
        )
    }

    pub fn flip_at(&self, at: u64) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options().read(true).write(true).open(self.disk())?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
    }

    /// Runs a line of shell in the tools tree; `$BOOT` is the boot partition for mtools. The node
    /// must be off.
    pub fn with_boot(&self, script: &str) -> Result<()> {
        let boot = format!("disk.img@@{}", self.partition(1)?);
        self.sandbox().env("BOOT", boot).run(&self.dir.join("with.log"), ["sh", "-c", script])
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new(&self.tools).write(&self.dir, "/work").cwd("/work")
    }

    /// Runs a line of shell in the tools tree on the data file system, as `data.img`; the node must
    /// be off.
    pub fn with_data(&self, script: &str) -> Result<String> {
        use std::os::unix::fs::FileExt as _;
        let disk = std::fs::File::options().read(true).write(true).open(self.disk())?;
        let mut entry = [0; 8];
        // The third entry of the partition table: first sector and length.
        disk.read_exact_at(&mut entry, 446 + 32 + 8)?;
        let sectors = |at: usize| {
            u64::from(u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]))
                * 512
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
        let said = self.sandbox().output(&self.dir.join("data.log"), ["sh", "-c", script])?;
        copy_differing(&part, 0, &disk, start, length)?;
        Ok(String::from_utf8(said)?)
    }

    /// What the board that is played will measure: the image's prediction, with the device tree
    /// that QEMU was given.
    pub fn predicted(&self) -> Result<Measurements> {
        let mut all = self.measurements()?;
        let tree = self.boot_with().device_tree_digest()?;
        all.boards.truncate(1);
        all.boards = all.boards.iter().map(|board| board.with_device_tree(&tree)).collect();
        Ok(all)
    }

    /// The nonce is fresh, the signature is the TPM's, the logs replay to it, the platform is the
    /// predicted one.
    pub fn attest(&self) -> Result<trustctl::evidence::Checked> {
        self.attest_to(&self.predicted()?)
    }

    pub fn attest_to(&self, expected: &Measurements) -> Result<trustctl::evidence::Checked> {
        let expected = trustctl::verdict::Expected {
            measurements: Some(expected.clone()),
            ..Default::default()
        };
        Ok(trustctl::verdict::ask(&self.client(), &expected)?.1?.checked)
    }

    /// Asks for the modules until one of them is as wished.
    pub fn wait_for_module(
        &self,
        name: &str,
        within: Duration,
        wish: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait(within, &format!("the module {name}"), || {
            let answer = self.client().get("/v1/modules").unwrap_or_default();
            let found = answer["modules"]
                .as_array()
                .and_then(|all| all.iter().find(|m| m["name"] == name).cloned())
                .unwrap_or_default();
            if wish(&found) { Ok(found) } else { Err(found.to_string()) }
        })
    }
}

/// What a real browser makes of an HTML document in the card's folder: the document as it then is,
/// a picture of it, what it had to say.
pub struct Looked {
    pub document: String,
    pub picture: Vec<u8>,
    pub said: String,
}

impl Card {
    /// Shows a document of this folder to the browser, in a sandbox without a network.
    pub fn look_at(&self, file: &str) -> Result<Looked> {
        let sandbox =
            Sandbox::new(&setting("BASALT_BROWSER")).write(&self.dir, "/work").cwd("/work");
        let address = format!("file:///work/{file}");
        let look = |option: &str| -> Result<std::process::Output> {
            // Not by the name in /usr/bin: that is a script, and there is no shell.
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
                "the browser: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(output)
        };
        let dumped = look("--dump-dom")?;
        look("--screenshot=/work/page.png")?;
        Ok(Looked {
            document: String::from_utf8(dumped.stdout)?,
            picture: std::fs::read(self.dir.join("page.png"))?,
            said: String::from_utf8_lossy(&dumped.stderr).into_owned(),
        })
    }
}

/// Copies the blocks in which two ranges differ; what is a hole in both stays one.
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

/// Polls until there is an answer; the last refusal is part of the error.
pub fn wait<T>(
    within: Duration,
    what: &str,
    mut poll: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match poll() {
            Ok(answer) => return Ok(answer),
            Err(last) if Instant::now() >= deadline => {
                bail!("{what}: not as wished within {} s; last: {last}", within.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Reads a log of approvals, adds a statement by the user's approver, returns the longer log.
pub fn with_statement(
    log: &str,
    digest: &str,
    status: ledger::Status,
    keys: &Path,
) -> Result<String> {
    let key = trustctl::keys::load_approver(&keys.join("approver.key"))?;
    trustctl::statement::appended(log, digest, status, "home", &key)
}
