//! Signed notes and the keys that sign them: C2SP signed-note, and cosignature/v1 of C2SP
//! tlog-cosignature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

const LONGEST_NOTE: usize = 64 * 1024;
/// The specification asks for at least 16.
const MOST_SIGNATURES: usize = 64;
const DASH: &str = "\u{2014} ";

/// What a key signs for; one key of each kind has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Signs its checkpoints: signature type 1.
    Log,
    /// Signs, with a time, what it saw of a log: signature type 4.
    Witness,
}

impl Role {
    fn byte(self) -> u8 {
        match self {
            Self::Log => 1,
            Self::Witness => 4,
        }
    }
}

/// A public key as C2SP writes it: `NAME+HASH+KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteKey {
    pub name: String,
    pub role: Role,
    pub key: VerifyingKey,
}

impl NoteKey {
    pub fn new(name: &str, role: Role, key: VerifyingKey) -> Result<Self, String> {
        if name.is_empty()
            || name.len() > 255
            || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
        {
            return Err(format!(
                "{name:?} is no name of a key: expected 1 to 255 bytes without spaces and plus signs"
            ));
        }
        if key.is_weak() {
            return Err(format!("the key of {name} is a weak one"));
        }
        Ok(Self { name: name.to_owned(), role, key })
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("expected NAME+HASH+KEY (a C2SP vkey), found {text:?}");
        let (name, rest) = text.split_once('+').ok_or_else(expected)?;
        let (hash, key) = rest.split_once('+').ok_or_else(expected)?;
        let bytes = STANDARD.decode(key).map_err(|_| expected())?;
        let (kind, key) = bytes.split_first().ok_or_else(expected)?;
        let role = [Role::Log, Role::Witness].into_iter().find(|role| role.byte() == *kind);
        let role = role.ok_or_else(|| format!("{name}: expected a key of type 1 (Ed25519) or 4 (cosignature/v1), found type {kind}"))?;
        let key = key
            .try_into()
            .ok()
            .and_then(|key| VerifyingKey::from_bytes(key).ok())
            .ok_or_else(expected)?;
        let found = Self::new(name, role, key)?;
        // One spelling for one key.
        if found.to_string() == text {
            Ok(found)
        } else {
            Err(format!("{name}: expected the hash {}, found {hash:?}", measure::hex(&found.id())))
        }
    }

    /// What stands before its signatures.
    pub fn id(&self) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', self.role.byte()])
            .chain_update(self.key.as_bytes())
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl std::fmt::Display for NoteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = [&[self.role.byte()], self.key.as_bytes().as_slice()].concat();
        write!(f, "{}+{}+{}", self.name, measure::hex(&self.id()), STANDARD.encode(key))
    }
}

/// A note as it came: nothing of it is believed before [`Note::signed`] and [`Note::cosigned`].
#[derive(Debug, Clone)]
pub(crate) struct Note<'a> {
    /// With its last newline: what is signed.
    pub body: &'a str,
    signatures: Vec<Line<'a>>,
}

#[derive(Debug, Clone)]
struct Line<'a> {
    name: &'a str,
    id: [u8; 4],
    blob: Vec<u8>,
}

impl<'a> Note<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        if text.len() > LONGEST_NOTE {
            return Err(format!("it has more than {LONGEST_NOTE} bytes"));
        }
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return Err("it has a control character in it".into());
        }
        // The signatures come after the last empty line.
        let at = text.rfind("\n\n").ok_or("it has no signatures")?;
        let (body, lines) = (&text[..=at], &text[at + 2..]);
        let lines = lines.strip_suffix('\n').ok_or("its last line has no end")?;
        let signatures: Vec<Line> = lines.split('\n').map(parse_line).collect::<Result<_, _>>()?;
        if signatures.len() > MOST_SIGNATURES {
            return Err(format!("it has more than {MOST_SIGNATURES} signatures"));
        }
        Ok(Self { body, signatures })
    }

    fn of(&self, key: &NoteKey) -> impl Iterator<Item = &[u8]> {
        let id = key.id();
        self.signatures
            .iter()
            .filter(move |line| line.name == key.name && line.id == id)
            .map(|line| &line.blob[..])
    }

    /// Whether the log signed it. One that does not hold is not the same as none.
    pub(crate) fn signed(&self, log: &NoteKey) -> Result<bool, String> {
        let mut signed = false;
        for blob in self.of(log) {
            let good = Signature::from_slice(blob)
                .is_ok_and(|s| log.key.verify_strict(self.body.as_bytes(), &s).is_ok());
            if !good || signed {
                return Err(format!(
                    "the signature of {} does not hold, or is there twice",
                    log.name
                ));
            }
            signed = true;
        }
        Ok(signed)
    }

    /// When the witness signed it last, in seconds since 1970; None if it did not.
    pub(crate) fn cosigned(&self, witness: &NoteKey) -> Result<Option<u64>, String> {
        let mut newest = None;
        for blob in self.of(witness) {
            let held = blob.split_first_chunk::<8>().and_then(|(time, signature)| {
                let (time, signature) =
                    (u64::from_be_bytes(*time), Signature::from_slice(signature).ok()?);
                witness
                    .key
                    .verify_strict(cosigned_bytes(time, self.body).as_bytes(), &signature)
                    .ok()
                    .map(|()| time)
            });
            // A time of 0 says that the witness vouches for no time; beyond 2^63 - 1 there is none
            // (tlog-cosignature).
            let time = held
                .filter(|t| *t != 0 && i64::try_from(*t).is_ok())
                .ok_or_else(|| format!("the cosignature of {} does not hold", witness.name))?;
            newest = newest.max(Some(time));
        }
        Ok(newest)
    }
}

