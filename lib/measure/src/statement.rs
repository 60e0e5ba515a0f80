//! Statements that a quote covers in addition to the PCRs.
//!
//! Invariant: the attestation key of a node signs only digests of such statements. A statement
//! includes its kind, so that a client that may request one kind cannot obtain another: neither an
//! owner nor a module can make the node attest something false.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Longest text of a statement.
const MAX_STATEMENT_BYTES: usize = 4096;
/// Domain separation tag, hashed before the text of a statement.
const DOMAIN: &[u8] = b"basalt-statement-v1\0";

/// Statement that the node makes for a client. It includes the client's nonce (hex).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttestedStatement {
    /// State of the node, for a client of its API.
    Node {
        /// SHA-256 of the API's TLS certificate, hex. It binds the statement to the connection, so
        /// that the answer of another node cannot be relayed.
        certificate: String,
        /// Nonce of the client.
        nonce: String,
    },
    /// State of the node, for a module.
    Module {
        /// Digest of the manifest of the module's image.
        image: String,
        /// Name of the module.
        module: String,
        /// Nonce of the module.
        nonce: String,
    },
    /// Public key of a module. Its secret key never leaves this node.
    VrfKey {
        /// Identity that the key is derived from (`approvers` or `image`).
        bound_to: String,
        /// Digest of the manifest of the module's image.
        image: String,
        /// Name of the module.
        module: String,
        /// Nonce of the module.
        nonce: String,
        /// Public key, hex.
        public_key: String,
        /// Name of the VRF suite.
        suite: String,
    },
}

/// Error of parsing a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestedStatementError {
    /// The text is too long, or not JSON of the expected form.
    #[error("not a statement of a node: {0}")]
    Malformed(String),
    /// The text is valid JSON in another than the canonical form.
    #[error("the statement is not in canonical form (fixed order, no white space)")]
    NotCanonical,
}

impl AttestedStatement {
    /// Serializes the statement in canonical form: JSON without white space, first the kind, then
    /// the other members sorted by name.
    pub fn text(&self) -> String {
        // Serializing strings cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses a statement.
    ///
    /// # Errors
    ///
    /// Returns [`AttestedStatementError`] unless the text is exactly the canonical form that
    /// [`AttestedStatement::text`] makes.
    pub fn parse(text: &str) -> Result<Self, AttestedStatementError> {
        if text.len() > MAX_STATEMENT_BYTES {
            return Err(AttestedStatementError::Malformed(format!(
                "expected at most {MAX_STATEMENT_BYTES} bytes, found {}",
                text.len()
            )));
        }
        let statement: Self = serde_json::from_str(text)
            .map_err(|e| AttestedStatementError::Malformed(e.to_string()))?;
        if statement.text() == text {
            Ok(statement)
        } else {
            Err(AttestedStatementError::NotCanonical)
        }
    }

    /// Returns the digest that the TPM signs as `qualifyingData` (TPM 2.0 Library, Part 3, 18.4
    /// TPM2_Quote).
    pub fn qualifying_data(&self) -> Digest {
        Sha256::new().chain_update(DOMAIN).chain_update(self.text()).finalize().into()
    }

    /// Returns the nonce of the client.
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
    fn a_statement_has_exactly_one_text_and_one_digest() {
        let node = AttestedStatement::Node { certificate: "cd".into(), nonce: "ab".into() };
        assert_eq!(node.text(), r#"{"kind":"node","certificate":"cd","nonce":"ab"}"#);
        assert_eq!(AttestedStatement::parse(&node.text()), Ok(node.clone()));
        // Computed with sha256sum from the domain tag, its zero byte and the text.
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
            assert_eq!(
                AttestedStatement::parse(text),
                Err(AttestedStatementError::NotCanonical),
                "{text}"
            );
        }
        for text in [
            "",
            "{}",
            "{\"kind\":\"node\"}",
            "{\"kind\":\"node\",\"certificate\":\"cd\",\"nonce\":\"ab\",\"more\":1}",
            "{\"kind\":\"other\",\"nonce\":\"ab\"}",
        ] {
            assert!(
                matches!(AttestedStatement::parse(text), Err(AttestedStatementError::Malformed(_))),
                "{text}"
            );
        }
    }
}
