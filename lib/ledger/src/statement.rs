use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// What approvers say: of one image, or of who they are from here on.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(untagged)]
pub enum Statement {
    Image(ImageStatement),
    Approvers(ApproversStatement),
}

/// The fields are in the order of the canonical form.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ImageStatement {
    /// Of the image's manifest: `sha256:` and 64 hex digits.
    pub digest: String,
    /// First moment (seconds since 1970, UTC) at which it does not hold any more.
    pub exp: u64,
    /// When it was made; it does not hold before.
    pub iat: u64,
    /// Its place in the log: 1, 2, 3, …
    pub seq: u64,
    pub status: Status,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Approved,
    Revoked,
}

/// The approvers of all later statements. As many of those before as an approval needs must sign
/// it.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ApproversStatement {
    /// Ed25519 public keys, hex.
    pub approvers: Vec<String>,
    pub iat: u64,
    pub seq: u64,
    pub status: Change,
    /// How many of them an approval needs.
    pub threshold: usize,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Approvers,
}

impl<'de> Deserialize<'de> for Statement {
    /// By its status, so that an error speaks of what it was meant to be.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        if value.get("status").and_then(|s| s.as_str()) == Some("approvers") {
            serde_json::from_value(value).map(Self::Approvers).map_err(D::Error::custom)
        } else {
            serde_json::from_value(value).map(Self::Image).map_err(D::Error::custom)
        }
    }
}

/// One line of the log.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    pub signatures: Vec<Signature>,
    pub statement: Statement,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The approver's Ed25519 public key, hex.
    pub key: String,
    /// The signature (RFC 8032) over [`Statement::signed_bytes`], hex.
    pub sig: String,
}

impl Statement {
    pub fn seq(&self) -> u64 {
        match self {
            Self::Image(s) => s.seq,
            Self::Approvers(s) => s.seq,
        }
    }

    /// What is signed: a fixed purpose, the ledger's name, and the canonical JSON, so that a
    /// signature counts nowhere else.
    pub fn signed_bytes(&self, ledger: &str) -> Vec<u8> {
        format!("basalt-ledger-v1\n{ledger}\n{}", canonical(self)).into_bytes()
    }
}

impl From<ImageStatement> for Statement {
    fn from(statement: ImageStatement) -> Self {
        Self::Image(statement)
    }
}

impl LogEntry {
    pub fn new(statement: impl Into<Statement>) -> Self {
        Self { signatures: Vec::new(), statement: statement.into() }
    }

    /// Adds the signature of one approver; a second one by the same key changes nothing.
    pub fn sign(&mut self, ledger: &str, key: &SigningKey) {
        let public = measure::hex(key.verifying_key().as_bytes());
        if self.signatures.iter().all(|s| s.key != public) {
            let sig = measure::hex(&key.sign(&self.statement.signed_bytes(ledger)).to_bytes());
            self.signatures.push(Signature { key: public, sig });
        }
    }

    /// How many of these approvers signed. Every signature is by one of them, holds, and is there
    /// once: nothing else may stand in a line.
    pub(crate) fn signers(
        &self,
        ledger: &str,
        approvers: &[VerifyingKey],
    ) -> Result<usize, String> {
        let bytes = self.statement.signed_bytes(ledger);
        for (n, signature) in self.signatures.iter().enumerate() {
            if self.signatures[..n].iter().any(|s| s.key == signature.key) {
                return Err(format!("the approver {:?} signed twice", signature.key));
            }
            let approver = approvers.iter().find(|a| measure::hex(a.as_bytes()) == signature.key);
            let raw: Option<[u8; 64]> =
                measure::unhex(&signature.sig).and_then(|b| b.try_into().ok());
            let holds = approver.zip(raw).is_some_and(|(a, raw)| {
                a.verify_strict(&bytes, &ed25519_dalek::Signature::from_bytes(&raw)).is_ok()
            });
            if !holds {
                return Err(format!(
                    "the signature by {:?} is not one of an approver of that moment for the ledger {ledger:?}",
                    signature.key
                ));
            }
        }
        Ok(self.signatures.len())
    }

    /// Whether every signature is by the key that it names, for this ledger: not yet that the key
    /// is an approver's.
    ///
    /// # Errors
    /// The first signature that is not.
    pub fn holds(&self, ledger: &str) -> Result<(), String> {
        let keys = self.signatures.iter().filter_map(|s| {
            VerifyingKey::from_bytes(&measure::unhex(&s.key)?.try_into().ok()?).ok()
        });
        self.signers(ledger, &keys.collect::<Vec<_>>()).map(drop)
    }

    /// The line of the log, without its newline.
    pub fn line(&self) -> String {
        canonical(self)
    }
}

impl From<ApproversStatement> for Statement {
    fn from(statement: ApproversStatement) -> Self {
        Self::Approvers(statement)
    }
}

/// JSON without white space, members in the order of their names (which is the order of the fields
/// above), ASCII strings only.
fn canonical<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists of them always serialise.
    serde_json::to_string(value).unwrap_or_default()
}
