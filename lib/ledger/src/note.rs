//! Signed notes and the keys that sign them: C2SP signed-note, and cosignature/v1 of C2SP
//! tlog-cosignature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Greatest length of a signed note, such as a checkpoint.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;
/// C2SP signed-note requires support for at least 16 signatures.
const MAX_SIGNATURES: usize = 64;
const MAX_KEY_NAME_BYTES: usize = 255;
const DASH: &str = "\u{2014} ";

/// Kind of signatures that a key makes. The kind is part of the key's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A log, which signs its checkpoints: signature type 1.
    Log,
    /// A witness, which cosigns the checkpoints that it sees, with the time: signature type 4.
    Witness,
}

impl Role {
    fn signature_type(self) -> u8 {
        match self {
            Self::Log => 1,
            Self::Witness => 4,
        }
    }
}

/// Reason why a note key is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteKeyError {
    /// The text is not a C2SP vkey.
    #[error("expected NAME+HASH+KEY (a C2SP vkey), found {text:?}")]
    Format {
        /// The rejected text.
        text: String,
    },
    /// The name is not allowed.
    #[error(
        "key name {name:?}: expected 1 to {MAX_KEY_NAME_BYTES} bytes without white space, control \
         characters and plus signs"
    )]
    Name {
        /// The rejected name.
        name: String,
    },
    /// The signature type is not supported.
    #[error(
        "key {name}: expected a key of type 1 (Ed25519) or 4 (cosignature/v1), found type {found}"
    )]
    SignatureType {
        /// Name of the key.
        name: String,
        /// Type in the text.
        found: u8,
    },
    /// The text is not the one that its name and key result in.
    #[error("key {name}: expected the hash {expected}, found {found:?}")]
    Hash {
        /// Name of the key.
        name: String,
        /// Hash that name, type and key result in.
        expected: String,
        /// Hash in the text.
        found: String,
    },
    /// The public key is a point of small order.
    #[error("key {name}: the public key is weak (a point of small order)")]
    WeakKey {
        /// Name of the key.
        name: String,
    },
}

/// A public key in the form of C2SP: `NAME+HASH+KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteKey {
    /// Name of the log or the witness.
    pub name: String,
    /// Kind of signatures that the key makes.
    pub role: Role,
    /// The Ed25519 public key.
    pub key: VerifyingKey,
}

impl NoteKey {
    /// Makes a key from its parts.
    ///
    /// # Errors
    ///
    /// Returns [`NoteKeyError`] if the name is not allowed or the key is weak.
    pub fn new(name: &str, role: Role, key: VerifyingKey) -> Result<Self, NoteKeyError> {
        if name.is_empty()
            || name.len() > MAX_KEY_NAME_BYTES
            || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
        {
            return Err(NoteKeyError::Name { name: name.to_owned() });
        }
        if key.is_weak() {
            return Err(NoteKeyError::WeakKey { name: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), role, key })
    }

    /// Parses a C2SP vkey. Each key has exactly one accepted text.
    ///
    /// # Errors
    ///
    /// Returns [`NoteKeyError`] for any other text, and for a weak key.
    pub fn parse(text: &str) -> Result<Self, NoteKeyError> {
        let malformed = || NoteKeyError::Format { text: text.to_owned() };
        let (name, rest) = text.split_once('+').ok_or_else(malformed)?;
        let (hash, key) = rest.split_once('+').ok_or_else(malformed)?;
        let bytes = STANDARD.decode(key).map_err(|_| malformed())?;
        let (found, key) = bytes.split_first().ok_or_else(malformed)?;
        let role = [Role::Log, Role::Witness].into_iter().find(|r| r.signature_type() == *found);
        let unsupported = || NoteKeyError::SignatureType { name: name.to_owned(), found: *found };
        let role = role.ok_or_else(unsupported)?;
        let key = key
            .try_into()
            .ok()
            .and_then(|key| VerifyingKey::from_bytes(key).ok())
            .ok_or_else(malformed)?;
        let parsed = Self::new(name, role, key)?;
        if parsed.to_string() != text {
            let (name, expected) = (name.to_owned(), measure::hex(&parsed.id()));
            return Err(NoteKeyError::Hash { name, expected, found: hash.to_owned() });
        }
        Ok(parsed)
    }

    /// Returns the key ID that precedes the key's signatures.
    pub fn id(&self) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', self.role.signature_type()])
            .chain_update(self.key.as_bytes())
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl std::fmt::Display for NoteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = [&[self.role.signature_type()], self.key.as_bytes().as_slice()].concat();
        write!(f, "{}+{}+{}", self.name, measure::hex(&self.id()), STANDARD.encode(key))
    }
}

