//! What an owner wants of a module: a document of one form, signed with the key of his certificate.
//!
//! Invariants:
//! - A document that is not the canonical form of what it says is refused, so that nothing unsigned
//!   can ride along.
//! - It names the module and carries a serial number: a node takes only what is newer than what it
//!   has, so an old wish that somebody kept cannot come back, nor be shown to it for another
//!   module.
//! - No I/O, no clock, no unsafe; the signature is checked by whoever has the certificates.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

const PREFIX: &[u8] = b"basalt-wish-v1\0";
/// A wish is a module's file and a few words.
pub const LONGEST: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aim {
    Run,
    /// Kept, and not running.
    Stop,
    /// Forgotten but for the serial number.
    Remove,
}

/// What should become of a module. The fields are in the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub aim: Aim,
    pub module: String,
    /// Greater than that of every wish for this module before; `trustctl` takes milliseconds since
    /// 1970.
    pub serial: u64,
    /// The module's file.
    pub toml: String,
}

/// A wish on its way and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// DER as hex; node.toml pins its SHA-256.
    pub certificate: String,
    /// By the certificate's key over [`signed_bytes`], hex. ECDSA P-256 with SHA-256 as in X.509
    /// (RFC 5758), or Ed25519.
    pub signature: String,
    /// The canonical form of a [`Wish`].
    pub wish: String,
}

/// What is signed: a prefix that belongs to wishes alone, and the document.
pub fn signed_bytes(wish: &str) -> Vec<u8> {
    [PREFIX, wish.as_bytes()].concat()
}

impl Wish {
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
            return Err(format!("a wish has at most {LONGEST} bytes, this one {}", text.len()));
        }
        let wish: Self = serde_json::from_str(text).map_err(|e| format!("not a wish: {e}"))?;
        if wish.text() != text {
            return Err("the wish is not in canonical form (fixed order, no white space)".into());
        }
        config::Module::valid_name(&wish.module)?;
        Ok(wish)
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
        let wish = Wish { aim: Aim::Run, module: "a".into(), serial: 7, toml: "x = 1\n".into() };
        let text = wish.text();
        assert_eq!(text, r#"{"aim":"run","module":"a","serial":7,"toml":"x = 1\n"}"#);
        assert_eq!(Wish::read(&text), Ok(wish));
        for bad in [
            text.replace("\"a\"", "\"../a\""),
            text.replace(':', ": "),
            text.replace("\"serial\":7,", "\"serial\":7,\"serial\":8,"),
            text.replace("\"serial\":7", "\"serial\":-7"),
            text.replace("\"aim\":\"run\"", "\"aim\":\"fly\""),
            text.replace('}', ",\"more\":1}"),
            text[1..].to_owned(),
            format!("{text}\n"),
            String::new(),
        ] {
            assert!(Wish::read(&bad).is_err(), "{bad}");
        }
        assert!(Wish::read(&"x".repeat(LONGEST + 1)).unwrap_err().contains("at most"));
    }

    #[test]
    fn what_is_signed_is_no_other_document() {
        assert!(signed_bytes("{}").starts_with(b"basalt-wish-v1\0"));
    }
}
