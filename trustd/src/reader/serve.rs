//! The process of a reader: `trustd reader LANDLOCK`, with the connection to trustd as descriptor 0.
//!
//! It gives up all privileges before it reads the first byte of a third party.

use std::io::{self, Cursor, Read, Write};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use oci::{Blobs, Claim, OciError, Sink};

use super::error::describe;
use super::wire::{self, Answer, Document, MAX_DATA_BYTES, Rejection, Request};
use crate::sandbox::{Landlock, SandboxError, confine_reader};

/// First argument that makes trustd a reader.
pub const ARGUMENT: &str = "reader";

/// Runs a reader. `landlock` is the second argument.
pub fn run(landlock: Option<String>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let _ = wire::send(&mut Connection, &Answer::Panicked(place));
        std::process::abort();
    }));
    if let Err(error) = confine(landlock) {
        let _ = wire::send(&mut Connection, &Answer::Failed(wire::cut(&describe(&error))));
        return ExitCode::FAILURE;
    }
    let _ = wire::send(&mut Connection, &Answer::Ready)
        .and_then(|()| wire::receive_message(&mut Connection))
        .and_then(serve);
    // Whatever happened, trustd knows it from the answer or from its absence. An orderly end would
    // run code of libraries, which may use system calls that are forbidden here.
    std::process::abort();
}

fn confine(landlock: Option<String>) -> Result<(), SandboxError> {
    let landlock: Landlock = landlock.unwrap_or_default().parse()?;
    confine_reader(landlock)
}

/// Answers the one request of this process. Errors of the connection end the process.
fn serve(request: Request) -> io::Result<()> {
    let answer = match request {
        Request::Inspect { limits } => {
            Answer::Inspected(to_answer(oci::inspect(Connection, &limits))?)
        }
        Request::Resolve { digest, platform, limits } => {
            let documents = Documents { limit: limits.json };
            let image = oci::resolve(&documents, &digest, &platform, &limits);
            Answer::Resolved(to_answer(image.map(|image| Claim::from(&image)))?)
        }
        Request::Import { limits } => {
            let imported = oci::import(&mut Connection, &mut BlobSender, &limits);
            Answer::Imported(to_answer(imported.map(|_| ()))?)
        }
    };
    wire::send(&mut Connection, &answer)
}

fn to_answer<T>(result: Result<T, OciError>) -> io::Result<Result<T, Rejection>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match Rejection::from_error(&error) {
            Some(rejection) => Ok(Err(rejection)),
            None => Err(error.into()),
        },
    }
}

/// The connection to trustd: descriptor 0, the only one of this process.
struct Connection;

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(io::stdin().as_fd(), buffer)?)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stdin().as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The documents that trustd has.
struct Documents {
    /// Largest document in bytes that trustd sends.
    limit: u64,
}

impl Blobs for Documents {
    type Blob = Cursor<Vec<u8>>;

    fn blob(&self, digest: &str) -> io::Result<Option<(u64, Self::Blob)>> {
        wire::send(&mut Connection, &Answer::Wanted(digest.to_owned()))?;
        let size = match wire::receive_message(&mut Connection)? {
            Document::Absent => return Ok(None),
            Document::Size(size) => size,
        };
        let mut content = Vec::new();
        if size <= self.limit {
            Connection.take(size).read_to_end(&mut content)?;
        }
        Ok(Some((size, Cursor::new(content))))
    }
}

/// Passes the blobs of an archive to trustd.
struct BlobSender;

impl Sink for BlobSender {
    fn put(&mut self, digest: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        wire::send(&mut Connection, &Answer::Blob { digest: digest.to_owned(), size })?;
        let mut chunk = Vec::with_capacity(MAX_DATA_BYTES);
        loop {
            chunk.clear();
            // The archive arrives in small pieces.
            (&mut *content).take(MAX_DATA_BYTES as u64).read_to_end(&mut chunk)?;
            if chunk.is_empty() {
                return Ok(());
            }
            wire::send_data(&mut Connection, &chunk)?;
        }
    }
}
