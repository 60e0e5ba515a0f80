//! Limits of a log, and what is stored of its entries.

use crate::merkle::{Hash, Tree};

/// Greatest number of entries of a log.
pub const MAX_ENTRIES: u64 = 200_000;
/// Greatest length of a log in bytes, with its checkpoint: [`MAX_ENTRIES`] entries with a signature
/// each have 78 MB.
pub const MAX_LOG_BYTES: u64 = 128 << 20;
/// Greatest length of a line with its newline. An entry with the signatures of the greatest number
/// of approvers is shorter.
pub const MAX_LINE_BYTES: usize = 32 * 1024;

/// SHA-256 of an image's manifest.
pub(super) type Digest = [u8; 32];

/// Newest state of a log that a node has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HighWaterMark {
    /// Sequence number of the newest log entry, 0 for none.
    pub seq: u64,
    /// Root of the Merkle tree over the signed bytes of all log entries. It does not depend on the
    /// signatures, because an approver may add a signature later.
    pub root: Hash,
}

impl Default for HighWaterMark {
    fn default() -> Self {
        Self { seq: 0, root: Tree::default().root() }
    }
}

/// The statement that applies to one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageState {
    pub(super) exp: u64,
    pub(super) iat: u64,
    pub(super) seq: u32,
    /// Number of approvers that signed the entry.
    pub(super) signers: u8,
    pub(super) is_revoked: bool,
}
