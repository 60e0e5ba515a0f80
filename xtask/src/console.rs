//! A running machine: QEMU and its software TPM, the console as lines, all of it ended on drop.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::qemu::Boot;

pub struct Console {
    qemu: Child,
    tpm: Option<Child>,
    lines: Receiver<String>,
    /// Everything that the console said so far.
    pub text: String,
}

impl Console {
    pub fn start(boot: &Boot<'_>) -> Result<Self> {
        boot.unpack()?;
        Self::restart(boot)
    }

    /// Starts with kernel, command line and device tree as they lie in the folder.
    pub fn restart(boot: &Boot<'_>) -> Result<Self> {
        let tpm = if boot.tpm { Some(start_tpm(boot)?) } else { None };
        Self::of(boot.qemu("stdio")?, tpm, boot.dir)
    }

    /// Any QEMU with its serial console on its standard streams.
    pub fn of(mut qemu: Command, tpm: Option<Child>, dir: &Path) -> Result<Self> {
        // QEMU's own messages stay apart from the guest's.
        let errors = std::fs::File::create(dir.join("qemu.log"))?;
        let mut qemu =
            qemu.stdout(Stdio::piped()).stderr(errors).spawn().context("cannot start QEMU")?;
        let output = qemu.stdout.take().context("QEMU has no output")?;
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

    /// The next line, which is then part of `text`.
    fn next(&mut self, deadline: Instant) -> Result<String, RecvTimeoutError> {
        let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        self.text.push_str(&line);
        self.text.push('\n');
        Ok(line)
    }

    /// The first line from now on that contains this.
    pub fn wait_for(&mut self, wanted: &str, within: Duration) -> Result<String> {
        self.wait_for_any(&[wanted], within)
    }

    /// The first line from now on that contains one of these.
    pub fn wait_for_any(&mut self, wanted: &[&str], within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        loop {
            match self.next(deadline) {
                Ok(line) if wanted.iter().any(|w| line.contains(w)) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the console did not say {wanted:?} within {} s; it said:\n{}",
                        within.as_secs(),
                        self.text
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine ended before it said {wanted:?}; it said:\n{}", self.text)
                }
            }
        }
    }

    /// Waits until the machine has switched itself off.
    pub fn wait_for_end(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            match self.next(deadline) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the machine did not end within {} s; it said:\n{}",
                    within.as_secs(),
                    self.text
                ),
            }
        }
    }

    /// Cuts the power.
    pub fn cut(mut self) {
        self.end();
    }

    fn end(&mut self) {
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
        self.end();
    }
}

/// Starts the software TPM and waits until it listens: QEMU does not wait for it.
pub fn start_tpm(boot: &Boot<'_>) -> Result<Child> {
    let log = std::fs::File::create(boot.dir.join("swtpm.log"))?;
    let mut child =
        boot.tpm()?.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start swtpm")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !boot.dir.join("tpm.sock").exists() {
        if let Some(status) = child.try_wait()? {
            bail!("swtpm ended with {status}; see {}", boot.dir.join("swtpm.log").display());
        }
        if Instant::now() > deadline {
            bail!("swtpm does not listen");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

/// A port of the loopback interface that nobody uses just now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