/// Reason why a signed note is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note is too long.
    #[error("the note has {found} bytes, at most {MAX_NOTE_BYTES} are allowed")]
    TooLong {
        /// Length of the note in bytes.
        found: usize,
    },
    /// The note is not text.
    #[error("the note is not UTF-8 text")]
    NotText,
    /// The note contains a control character other than a newline.
    #[error("the note contains a control character other than a newline")]
    ControlCharacter,
    /// The note has no empty line.
    #[error(
        "the note has no signatures: expected an empty line and signature lines after the text"
    )]
    NoSignatures,
    /// The note does not end with a newline.
    #[error("the last line of the note does not end with a newline")]
    Unterminated,
    /// The note has too many signatures.
    #[error("the note has {found} signatures, at most {MAX_SIGNATURES} are allowed")]
    TooManySignatures {
        /// Number of the note's signature lines.
        found: usize,
    },
    /// A line after the text is not a signature line.
    #[error("{line:?} is not a signature line: expected \"{DASH}NAME BASE64\"")]
    SignatureLine {
        /// The rejected line.
        line: String,
    },
    /// A line by the log's key is invalid, or is the second one.
    #[error("the signature of the log {log} is invalid, or occurs twice")]
    Signature {
        /// Name of the log.
        log: String,
    },
    /// A line by a witness's key is invalid.
    #[error("the cosignature of the witness {witness} is invalid")]
    Cosignature {
        /// Name of the witness.
        witness: String,
    },
}

/// A note in the form of C2SP signed-note. [`Note::is_signed_by`] and [`Note::cosigned_at`] verify
/// signatures; parsing verifies none.
#[derive(Debug, Clone)]
pub(crate) struct Note<'a> {
    /// Text that is signed, with its last newline.
    pub(crate) body: &'a str,
    signatures: Vec<SignatureLine<'a>>,
}

#[derive(Debug, Clone)]
struct SignatureLine<'a> {
    name: &'a str,
    id: [u8; 4],
    blob: Vec<u8>,
}

impl<'a> Note<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, NoteError> {
        if text.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLong { found: text.len() });
        }
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(NoteError::ControlCharacter);
        }
        // The signatures follow the last empty line.
        let at = text.rfind("\n\n").ok_or(NoteError::NoSignatures)?;
        let (body, lines) = (&text[..=at], &text[at + 2..]);
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Unterminated)?;
        let signatures: Vec<SignatureLine> =
            lines.split('\n').map(SignatureLine::parse).collect::<Result<_, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures { found: signatures.len() });
        }
        Ok(Self { body, signatures })
    }

    fn signatures_by(&self, key: &NoteKey) -> impl Iterator<Item = &[u8]> {
        let id = key.id();
        self.signatures
            .iter()
            .filter(move |line| line.name == key.name && line.id == id)
            .map(|line| &line.blob[..])
    }

    /// Reports whether the log signed the note. An invalid signature by the log's key is an error.
    pub(crate) fn is_signed_by(&self, log: &NoteKey) -> Result<bool, NoteError> {
        let mut signed = false;
        for blob in self.signatures_by(log) {
            let valid = Signature::from_slice(blob)
                .is_ok_and(|s| log.key.verify_strict(self.body.as_bytes(), &s).is_ok());
            if !valid || signed {
                return Err(NoteError::Signature { log: log.name.clone() });
            }
            signed = true;
        }
        Ok(signed)
    }

    /// Returns the time of the witness's newest cosignature in seconds since 1970, `None` if it
    /// did not cosign. An invalid cosignature by the witness's key is an error.
    pub(crate) fn cosigned_at(&self, witness: &NoteKey) -> Result<Option<u64>, NoteError> {
        let mut newest = None;
        for blob in self.signatures_by(witness) {
            let verified = blob.split_first_chunk::<8>().and_then(|(time, signature)| {
                let (time, signature) =
                    (u64::from_be_bytes(*time), Signature::from_slice(signature).ok()?);
                let message = cosignature_message(time, self.body);
                witness.key.verify_strict(message.as_bytes(), &signature).ok().map(|()| time)
            });
            // C2SP tlog-cosignature: with a time of 0 the witness confirms no time, and times
            // beyond 2^63 - 1 are not allowed.
            let time = verified
                .filter(|t| *t != 0 && i64::try_from(*t).is_ok())
                .ok_or_else(|| NoteError::Cosignature { witness: witness.name.clone() })?;
            newest = newest.max(Some(time));
        }
        Ok(newest)
    }
}

