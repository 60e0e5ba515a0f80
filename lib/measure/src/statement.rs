//! What a quote is about beside the registers.
//!
//! Invariant: a node lets its attestation key sign nothing but the digest of such a statement. Its
//! kind is inside, so that no one who may ask for one kind gets another: neither an owner nor a
//! module can have the node say what is not so.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// A statement longer than this is none.
const LONGEST: usize = 4096;
/// What is hashed before a statement's text.
const PURPOSE: &[u8] = b"basalt-statement-v1\0";

/// Made by the node in answer to somebody's nonce (hex).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttestedStatement {
    /// Somebody asked the node for its state; `certificate` is the SHA-256 of the one that its API
    /// shows, so that who talks to it knows that no other node's answer is passed on.
    Node { certificate: String, nonce: String },
    /// A module did; `image` is the digest of the manifest that it runs from.
    Module { image: String, module: String, nonce: String },
    /// A module's public key, whose secret key never leaves this node. `bound_to` says who has the
    /// same key after an upgrade.
    VrfKey {
        bound_to: String,
        image: String,
        module: String,
        nonce: String,
        public_key: String,
        suite: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestedStatementError {
    #[error("it is no statement of a node: {0}")]
    Malformed(String),
    #[error("the statement is not in canonical form (fixed order, no white space)")]
    NotCanonical,
}

impl AttestedStatement {
    /// JSON without white space, the kind first and then the fields by their names.
    pub fn text(&self) -> String {
        // Made of strings only, which always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// # Errors
    /// [`AttestedStatementError`] if it is not exactly what [`AttestedStatement::text`] makes.
    pub fn read(text: &str) -> Result<Self, AttestedStatementError> {
        if text.len() > LONGEST {
            return Err(AttestedStatementError::Malformed(format!(
                "{} bytes, at most {LONGEST} are expected",
                text.len()
            )));
        }
        let statement: Self =
            serde_json::from_str(text).map_err(|e| AttestedStatementError::Malformed(e.to_string()))?;
        if statement.text() == text { Ok(statement) } else { Err(AttestedStatementError::NotCanonical) }
    }

    /// What the TPM signs as `qualifyingData` (TPM 2.0 Library, Part 3, 18.4 TPM2_Quote).
    pub fn qualifying_data(&self) -> Digest {
        Sha256::new().chain_update(PURPOSE).chain_update(self.text()).finalize().into()
    }

    pub fn nonce(&self) -> &str {
        match self {
            Self::Node { nonce, .. } | Self::Module { nonce, .. } | Self::VrfKey { nonce, .. } => {
                nonce
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_statement_has_one_text_and_one_digest() {
        let node = AttestedStatement::Node { certificate: "cd".into(), nonce: "ab".into() };
        assert_eq!(node.text(), r#"{"kind":"node","certificate":"cd","nonce":"ab"}"#);
        assert_eq!(AttestedStatement::read(&node.text()), Ok(node.clone()));
        // sha256sum of the purpose, the zero byte and the text
        assert_eq!(
            crate::hex(&node.qualifying_data()),
            "0352eaedef88406dfeb00660f0c36f3b4228a23dd47b63db9a9b9d5aa5eb276f"
        );
        let module =
            AttestedStatement::Module { image: "i".into(), module: "m".into(), nonce: "ab".into() };
        assert_ne!(module.qualifying_data(), node.qualifying_data());
        for text in [
            "{\"kind\":\"node\",\"nonce\":\"ab\",\"certificate\":\"cd\"}",
            "{\"kind\":\"node\", \"certificate\":\"cd\",\"nonce\":\"ab\"}",
        ] {
            assert_eq!(AttestedStatement::read(text), Err(AttestedStatementError::NotCanonical), "{text}");
        }
        for text in [
            "",
            "{}",
            "{\"kind\":\"node\"}",
            "{\"kind\":\"node\",\"certificate\":\"cd\",\"nonce\":\"ab\",\"more\":1}",
            "{\"kind\":\"other\",\"nonce\":\"ab\"}",
        ] {
            assert!(matches!(AttestedStatement::read(text), Err(AttestedStatementError::Malformed(_))), "{text}");
        }
    }
}
