use sha2::{Digest as _, Sha256};

use crate::{Digest, hex};

/// One measured event: what kind, and its data as text.
///
/// Its digest is `SHA-256("basalt-event-v1\n" kind "\n" data)`: the kind is inside, so that no
/// event can stand for another. Neither kind nor data of a boot event can be altered without
/// another digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub pcr: u32,
    pub kind: String,
    pub data: String,
}

impl Event {
    pub fn new(pcr: u32, kind: &str, data: impl Into<String>) -> Self {
        Self { pcr, kind: kind.to_owned(), data: data.into() }
    }

    /// An event whose data is the digest of something too long for a log.
    pub fn of_digest(pcr: u32, kind: &str, digest: &Digest) -> Self {
        Self::new(pcr, kind, format!("sha256:{}", hex(digest)))
    }

    pub fn digest(&self) -> Digest {
        Sha256::new()
            .chain_update(b"basalt-event-v1\n")
            .chain_update(self.kind.as_bytes())
            .chain_update(b"\n")
            .chain_update(self.data.as_bytes())
            .finalize()
            .into()
    }
}
