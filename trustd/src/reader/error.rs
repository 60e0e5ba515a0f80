//! Errors of readers.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use oci::OciError;

use crate::sandbox::SandboxError;

/// A reader that did not do its job.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The process cannot be started.
    #[error("cannot start a reader of images")]
    Start(#[source] io::Error),
    /// The process cannot confine itself, so it reads nothing.
    #[error("a reader of images cannot give up its privileges: {0}")]
    Confinement(String),
    /// The process was killed from outside, for example because the node has no memory left.
    #[error("the reader of images was killed by the system; is the node out of memory?")]
    Killed,
    /// The process ended by itself.
    #[error("the reader of images ended with {0}")]
    Ended(EndReason),
    /// The process panicked.
    #[error("the reader of images panicked at {0}")]
    Panicked(String),
    /// The process took or gave no bytes for too long.
    #[error("the reader of images made no progress for {seconds} s")]
    Stalled {
        /// Time without progress.
        seconds: u64,
    },
    /// The process answered something else than an answer to its request.
    #[error("the reader of images gave an invalid answer: {0}")]
    Answer(String),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndReason(ExitStatus);

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(number) = self.0.signal() else {
            return write!(f, "the status {}", self.0.code().unwrap_or_default());
        };
        let Ok(signal) = Signal::try_from(number) else {
            return write!(f, "signal {number}");
        };
        let meaning = match signal {
            Signal::SIGABRT => "; it failed, or its memory was exhausted",
            Signal::SIGSYS => "; it tried a system call that is forbidden to it",
            Signal::SIGXCPU => "; its processor time was exhausted",
            _ => "",
        };
        write!(f, "{signal}{meaning}")
    }
}

impl ReaderError {
    /// Returns the error for a process that ended without an answer.
    pub(super) fn from_status(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) if signal == Signal::SIGKILL as i32 => Self::Killed,
            _ => Self::Ended(EndReason(status)),
        }
    }

    /// Reports whether the error says nothing about the bytes that were read.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Start(_) | Self::Confinement(_) | Self::Killed => true,
            Self::Ended(_) | Self::Panicked(_) | Self::Stalled { .. } | Self::Answer(_) => false,
        }
    }

    /// Returns the error of a job: an I/O error without a verdict, or else `verdict` with the
    /// description of this error.
    pub(super) fn into_verdict(self, verdict: impl FnOnce(String) -> OciError) -> OciError {
        if self.is_transient() {
            OciError::Io(io::Error::other(self))
        } else {
            verdict(self.to_string())
        }
    }
}

/// Returns the description of a failed confinement for [`super::wire::Answer::Failed`].
pub(super) fn describe(error: &SandboxError) -> String {
    crate::util::error_chain::error_chain(error)
}
