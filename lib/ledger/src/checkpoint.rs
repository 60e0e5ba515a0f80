//! Checkpoints of a log: C2SP tlog-checkpoint.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;

use crate::merkle::Hash;
use crate::note::{self, Note, NoteError, NoteKeyError};

/// Reason why a log's checkpoint is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The text is not a valid signed note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The note's text is not that of a checkpoint.
    #[error(
        "expected three lines of text: origin, number of log entries, root of the tree (base64)"
    )]
    Format,
    /// The log's key did not sign the checkpoint.
    #[error("the log {log} did not sign it")]
    Unsigned {
        /// Name of the log's key.
        log: String,
    },
    /// The checkpoint belongs to another log.
    #[error("it belongs to the log {found:?}, expected {expected:?}")]
    Origin {
        /// Origin that the node pins.
        expected: String,
        /// Origin in the checkpoint.
        found: String,
    },
    /// The checkpoint is not that of the log's entries.
    #[error(
        "it is of {} log entries with the root {}, the log has {} with the root {}",
        .found.0, measure::hex(&.found.1), .log.0, measure::hex(&.log.1)
    )]
    Tree {
        /// Size and root of the log.
        log: (u64, Hash),
        /// Size and root in the checkpoint.
        found: (u64, Hash),
    },
    /// Too few of the node's witnesses cosigned the checkpoint.
    #[error(
        "{found} of the node's witnesses cosigned it, {required} are required: run `trustctl log \
         cosign`, then `trustctl log push`"
    )]
    TooFewCosignatures {
        /// Number of witnesses that cosigned.
        found: usize,
        /// Number of witnesses that the node requires.
        required: usize,
    },
}

/// Size and root of a log's Merkle tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Identity of the log, and the name of its key.
    pub origin: String,
    /// Number of leaves: one for each log entry.
    pub size: u64,
    /// Root of the tree.
    pub root: Hash,
}

impl Checkpoint {
    /// Returns the text that is signed.
    pub(crate) fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Signs the checkpoint with the log's key and returns the note.
    ///
    /// # Errors
    ///
    /// Returns [`NoteKeyError`] if the origin cannot be the name of a key.
    pub fn sign(&self, key: &SigningKey) -> Result<String, NoteKeyError> {
        note::sign(&self.body(), &self.origin, key)
    }

    /// Parses a note. Verifies none of its signatures.
    ///
    /// # Errors
    ///
    /// Returns [`CheckpointError`] if the text is not a note of a checkpoint.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        Self::from_note(&Note::parse(text)?)
    }

    pub(crate) fn from_note(note: &Note) -> Result<Self, CheckpointError> {
        let mut lines = note.body.lines();
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::Format);
        };
        let root = STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let root = root.ok_or(CheckpointError::Format)?;
        let size = size.parse().map_err(|_| CheckpointError::Format)?;
        let parsed = Self { origin: origin.to_owned(), size, root };
        // A number with a sign or leading zeros would be a second text of the same checkpoint.
        if parsed.body() == note.body { Ok(parsed) } else { Err(CheckpointError::Format) }
    }
}
