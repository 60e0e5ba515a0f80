//! A reader as trustd sees it: a child process at the other end of a socket.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::SndBuf};

use super::error::ReaderError;
use super::serve::ARGUMENT;
use super::wire::{self, Answer, Frame, Request};
use super::{Readers, slots};

/// Bytes that the kernel holds between trustd and a reader, so that neither waits for each piece.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// A reader. The process ends on drop.
///
/// It must be dropped by the thread that started it: the process also ends with this thread
/// (PR_SET_PDEATHSIG).
pub(super) struct Process<'a> {
    child: Child,
    socket: UnixStream,
    buffer: Vec<u8>,
    stall_timeout: Duration,
    _slot: slots::Slot<'a>,
}

impl<'a> Process<'a> {
    /// Starts a reader and sends it a request.
    pub(super) fn start(
        readers: &Readers,
        slot: slots::Slot<'a>,
        request: &Request,
    ) -> Result<Self, ReaderError> {
        let (socket, theirs) = UnixStream::pair().map_err(ReaderError::Start)?;
        for socket in [&socket, &theirs] {
            setsockopt(socket, SndBuf, &SOCKET_BUFFER_BYTES)
                .map_err(|error| ReaderError::Start(error.into()))?;
        }
        socket.set_read_timeout(Some(readers.stall_timeout)).map_err(ReaderError::Start)?;
        socket.set_write_timeout(Some(readers.stall_timeout)).map_err(ReaderError::Start)?;
        let child = Command::new(&readers.program)
            .args([ARGUMENT, readers.landlock.as_str()])
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(ReaderError::Start)?;
        let (buffer, stall_timeout) = (Vec::new(), readers.stall_timeout);
        let mut process = Self { child, socket, buffer, stall_timeout, _slot: slot };
        // The request does not wait for the confinement: nothing of a third party is in it.
        wire::send(&mut process.socket, request).map_err(|error| process.failure(error))?;
        match process.answer()? {
            Answer::Ready => Ok(process),
            _ => Err(ReaderError::Answer("expected that it is ready".into())),
        }
    }

    /// Sends bytes of the stream that the request is about. Returns `false` if the reader takes no
    /// more, in which case its answer tells why.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<bool, ReaderError> {
        match self.socket.write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if is_timeout(&error) => Err(self.failure(error)),
            Err(_) => Ok(false),
        }
    }

    /// Ends the stream that the request is about.
    pub(super) fn end_stream(&self) {
        // If the reader has ended, its answer tells why.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends the connection in both directions.
    pub(super) fn close(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Returns the connection, for a thread that sends while another one receives.
    pub(super) fn socket(&self) -> Result<UnixStream, ReaderError> {
        self.socket.try_clone().map_err(ReaderError::Start)
    }

    /// Receives an answer.
    pub(super) fn answer(&mut self) -> Result<Answer, ReaderError> {
        match self.receive()? {
            Frame::Message(answer) => Ok(answer),
            Frame::Data(_) => Err(ReaderError::Answer("expected a message, found data".into())),
        }
    }

    /// Receives an answer or data.
    pub(super) fn receive(&mut self) -> Result<Frame<'_, Answer>, ReaderError> {
        match wire::receive(&mut self.socket, &mut self.buffer) {
            Ok(Frame::Message(Answer::Failed(problem))) => {
                Err(ReaderError::Confinement(wire::clean(&problem)))
            }
            Ok(Frame::Message(Answer::Panicked(place))) => {
                Err(ReaderError::Panicked(wire::clean(&place)))
            }
            Ok(Frame::Message(answer)) => Ok(Frame::Message(answer)),
            // The borrow of the buffer would otherwise last for all arms.
            Ok(Frame::Data(data)) => {
                let len = data.len();
                Ok(Frame::Data(&self.buffer[..len]))
            }
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Returns the reason why the connection failed. Ends the process.
    pub(super) fn failure(&mut self, error: io::Error) -> ReaderError {
        match error.kind() {
            _ if is_timeout(&error) => {
                ReaderError::Stalled { seconds: self.stall_timeout.as_secs() }
            }
            io::ErrorKind::InvalidData => {
                ReaderError::Answer(crate::util::error_chain::error_chain(&error))
            }
            _ => {
                // A process that is already ending keeps its status: its descriptors are closed
                // after it has been set.
                let _ = self.child.kill();
                match self.child.wait() {
                    Ok(status) => ReaderError::from_status(status),
                    Err(error) => ReaderError::Start(error),
                }
            }
        }
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reports whether an operation of a socket exceeded its timeout (socket(7), SO_RCVTIMEO).
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
