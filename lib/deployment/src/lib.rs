//! Specs: the desired state of a module, in a document that an owner signs.
//!
//! Invariants:
//! - A document that is not in canonical form is rejected, so that it cannot carry unsigned data.
//! - A spec names its node and its module and carries a generation. A node accepts only a greater
//!   generation than it has, so a spec can neither be replayed later nor be used for another node
//!   or another module.
//! - The crate has no I/O, no clock and no unsafe code. The caller, which has the certificates,
//!   verifies the signature.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use serde::{Deserialize, Serialize};

const SIGNATURE_PREFIX: &[u8] = b"basalt-spec-v2\0";
/// Prefix of specs that named no node. It is known only to tell their owners what to do.
const RETIRED_SIGNATURE_PREFIX: &[u8] = b"basalt-spec-v1\0";
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
    /// Identity of the node: SHA-256 of the certificate that it presents, 64 lower-case hex digits.
    pub node: String,
    /// Text of the module file; `None` means the file that the node's image ships for this module.
    pub toml: Option<String>,
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
    /// The node's identity has another form.
    #[error(
        "the spec's node: expected the SHA-256 of a node's certificate, 64 lower-case hex digits, \
         found {found:?}"
    )]
    Node {
        /// Value of the member `node`.
        found: String,
    },
}

/// Returns the bytes that an owner signs: a prefix that only specs have, and the document.
pub fn signed_bytes(spec: &str) -> Vec<u8> {
    [SIGNATURE_PREFIX, spec.as_bytes()].concat()
}

/// Returns the bytes that owners signed before specs named their node. Such a signature gives a
/// spec no authority; it only explains why the spec is rejected.
pub fn retired_signed_bytes(spec: &str) -> Vec<u8> {
    [RETIRED_SIGNATURE_PREFIX, spec.as_bytes()].concat()
}

/// Returns the value if it has the form of a node's identity: 64 lower-case hex digits.
///
/// # Errors
///
/// Returns [`SpecError::Node`] otherwise.
pub fn check_node(node: &str) -> Result<&str, SpecError> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if node.len() == 64 && node.bytes().all(is_digit) {
        Ok(node)
    } else {
        // The value is cut, because it is a stranger's.
        Err(SpecError::Node { found: node.chars().take(80).collect() })
    }
}

impl Spec {
    /// Returns the canonical form: JSON without white space, with the fields in the order of the
    /// type.
    pub fn text(&self) -> String {
        // A type of strings and a number always serializes.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses a document whose signature the caller has verified.
    ///
    /// # Errors
    ///
    /// Returns [`SpecError`] if the document is not a spec in canonical form, its module name is not
    /// allowed, or its node is not an identity. The module file is not parsed.
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
        check_node(&spec.node)?;
        Ok(spec)
    }

    /// Parses the module file. Returns `None` if the spec is about the file that the node ships.
    ///
    /// # Errors
    ///
    /// Returns [`config::ConfigError`] if the file is invalid.
    pub fn settings(&self) -> Result<Option<config::Module>, config::ConfigError> {
        let parse = |toml| config::parse(&format!("{}.toml", self.module), toml);
        self.toml.as_deref().map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "ab00000000000000000000000000000000000000000000000000000000000000";

    fn spec() -> Spec {
        Spec {
            desired: DesiredState::Run,
            generation: 7,
            module: "a".into(),
            node: NODE.into(),
            toml: Some("x = 1\n".into()),
        }
    }

    #[test]
    fn only_the_canonical_form_is_accepted() {
        let text = spec().text();
        let expected = format!(
            r#"{{"desired":"run","generation":7,"module":"a","node":"{NODE}","toml":"x = 1\n"}}"#
        );
        assert_eq!(text, expected);
        assert_eq!(Spec::read(&text), Ok(spec()));
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
    fn a_spec_must_name_one_node() {
        let text = spec().text();
        let other = |node: &str| text.replace(NODE, node);
        for bad in [other(""), other("*"), other(&NODE[1..]), other(&NODE.to_uppercase())] {
            assert!(matches!(Spec::read(&bad), Err(SpecError::Node { .. })), "{bad}");
        }
        for member in [format!("\"node\":\"{NODE}\","), format!("\"{NODE}\"")] {
            let bad = text.replace(&member, if member.ends_with(',') { "" } else { "null" });
            assert!(matches!(Spec::read(&bad), Err(SpecError::Json(_))), "{bad}");
        }
    }

    #[test]
    fn a_spec_without_a_module_file_is_about_the_shipped_one() {
        let text = Spec { toml: None, ..spec() }.text();
        assert!(text.ends_with(r#""toml":null}"#), "{text}");
        assert_eq!(Spec::read(&text).unwrap().settings(), Ok(None));
        // A member that is left out would be a second form of the same spec.
        assert_eq!(Spec::read(&text.replace(",\"toml\":null", "")), Err(SpecError::NotCanonical));
        assert!(spec().settings().is_err(), "the module file is invalid");
    }

    #[test]
    fn signed_bytes_begin_with_the_prefix_of_specs() {
        assert!(signed_bytes("{}").starts_with(b"basalt-spec-v2\0"));
        assert_ne!(signed_bytes("{}"), retired_signed_bytes("{}"));
    }
}
