//! Runs a machine in QEMU with a software TPM and reads its console line by line.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::qemu::boot::Boot;

/// Time limit for the software TPM to create its socket.
const TPM_START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two checks for the socket.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running machine. Dropping it kills QEMU and the software TPM.
pub struct Console {
    qemu: Child,
    tpm: Option<Child>,
    lines: Receiver<String>,
    /// All console output read so far.
    pub text: String,
}

impl Console {
    /// Unpacks the boot partition and starts the machine.
    ///
    /// # Errors
    ///
    /// Fails if the boot partition cannot be unpacked, or if QEMU or the TPM cannot be started.
    pub fn start(boot: &Boot<'_>) -> Result<Self> {
        boot.unpack()?;
        Self::restart(boot)
    }

    /// Starts the machine with the boot files that are already unpacked.
    ///
    /// # Errors
    ///
    /// Fails if the boot files are invalid, or if QEMU or the TPM cannot be started.
    pub fn restart(boot: &Boot<'_>) -> Result<Self> {
        let tpm = if boot.tpm { Some(start_tpm(boot)?) } else { None };
        Self::from_command(boot.qemu("stdio")?, tpm, boot.dir)
    }

    /// Starts a QEMU command whose serial console is its standard output. QEMU's own messages are
    /// written to `qemu.log` in `dir`.
    ///
    /// # Errors
    ///
    /// Fails if QEMU cannot be started.
    pub fn from_command(mut qemu: Command, tpm: Option<Child>, dir: &Path) -> Result<Self> {
        // QEMU's own messages are separate from the guest's.
        let errors = std::fs::File::create(dir.join("qemu.log"))?;
        let mut qemu =
            qemu.stdout(Stdio::piped()).stderr(errors).spawn().context("cannot start QEMU")?;
        let output = qemu.stdout.take().context("QEMU has no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        Ok(Self { qemu, tpm, lines, text: String::new() })
    }

    /// Returns the next line and appends it to `text`.
    fn next(&mut self, deadline: Instant) -> Result<String, RecvTimeoutError> {
        let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        self.text.push_str(&line);
        self.text.push('\n');
        Ok(line)
    }

    /// Returns the next line that contains `pattern`.
    ///
    /// # Errors
    ///
    /// Fails if no such line is printed within `timeout`, or if the machine ends first.
    pub fn wait_for(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        self.wait_for_any(&[pattern], timeout)
    }

    /// Returns the next line that contains one of the `patterns`.
    ///
    /// # Errors
    ///
    /// Fails if no such line is printed within `timeout`, or if the machine ends first.
    pub fn wait_for_any(&mut self, patterns: &[&str], timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.next(deadline) {
                Ok(line) if patterns.iter().any(|p| line.contains(p)) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the console did not print {patterns:?} within {} s; its output:\n{}",
                        timeout.as_secs(),
                        self.text
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "the machine ended before it printed {patterns:?}; its output:\n{}",
                        self.text
                    )
                }
            }
        }
    }

    /// Waits until the machine has powered off.
    ///
    /// # Errors
    ///
    /// Fails if it is still running after `timeout`.
    pub fn wait_for_shutdown(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.next(deadline) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the machine did not power off within {} s; its output:\n{}",
                    timeout.as_secs(),
                    self.text
                ),
            }
        }
    }

    /// Breaks the TPM: it fails every command from here on.
    pub fn break_tpm(&mut self) {
        if let Some(tpm) = &mut self.tpm {
            let _ = tpm.kill();
            let _ = tpm.wait();
        }
    }

    /// Cuts the power: the machine stops without a shutdown.
    pub fn cut_power(mut self) {
        self.kill();
    }

    /// Kills QEMU and the TPM and waits for both.
    fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(tpm) = &mut self.tpm {
            let _ = tpm.kill();
            let _ = tpm.wait();
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the software TPM and waits until its socket exists, because QEMU does not wait for it.
///
/// # Errors
///
/// Fails if swtpm cannot be started, ends, or does not listen within 30 seconds.
pub fn start_tpm(boot: &Boot<'_>) -> Result<Child> {
    let log_path = boot.dir.join("swtpm.log");
    let log = std::fs::File::create(&log_path)?;
    let mut child =
        boot.tpm()?.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start swtpm")?;
    let deadline = Instant::now() + TPM_START_TIMEOUT;
    while !boot.dir.join("tpm.sock").exists() {
        if let Some(status) = child.try_wait()? {
            bail!("swtpm ended early ({status}); see {}", log_path.display());
        }
        if Instant::now() > deadline {
            bail!(
                "swtpm did not create its socket within {} s; see {}",
                TPM_START_TIMEOUT.as_secs(),
                log_path.display()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(child)
}

/// Returns a TCP port of the loopback interface that is currently unused.
///
/// # Errors
///
/// Fails if the host has no free port.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
