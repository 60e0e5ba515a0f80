//! Limits of an image.

use serde::{Deserialize, Serialize};

/// Greatest sizes and counts of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of an archive, or of all blobs that are fetched for an image.
    pub archive: u64,
    /// Bytes of all layers together, unpacked.
    pub unpacked: u64,
    /// Bytes of one JSON document.
    pub json: u64,
    /// Layers of an image. Linux stacks up to 500 folders, and the engine passes their names in one
    /// page of 4,096 bytes; Docker's own builder stops at 127.
    pub layers: usize,
    /// Manifests in an index.
    pub manifests: usize,
    /// Members of the archive, and of each layer.
    pub members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive: 2 << 30,
            unpacked: 8 << 30,
            json: 1 << 20,
            layers: 256,
            manifests: 1024,
            members: 200_000,
        }
    }
}
