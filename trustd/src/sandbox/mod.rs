//! Confinement of trustd and of its readers by the kernel: Landlock (Linux, "Landlock: unprivileged
//! access control"), system call filters (seccomp(2)) and resource limits (getrlimit(2)).
//!
//! Invariants:
//! - A confinement is complete or an error. No process works with a part of it, except for a reader
//!   of the tests on a kernel without Landlock ([`Landlock::IfSupported`]).
//! - A system call that is not on the list of its process ends the process with SIGSYS.
//! - Nothing of this can be undone, and every later thread and program inherits it.

mod reader;
mod seccomp;
mod trustd;

use std::str::FromStr;

use landlock::{ABI, CompatLevel, Compatible as _, Ruleset, RulesetError, RulesetStatus};

pub use reader::{MAX_READER_MEMORY_BYTES, confine_reader};
pub use trustd::confine_trustd;

/// Version of Landlock that every supported kernel has (Linux 6.12).
const LANDLOCK_ABI: ABI = ABI::V6;

/// Requirement on the kernel's Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// A kernel that cannot enforce every rule is an error. On a node, this is the only value.
    Required,
    /// Rules that the kernel does not know are left out. For tests on kernels of other systems.
    IfSupported,
}

impl Landlock {
    /// Returns the word for the command line of a reader.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "landlock-required",
            Self::IfSupported => "landlock-if-supported",
        }
    }

    /// Begins a set of rules.
    fn ruleset(self) -> Ruleset {
        Ruleset::default().set_compatibility(match self {
            Self::Required => CompatLevel::HardRequirement,
            Self::IfSupported => CompatLevel::BestEffort,
        })
    }

    /// Checks what the kernel enforces.
    fn check(self, status: &RulesetStatus) -> Result<(), SandboxError> {
        match (self, status) {
            (Self::IfSupported, _) | (Self::Required, RulesetStatus::FullyEnforced) => Ok(()),
            (Self::Required, _) => Err(SandboxError::NoLandlock),
        }
    }
}

impl FromStr for Landlock {
    type Err = SandboxError;

    fn from_str(word: &str) -> Result<Self, SandboxError> {
        [Self::Required, Self::IfSupported]
            .into_iter()
            .find(|value| value.as_str() == word)
            .ok_or_else(|| SandboxError::Argument { found: word.to_owned() })
    }
}

/// Failure to confine a process. The process must not work.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A property of the process cannot be set.
    #[error("cannot {action}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// Error of the system call.
        source: std::io::Error,
    },
    /// The rules for files and sockets cannot be applied.
    #[error(
        "cannot apply the Landlock rules; the kernel needs CONFIG_SECURITY_LANDLOCK and `landlock` in CONFIG_LSM"
    )]
    Landlock(#[from] RulesetError),
    /// The kernel enforces no or not all rules for files and sockets.
    #[error(
        "the kernel does not enforce every Landlock rule; it needs Linux 6.12, CONFIG_SECURITY_LANDLOCK and `landlock` in CONFIG_LSM"
    )]
    NoLandlock,
    /// The filter of system calls cannot be applied.
    #[error("cannot apply the filter of system calls; the kernel needs CONFIG_SECCOMP_FILTER")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter of system calls cannot be compiled.
    #[error("cannot compile the filter of system calls")]
    Filter(#[from] seccompiler::BackendError),
    /// The command line of a reader is malformed.
    #[error("expected the argument landlock-required or landlock-if-supported, found {found:?}")]
    Argument {
        /// Argument.
        found: String,
    },
}

/// Returns a function that adds what was tried to an error of a system call.
fn failed_to<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |error| SandboxError::Process { action, source: error.into() }
}