impl<'a> SignatureLine<'a> {
    fn parse(line: &'a str) -> Result<Self, NoteError> {
        let malformed = || NoteError::SignatureLine { line: line.to_owned() };
        let (name, blob) =
            line.strip_prefix(DASH).and_then(|rest| rest.split_once(' ')).ok_or_else(malformed)?;
        let bytes = STANDARD.decode(blob).map_err(|_| malformed())?;
        let (id, blob) =
            bytes.split_first_chunk::<4>().filter(|_| !name.is_empty()).ok_or_else(malformed)?;
        Ok(Self { name, id: *id, blob: blob.to_vec() })
    }
}

fn cosignature_message(time: u64, body: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{body}")
}

/// Makes a note of a text and the signature of a log's key.
pub(crate) fn sign(body: &str, name: &str, key: &SigningKey) -> Result<String, NoteKeyError> {
    let public = NoteKey::new(name, Role::Log, key.verifying_key())?;
    Ok(format!("{body}\n{}", signature_line(&public, &key.sign(body.as_bytes()).to_bytes())))
}

fn signature_line(key: &NoteKey, signature: &[u8]) -> String {
    format!("{DASH}{} {}\n", key.name, STANDARD.encode([&key.id(), signature].concat()))
}

/// Makes the signature line of a witness that saw the text at `time`.
#[cfg(test)]
pub(crate) fn cosign(body: &str, name: &str, key: &SigningKey, time: u64) -> String {
    let public = NoteKey::new(name, Role::Witness, key.verifying_key()).unwrap();
    let signature = key.sign(cosignature_message(time, body).as_bytes());
    signature_line(&public, &[&time.to_be_bytes(), signature.to_bytes().as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example of Go's golang.org/x/mod/sumdb/note, from which C2SP signed-note was made.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqf\
        qdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_published_note_verifies_and_an_altered_one_does_not() {
        let key = NoteKey::parse(KEY).unwrap();
        assert_eq!((key.role, key.to_string().as_str()), (Role::Log, KEY));
        let signed = |text: &str, key: &NoteKey| Note::parse(text).unwrap().is_signed_by(key);
        assert_eq!(signed(NOTE, &key), Ok(true));
        assert!(signed(&NOTE.replace("answer", "Answer"), &key).is_err());
        let twice = format!("{NOTE}{}\n", NOTE.lines().last().unwrap());
        assert!(signed(&twice, &key).is_err(), "the same signature line twice");
        let other = NoteKey::new("PeterNeuman", Role::Log, key.key).unwrap();
        assert_eq!(signed(NOTE, &other), Ok(false));
    }

    #[test]
    fn keys_and_notes_have_one_accepted_text() {
        for bad in [
            "",
            "a",
            "a+b",
            "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            &KEY.replace("c7", "C7"),
            &KEY.replace("c7", "c8"),
        ] {
            assert!(NoteKey::parse(bad).is_err(), "{bad}");
        }
        let other_type = NoteKey::parse(&KEY.replace("+AR", "+Ah")).unwrap_err();
        assert!(other_type.to_string().contains("type 2"));
        let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
        for name in ["", "a b", "a+b", "a\u{a0}b", "a\n"] {
            assert!(NoteKey::new(name, Role::Log, key).is_err(), "{name:?}");
        }
        for bad in [
            "",
            "\n",
            "a\n",
            "a\n\n",
            "a\n\nb\n",
            "a\r\n\n\u{2014} n AAAAAA==\n",
            "a\n\n\u{2014} n AAAA\n",
            "a\n\n\u{2014} n AAAAAA==",
            "a\n\n\u{2014} n AAAAAA==\n\n",
        ] {
            assert!(Note::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_cosignature_binds_its_time() {
        let key = SigningKey::from_bytes(&[2; 32]);
        let witness = NoteKey::new("w.example", Role::Witness, key.verifying_key()).unwrap();
        assert_eq!(NoteKey::parse(&witness.to_string()), Ok(witness.clone()));
        let body = "log.example\n1\nAAAA\n";
        let cosigned_at =
            |lines: &str| Note::parse(&format!("{body}\n{lines}")).unwrap().cosigned_at(&witness);
        let lines = cosign(body, "w.example", &key, 70) + &cosign(body, "w.example", &key, 90);
        assert_eq!(cosigned_at(&lines), Ok(Some(90)));
        assert_eq!(cosigned_at(&cosign(body, "x.example", &key, 90)), Ok(None));
        assert!(cosigned_at(&cosign("other\n", "w.example", &key, 90)).is_err());
        assert!(cosigned_at(&cosign(body, "w.example", &key, 0)).is_err());
        let mut blob =
            STANDARD.decode(lines.lines().next().unwrap().rsplit(' ').next().unwrap()).unwrap();
        blob[11] ^= 1;
        let later = format!("{DASH}w.example {}\n", STANDARD.encode(blob));
        assert!(cosigned_at(&later).is_err());
    }
}
