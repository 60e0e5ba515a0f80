//! What an owner wants of a module: a document of one form, signed with the key of his certificate.
//!
//! Invariants:
//! - A document that is not the canonical form of what it says is refused, so that nothing unsigned
//!   can ride along.
//! - It names the module and carries a generation: a node takes only what is newer than what it
//!   has, so an old spec that somebody kept cannot come back, nor be shown to it for another
//!   module.
//! - No I/O, no clock, no unsafe; the signature is checked by whoever has the certificates.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

const PREFIX: &[u8] = b"basalt-spec-v1\0";
/// A spec is a module's file and a few words.
pub const LONGEST: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    Run,
    /// Kept, and not running.
    Stop,
    /// Forgotten but for the generation.
    Remove,
}

/// What should become of a module. The fields are in the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub desired: DesiredState,
    /// Greater than that of every spec for this module before; `trustctl` takes milliseconds since
    /// 1970.
    pub generation: u64,
    pub module: String,
    /// The module's file.
    pub toml: String,
}

/// A spec on its way and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedSpec {
    /// DER as hex; node.toml pins its SHA-256.
    pub certificate: String,
    /// By the certificate's key over [`signed_bytes`], hex. ECDSA P-256 with SHA-256 as in X.509
    /// (RFC 5758), or Ed25519.
    pub signature: String,
    /// The canonical form of a [`Spec`].
    pub spec: String,
}

/// What is signed: a prefix that belongs to specs alone, and the document.
pub fn signed_bytes(spec: &str) -> Vec<u8> {
    [PREFIX, spec.as_bytes()].concat()
}

impl Spec {
    /// The canonical form: JSON without white space, fields in the order of the type.
    pub fn text(&self) -> String {
        // Strings and a number: nothing in it can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a document whose signature was found to be good.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("a spec has at most {LONGEST} bytes, this one {}", text.len()));
        }
        let spec: Self = serde_json::from_str(text).map_err(|e| format!("not a spec: {e}"))?;
        if spec.text() != text {
            return Err("the spec is not in canonical form (fixed order, no white space)".into());
        }
        config::Module::valid_name(&spec.module)?;
        Ok(spec)
    }

    /// The module's file, parsed.
    ///
    /// # Errors
    /// What is wrong with the file, for people.
    pub fn settings(&self) -> Result<config::Module, String> {
        config::parse(&format!("{}.toml", self.module), &self.toml).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_read() {
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
        assert!(Spec::read(&"x".repeat(LONGEST + 1)).unwrap_err().contains("at most"));
    }

    #[test]
    fn what_is_signed_is_no_other_document() {
        assert!(signed_bytes("{}").starts_with(b"basalt-spec-v1\0"));
    }
}
