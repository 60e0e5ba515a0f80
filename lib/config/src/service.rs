use serde::Deserialize;

/// `/etc/basalt/services/NAME.toml`: a program that init starts and watches.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    pub exec: Vec<String>,
    #[serde(default)]
    pub environment: std::collections::BTreeMap<String, String>,
    /// Services that must be ready before this one is started.
    #[serde(default)]
    pub needs: Vec<String>,
    /// User and group id; root when absent.
    #[serde(default)]
    pub user: Option<u32>,
    /// The only service that may open the TPM.
    #[serde(default)]
    pub tpm: bool,
    pub ready: Ready,
    /// How long it may take to become ready, in seconds.
    pub ready_within_s: u64,
    /// Files that an earlier run may have left and that keep a new one from starting.
    #[serde(default)]
    pub stale_files: Vec<String>,
}

/// How init knows that a service can be used.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ready {
    /// Something listens on this Unix socket.
    Socket(String),
    /// This file exists.
    File(String),
}
