//! The entries of a log: statements and the signatures of approvers.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// Statement that approvers sign.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(untagged)]
pub enum Statement {
    /// Approves or revokes an image.
    Image(ImageStatement),
    /// Replaces the approvers.
    Approvers(ApproversStatement),
}

/// Approval or revocation of one image. The fields are in the order of the canonical form.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ImageStatement {
    /// Digest of the image's manifest: `sha256:` and 64 hex digits.
    pub digest: String,
    /// First second since 1970 (UTC) at which the statement is no longer valid.
    pub exp: u64,
    /// Time of the statement in seconds since 1970 (UTC). It is not valid before.
    pub iat: u64,
    /// Sequence number of the log entry: 1, 2, 3, …
    pub seq: u64,
    /// Effect of the statement.
    pub status: Status,
}

/// Effect of an [`ImageStatement`].
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The image may run.
    Approved,
    /// The image must never run again.
    Revoked,
}

/// Replacement of the approvers for all later log entries. It needs as many signatures of the
/// current approvers as an approval. The fields are in the order of the canonical form.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ApproversStatement {
    /// Ed25519 public keys, hex.
    pub approvers: Vec<String>,
    /// Time of the statement in seconds since 1970 (UTC).
    pub iat: u64,
    /// Sequence number of the log entry: 1, 2, 3, …
    pub seq: u64,
    /// Tag that distinguishes the statement from an [`ImageStatement`].
    pub status: Change,
    /// Number of signatures that an approval needs.
    pub threshold: usize,
}

/// Tag of an [`ApproversStatement`].
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The statement replaces the approvers.
    Approvers,
}

impl<'de> Deserialize<'de> for Statement {
    /// Selects the kind by the member `status`, so that an error names the members of that kind.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        if value.get("status").and_then(|s| s.as_str()) == Some("approvers") {
            serde_json::from_value(value).map(Self::Approvers).map_err(D::Error::custom)
        } else {
            serde_json::from_value(value).map(Self::Image).map_err(D::Error::custom)
        }
    }
}

impl Statement {
    /// Returns the sequence number.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Image(s) => s.seq,
            Self::Approvers(s) => s.seq,
        }
    }

    /// Returns the bytes that approvers sign: a fixed purpose, the ledger's name and the canonical
    /// JSON. A signature therefore counts for no other purpose and no other ledger.
    pub fn signed_bytes(&self, ledger: &str) -> Vec<u8> {
        format!("basalt-ledger-v1\n{ledger}\n{}", canonical_json(self)).into_bytes()
    }
}

impl From<ImageStatement> for Statement {
    fn from(statement: ImageStatement) -> Self {
        Self::Image(statement)
    }
}

impl From<ApproversStatement> for Statement {
    fn from(statement: ApproversStatement) -> Self {
        Self::Approvers(statement)
    }
}

/// One line of a log.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// Signatures of approvers over the statement.
    pub signatures: Vec<Signature>,
    /// The signed statement.
    pub statement: Statement,
}

/// Signature of one approver.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The approver's Ed25519 public key, hex.
    pub key: String,
    /// Signature (RFC 8032) over [`Statement::signed_bytes`], hex.
    pub sig: String,
}

/// Reason why a signature of a log entry is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A key signed the same entry twice.
    #[error("the approver {key:?} signed twice")]
    Repeated {
        /// The approver's public key, hex.
        key: String,
    },
    /// The signature does not verify, or its key is not that of a current approver.
    #[error(
        "the signature by {key:?} is invalid for the ledger {ledger:?}, or its key is not that of \
         a current approver"
    )]
    Invalid {
        /// Public key that the signature names, hex.
        key: String,
        /// Name of the ledger.
        ledger: String,
    },
}

impl LogEntry {
    /// Makes an entry without signatures.
    pub fn new(statement: impl Into<Statement>) -> Self {
        Self { signatures: Vec::new(), statement: statement.into() }
    }

    /// Adds the signature of one approver, unless the entry already has one by the same key.
    pub fn sign(&mut self, ledger: &str, key: &SigningKey) {
        let public = measure::hex(key.verifying_key().as_bytes());
        if self.signatures.iter().all(|s| s.key != public) {
            let sig = measure::hex(&key.sign(&self.statement.signed_bytes(ledger)).to_bytes());
            self.signatures.push(Signature { key: public, sig });
        }
    }

    /// Verifies that each signature is by another one of `keys`.
    fn verify_signatures_by(
        &self,
        ledger: &str,
        keys: &[VerifyingKey],
    ) -> Result<(), SignatureError> {
        let bytes = self.statement.signed_bytes(ledger);
        for (n, signature) in self.signatures.iter().enumerate() {
            let key = &signature.key;
            if self.signatures[..n].iter().any(|s| s.key == *key) {
                return Err(SignatureError::Repeated { key: key.clone() });
            }
            let signer = keys.iter().find(|k| measure::hex(k.as_bytes()) == *key);
            let raw: Option<[u8; 64]> =
                measure::unhex(&signature.sig).and_then(|b| b.try_into().ok());
            let valid = signer.zip(raw).is_some_and(|(a, raw)| {
                a.verify_strict(&bytes, &ed25519_dalek::Signature::from_bytes(&raw)).is_ok()
            });
            if !valid {
                let (key, ledger) = (key.clone(), ledger.to_owned());
                return Err(SignatureError::Invalid { key, ledger });
            }
        }
        Ok(())
    }

    /// Verifies each signature for this ledger with the key that it names. Does not verify that
    /// the keys are those of approvers.
    ///
    /// # Errors
    ///
    /// Returns [`SignatureError`] for the first signature that is invalid or repeated.
    pub fn verify_signatures(&self, ledger: &str) -> Result<(), SignatureError> {
        let keys = self.signatures.iter().filter_map(|s| {
            VerifyingKey::from_bytes(&measure::unhex(&s.key)?.try_into().ok()?).ok()
        });
        self.verify_signatures_by(ledger, &keys.collect::<Vec<_>>())
    }

    /// Returns the line of the log, without its newline.
    pub fn line(&self) -> String {
        canonical_json(self)
    }
}

/// Serialises to JSON without white space. The members are sorted by name, because the fields of
/// the types above are.
fn canonical_json<T: Serialize>(value: &T) -> String {
    // Types of strings, numbers and lists always serialise.
    serde_json::to_string(value).unwrap_or_default()
}