fn parse_line(line: &str) -> Result<Line<'_>, String> {
    let wrong = || format!("{line:?} is no signature: expected \"{DASH}NAME BASE64\"");
    let (name, blob) =
        line.strip_prefix(DASH).and_then(|rest| rest.split_once(' ')).ok_or_else(wrong)?;
    let bytes = STANDARD.decode(blob).map_err(|_| wrong())?;
    let (id, blob) =
        bytes.split_first_chunk::<4>().filter(|_| !name.is_empty()).ok_or_else(wrong)?;
    Ok(Line { name, id: *id, blob: blob.to_vec() })
}

fn cosigned_bytes(time: u64, body: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{body}")
}

/// A note's text, signed by a log's key.
pub(crate) fn sign(body: &str, name: &str, key: &SigningKey) -> Result<String, String> {
    let public = NoteKey::new(name, Role::Log, key.verifying_key())?;
    Ok(format!("{body}\n{}", line(&public, &key.sign(body.as_bytes()).to_bytes())))
}

fn line(key: &NoteKey, signature: &[u8]) -> String {
    format!("{DASH}{} {}\n", key.name, STANDARD.encode([&key.id(), signature].concat()))
}

/// A witness's line under a note that it saw at `time`.
#[cfg(test)]
pub(crate) fn cosign(body: &str, name: &str, key: &SigningKey, time: u64) -> String {
    let public = NoteKey::new(name, Role::Witness, key.verifying_key()).unwrap();
    let signature = key.sign(cosigned_bytes(time, body).as_bytes());
    line(&public, &[&time.to_be_bytes(), signature.to_bytes().as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Go's golang.org/x/mod/sumdb/note, which the specification was made from.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_published_note_holds_and_no_altered_one() {
        let key = NoteKey::parse(KEY).unwrap();
        assert_eq!((key.role, key.to_string().as_str()), (Role::Log, KEY));
        assert_eq!(Note::parse(NOTE).unwrap().signed(&key), Ok(true));
        assert!(Note::parse(&NOTE.replace("answer", "Answer")).unwrap().signed(&key).is_err());
        assert!(
            Note::parse(&format!("{NOTE}{}", NOTE.lines().last().unwrap().to_owned() + "\n"))
                .unwrap()
                .signed(&key)
                .is_err(),
            "twice"
        );
        let other = NoteKey::new("PeterNeuman", Role::Log, key.key).unwrap();
        assert_eq!(Note::parse(NOTE).unwrap().signed(&other), Ok(false));
    }

    #[test]
    fn keys_and_notes_have_one_spelling() {
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
        assert!(NoteKey::parse(&KEY.replace("+AR", "+Ah")).unwrap_err().contains("type 2"));
        let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
        assert!(
            ["", "a b", "a+b", "a\u{a0}b", "a\n"].iter().all(|name| NoteKey::new(
                name,
                Role::Log,
                key
            )
            .is_err())
        );
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
        let lines = cosign(body, "w.example", &key, 70) + &cosign(body, "w.example", &key, 90);
        assert_eq!(
            Note::parse(&format!("{body}\n{lines}")).unwrap().cosigned(&witness),
            Ok(Some(90))
        );
        assert_eq!(
            Note::parse(&format!("{body}\n{}", cosign(body, "x.example", &key, 90)))
                .unwrap()
                .cosigned(&witness),
            Ok(None)
        );
        assert!(
            Note::parse(&format!("{body}\n{}", cosign("other\n", "w.example", &key, 90)))
                .unwrap()
                .cosigned(&witness)
                .is_err()
        );
        assert!(
            Note::parse(&format!("{body}\n{}", cosign(body, "w.example", &key, 0)))
                .unwrap()
                .cosigned(&witness)
                .is_err()
        );
        let mut blob =
            STANDARD.decode(lines.lines().next().unwrap().rsplit(' ').next().unwrap()).unwrap();
        blob[11] ^= 1;
        let later = format!("{body}\n{DASH}w.example {}\n", STANDARD.encode(blob));
        assert!(Note::parse(&later).unwrap().cosigned(&witness).is_err());
    }
}
