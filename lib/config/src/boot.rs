//! `/etc/basalt/boot.toml`: release and variant of the image.

use serde::{Deserialize, Serialize};

/// `/etc/basalt/boot.toml`: release and variant of the image. The build writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Boot {
    /// Name of the variant.
    pub variant: String,
    /// Version of the release.
    pub version: String,
    /// Time of the build in seconds since 1970. The clock of the node never starts before it.
    pub built: u64,
    /// Reaction to a TPM that cannot be used.
    pub tpm: Tpm,
    /// Public key of the image's builder, whose policies authorise boots to unseal the root key
    /// (P-256, SEC 1 uncompressed, hex).
    pub signer: String,
}

/// Reaction of init to a boot that it cannot measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tpm {
    /// Init stops the node and prints one line on the console.
    Required,
}
