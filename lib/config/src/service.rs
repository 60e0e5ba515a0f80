//! `/etc/basalt/services/NAME.toml`: the programs that init supervises.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `/etc/basalt/services/NAME.toml`: a program that init starts and supervises.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Path of the program and its arguments.
    pub exec: Vec<String>,
    /// Variables that are added to the environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Services that must be ready before this one is started.
    #[serde(default)]
    pub needs: Vec<String>,
    /// User and group ID; root if absent.
    #[serde(default)]
    pub user: Option<u32>,
    /// Access to the TPM. Exactly one service has it.
    #[serde(default)]
    pub tpm: bool,
    /// Condition under which the service counts as ready.
    pub ready: Ready,
    /// Longest time from start to ready, in seconds.
    pub ready_within_s: u64,
    /// Files of an earlier run that would prevent a new start; init removes them first.
    #[serde(default)]
    pub stale_files: Vec<String>,
    /// Control groups, relative to the root, whose processes run only while this service watches
    /// them.
    #[serde(default)]
    pub watches: Vec<String>,
    /// Longest time in seconds between two reports of the service that it watches these groups.
    /// Then init kills their processes.
    #[serde(default = "default_max_absence_s")]
    pub max_absence_s: u32,
}

fn default_max_absence_s() -> u32 {
    30
}

/// Condition under which a service counts as ready.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ready {
    /// The Unix socket at this path accepts a connection.
    Socket(String),
    /// The file at this path exists.
    File(String),
}
