//! The error type of init.

use std::io;

use crate::tpm::TpmError;

/// Failure that stops the node, or the start of a service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// A system call failed.
    #[error("cannot {action}")]
    Io {
        /// Description of the action, to follow "cannot".
        action: String,
        /// Error of the system call.
        source: io::Error,
    },
    /// A configuration file is invalid.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// A control group or the device filter is not as required.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The device tree of the machine is invalid.
    #[error("cannot measure /sys/firmware/fdt")]
    DeviceTree(#[from] measure::DeviceTreeError),
    /// The machine or the image is not in the required state.
    #[error("{0}")]
    State(String),
}

impl InitError {
    /// Returns a function that adds a description of the action to an I/O error.
    pub(crate) fn io<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source: source.into() }
    }
}

/// Error of a control group or of the device filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The text is not the path of a group.
    #[error("expected the path of a control group, found {0:?}")]
    InvalidPath(String),
    /// The group must not be killed.
    #[error("the control group is or contains that of a service, {0}")]
    Protected(String),
    /// A file of the group cannot be written.
    #[error("cannot write {path}")]
    Io { path: String, source: io::Error },
    /// Opening the TPM fails for another reason than the filter.
    #[error("expected the device filter to deny {path} (EPERM)")]
    UnexpectedError { path: &'static str, source: io::Error },
    /// The filter does not work.
    #[error("expected the device filter to deny {0} (EPERM), but it can be opened")]
    TpmAccessible(&'static str),
}
