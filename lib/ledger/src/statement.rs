use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// What approvers say of one image. The fields are in the order of the canonical form.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Statement {
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

/// One line of the log.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Entry {
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
    /// What is signed: a fixed purpose, the ledger's name, and the canonical JSON, so that a signature counts nowhere else.
    pub fn signed_bytes(&self, ledger: &str) -> Vec<u8> {
        format!("basalt-ledger-v1\n{ledger}\n{}", canonical(self)).into_bytes()
    }
}

impl Entry {
    pub fn new(statement: Statement) -> Self {
        Self { signatures: Vec::new(), statement }
    }

    /// Adds the signature of one approver; a second one by the same key changes nothing.
    pub fn sign(&mut self, ledger: &str, key: &SigningKey) {
        let public = measure::hex(key.verifying_key().as_bytes());
        if self.signatures.iter().all(|s| s.key != public) {
            let sig = measure::hex(&key.sign(&self.statement.signed_bytes(ledger)).to_bytes());
            self.signatures.push(Signature { key: public, sig });
        }
    }

    /// How many of these approvers signed; the same one twice counts once.
    pub fn signers(&self, ledger: &str, approvers: &[VerifyingKey]) -> usize {
        let bytes = self.statement.signed_bytes(ledger);
        approvers
            .iter()
            .filter(|approver| {
                let hex = measure::hex(approver.as_bytes());
                self.signatures.iter().filter(|s| s.key == hex).any(|s| {
                    let raw: Option<[u8; 64]> = measure::unhex(&s.sig).and_then(|b| b.try_into().ok());
                    raw.is_some_and(|raw| approver.verify_strict(&bytes, &ed25519_dalek::Signature::from_bytes(&raw)).is_ok())
                })
            })
            .count()
    }

    /// Every signature is by one of these approvers, holds, and is there once: nothing else may stand in a line.
    pub(crate) fn well_signed(&self, ledger: &str, approvers: &[VerifyingKey]) -> Result<(), String> {
        for (n, signature) in self.signatures.iter().enumerate() {
            if self.signatures[..n].iter().any(|s| s.key == signature.key) {
                return Err(format!("the approver {:?} signed twice", signature.key));
            }
            let alone = Self { signatures: vec![signature.clone()], statement: self.statement.clone() };
            if alone.signers(ledger, approvers) != 1 {
                return Err(format!("the signature by {:?} is not one of a pinned approver for the ledger {ledger:?}", signature.key));
            }
        }
        Ok(())
    }

    /// The line of the log, without its newline.
    pub fn line(&self) -> String {
        canonical(self)
    }
}

/// JSON without white space, members in the order of their names (which is the order of the fields above), ASCII strings only.
fn canonical<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists of them always serialise.
    serde_json::to_string(value).unwrap_or_default()
}
