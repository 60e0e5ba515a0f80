//! Output of services: it goes to the console and into a log file per service.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdout};

use logging::MAX_LINE_BYTES;

use crate::console;

/// Greatest size of a log file. The file before it is kept as `NAME.log.1`.
const MAX_LOG_BYTES: u64 = 256 * 1024;

/// One output stream of a service, split into lines.
pub(crate) struct OutputStream {
    pipe: Pipe,
    line: Vec<u8>,
}

enum Pipe {
    Stdout(ChildStdout),
    Stderr(ChildStderr),
}

impl OutputStream {
    /// Takes the streams of a child process.
    pub(crate) fn take_from(child: &mut Child) -> impl Iterator<Item = Self> {
        let stdout = child.stdout.take().map(Pipe::Stdout);
        let stderr = child.stderr.take().map(Pipe::Stderr);
        stdout.into_iter().chain(stderr).map(|pipe| Self { pipe, line: Vec::new() })
    }

    /// Forwards the output that can be read; returns `false` at the end of the stream. Longer lines
    /// than [`MAX_LINE_BYTES`] are split.
    pub(crate) fn forward(&mut self, service: &str) -> bool {
        let mut buffer = [0; 4096];
        let read = match &mut self.pipe {
            Pipe::Stdout(stdout) => stdout.read(&mut buffer),
            Pipe::Stderr(stderr) => stderr.read(&mut buffer),
        };
        let n = read.unwrap_or(0);
        for byte in &buffer[..n] {
            if *byte == b'\n' || self.line.len() >= MAX_LINE_BYTES {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                console::forward(service, &line);
                append_to_log(service, &line);
                self.line.clear();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        n > 0
    }
}

impl AsFd for OutputStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.pipe {
            Pipe::Stdout(stdout) => stdout.as_fd(),
            Pipe::Stderr(stderr) => stderr.as_fd(),
        }
    }
}

/// Appends a line to the log file of a service, and rotates the file at its greatest size. Errors
/// are ignored, because the console has the line.
fn append_to_log(service: &str, line: &str) {
    let path = format!("/run/log/{service}.log");
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG_BYTES) {
        let _ = std::fs::rename(&path, format!("{path}.1"));
    }
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(&path) {
        let _ = writeln!(file, "{line}");
    }
}
