//! Measured events.

use sha2::{Digest as _, Sha256};

use crate::{Digest, hex};

/// One measured event.
///
/// Its digest is `SHA-256("basalt-event-v1\n" kind "\n" data)`. It covers kind and data, so that
/// events of different kinds never have the same digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Number of the PCR that the event is extended into.
    pub pcr: u32,
    /// Kind of the event, such as `kernel-command-line`.
    pub kind: String,
    /// Measured text, or `sha256:` and the digest of larger data.
    pub data: String,
}

impl Event {
    /// Creates an event.
    pub fn new(pcr: u32, kind: &str, data: impl Into<String>) -> Self {
        Self { pcr, kind: kind.to_owned(), data: data.into() }
    }

    /// Creates an event whose data is the digest of something too long for a log.
    pub fn from_digest(pcr: u32, kind: &str, digest: &Digest) -> Self {
        Self::new(pcr, kind, format!("sha256:{}", hex(digest)))
    }

    /// Returns the digest that the PCR is extended with.
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
