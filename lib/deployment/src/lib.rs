//! Specs: the desired state of a module, in a document that an owner signs.
//!
//! Invariants:
//! - A document that is not in canonical form is rejected, so that it cannot carry unsigned data.
//! - A spec names its module and carries a generation. A node accepts only a greater generation
//!   than it has, so an older spec can neither be replayed nor be used for another module.
//! - The crate has no I/O, no clock and no unsafe code. The caller, which has the certificates,
//!   verifies the signature.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use serde::{Deserialize, Serialize};

const SIGNATURE_PREFIX: &[u8] = b"basalt-spec-v1\0";
/// Greatest size of a spec: a module file and a few fields.
pub const MAX_SPEC_BYTES: usize = 64 * 1024;

/// Desired state of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    /// The module runs.
    Run,
    /// The module is stopped, and its data and settings stay.
    Stop,
    /// The module is removed. The node remembers only its generation.
    Remove,
}

/// Desired state of one module with its settings. The fields are in the order of the canonical
/// form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The desired state.
    pub desired: DesiredState,
    /// Generation: greater than that of every earlier spec of the module. `trustctl` uses the
    /// milliseconds since 1970.
    pub generation: u64,
    /// Name of the module.
    pub module: String,
    /// Text of the module file.
    pub toml: String,
}

/// A spec with an owner's signature, as it is sent and stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedSpec {
    /// The owner's certificate: DER in hex. node.toml pins its SHA-256.
    pub certificate: String,
    /// Signature by the certificate's key over [`signed_bytes`], hex: ECDSA P-256 with SHA-256 in
    /// the form of X.509 (RFC 5758), or Ed25519.
    pub signature: String,
    /// Canonical form of a [`Spec`].
    pub spec: String,
}

/// Reason why a document is not a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The document is too long.
    #[error("the spec has {found} bytes, at most {MAX_SPEC_BYTES} are allowed")]
    TooLong {
        /// Length of the document in bytes.
        found: usize,
    },
    /// The JSON parser rejects the document; the text is the parser's.
    #[error("the document is not a spec: {0}")]
    Json(String),
    /// The document has another text than the canonical one.
    #[error("the spec is not in canonical form (fixed order, no white space)")]
    NotCanonical,
    /// The module name is not allowed.
    #[error("the spec's module name is invalid: {0}")]
    ModuleName(config::InvalidValue),
}

/// Returns the bytes that an owner signs: a prefix that only specs have, and the document.
pub fn signed_bytes(spec: &str) -> Vec<u8> {
    [SIGNATURE_PREFIX, spec.as_bytes()].concat()
}

impl Spec {
    /// Returns the canonical form: JSON without white space, with the fields in the order of the
    /// type.
    pub fn text(&self) -> String {
        // A type of strings and a number always serialises.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses a document whose signature the caller has verified.
    ///
    /// # Errors
    ///
    /// Returns [`SpecError`] if the document is not a spec in canonical form, or its module name is
    /// not allowed. The module file is not parsed.
    pub fn read(text: &str) -> Result<Self, SpecError> {
        if text.len() > MAX_SPEC_BYTES {
            return Err(SpecError::TooLong { found: text.len() });
        }
        let spec: Self =
            serde_json::from_str(text).map_err(|error| SpecError::Json(error.to_string()))?;
        if spec.text() != text {
            return Err(SpecError::NotCanonical);
        }
        config::Module::check_name(&spec.module).map_err(SpecError::ModuleName)?;
        Ok(spec)
    }

    /// Parses the module file.
    ///
    /// # Errors
    ///
    /// Returns [`config::ConfigError`] if the file is invalid.
    pub fn settings(&self) -> Result<config::Module, config::ConfigError> {
        config::parse(&format!("{}.toml", self.module), &self.toml)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_accepted() {
        let spec = Spec {
            desired: DesiredState::Run,
            module: "a".into(),
            generation: 7,
            toml: "x = 1\n".into(),
        };
        let text = spec.text();
        assert_eq!(text, r#"{"desired":"run","generation":7,"module":"a","toml":"x = 1\n"}"#);
        assert_eq!(Spec::read(&text), Ok(spec));
        for bad in [
            text.replace("\"a\"", "\"../a\""),
            text.replace(':', ": "),
            text.replace("\"generation\":7,", "\"generation\":7,\"generation\":8,"),
            text.replace("\"generation\":7", "\"generation\":-7"),
            text.replace("\"desired\":\"run\"", "\"desired\":\"fly\""),
            text.replace('}', ",\"more\":1}"),
            text[1..].to_owned(),
            format!("{text}\n"),
            String::new(),
        ] {
            assert!(Spec::read(&bad).is_err(), "{bad}");
        }
        let found = MAX_SPEC_BYTES + 1;
        assert_eq!(Spec::read(&"x".repeat(found)), Err(SpecError::TooLong { found }));
    }

    #[test]
    fn signed_bytes_begin_with_the_prefix_of_specs() {
        assert!(signed_bytes("{}").starts_with(b"basalt-spec-v1\0"));
    }
}
