use serde::{Deserialize, Serialize};

/// `/etc/basalt/boot.toml`: what init must know of machine and variant. Written by the build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Boot {
    pub machine: String,
    pub variant: String,
    pub version: String,
    /// Seconds since 1970; no clock on this node may be earlier.
    pub built: u64,
    pub tpm: Tpm,
    pub tpm_wait_s: u64,
    /// The disk and its data partition, as the kernel names them.
    pub disk: String,
    pub data_partition: String,
    pub data_partition_number: u8,
}

/// What init does when it cannot measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tpm {
    /// It stops with one line on the console.
    Required,
}
