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
    /// Layers of an image, and manifests in an index.
    pub layers: usize,
    /// Members of the archive, and of each layer.
    pub members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { archive: 2 << 30, unpacked: 8 << 30, json: 1 << 20, layers: 64, members: 200_000 }
    }
}
