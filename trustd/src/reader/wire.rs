//! Messages between trustd and a reader.
//!
//! A frame is a 32-bit little-endian number, then bytes. The number is their count; its highest bit
//! is set for data of a blob and clear for a message in the encoding of postcard.
//!
//! Invariants:
//! - Each side rejects a frame that is longer than its limit before it reads it.
//! - A message is rejected if bytes follow it, or if it contains a text that is too long.

use std::io::{self, Read, Write};

use oci::{Claim, LayerInfo, Limits, OciError, Platform};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message in bytes: a claim about an image with the most layers.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Largest piece of data in bytes.
pub const MAX_DATA_BYTES: usize = 128 << 10;
/// Length to which the description of a problem is cut. It can contain text of a third party.
const MAX_PROBLEM_CHARS: usize = 1000;
/// Bit of a frame's number that marks data.
const DATA: u32 = 1 << 31;

/// What trustd asks a reader for. A reader answers one request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Unpack the layer that follows until the end of the stream.
    Inspect {
        /// Limits of the layer.
        limits: Limits,
    },
    /// Read the documents of an image. The reader requests each with [`Answer::Wanted`].
    Resolve {
        /// Requested digest.
        digest: String,
        /// Platform of the node.
        platform: Platform,
        /// Limits of the image.
        limits: Limits,
    },
    /// Return the blobs of the archive that follows until the end of the stream.
    Import {
        /// Limits of the archive.
        limits: Limits,
    },
}

/// Answer of trustd to [`Answer::Wanted`]. The document follows as data, if it is small enough.
#[derive(Debug, Serialize, Deserialize)]
pub enum Document {
    /// The store has no such blob.
    Absent,
    /// Size of the document in bytes.
    Size(u64),
}

/// What a reader answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The reader is confined and waits for a request.
    Ready,
    /// The reader cannot be confined, or its request is malformed.
    Failed(String),
    /// The reader panicked at this place of the source.
    Panicked(String),
    /// Properties of the layer.
    Inspected(Result<LayerInfo, Rejection>),
    /// Next document that is needed.
    Wanted(String),
    /// Claim about the image.
    Resolved(Result<Claim, Rejection>),
    /// A blob of the archive, which follows as data.
    Blob {
        /// Digest by which the archive names the blob.
        digest: String,
        /// Size in bytes.
        size: u64,
    },
    /// End of the archive.
    Imported(Result<(), Rejection>),
}

/// [`OciError`] as a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rejection {
    /// [`OciError::Archive`].
    Archive { problem: String },
    /// [`OciError::Member`].
    Member { member: String, reason: String },
    /// [`OciError::Absent`].
    Absent { what: String, digest: String, size: Option<u64> },
    /// [`OciError::Document`].
    Document { what: String, problem: String },
    /// [`OciError::Mismatch`].
    Mismatch { what: String, digest: String, expected: String, found: String },
    /// [`OciError::Limit`].
    Limit { what: String, limit: u64 },
    /// [`OciError::Layer`].
    Layer { digest: String, problem: String },
}

/// Everything that the errors of `oci` are about. An error of a reader about something else is
/// about [`UNKNOWN_ROLE`].
const ROLES: [&str; 19] = [
    "a layer of the manifest",
    "a manifest of the index",
    "depth of indexes in indexes",
    "number of documents that are read to find the platform in an index",
    "number of layers",
    "number of manifests in an index",
    "number of members",
    "size of a JSON document in bytes",
    "size of all layers in bytes",
    "size of all unpacked layers in bytes",
    "size of the archive in bytes",
    "the blob",
    "the compression of the layer",
    "the config",
    "the index",
    "the layer",
    "the manifest",
    "the manifest's config",
    "the unpacked layer",
];
const UNKNOWN_ROLE: &str = "a part of the image";

impl Rejection {
    /// Returns the message for an error, or `None` for an I/O error, which is about no image.
    pub(super) fn from_error(error: &OciError) -> Option<Self> {
        Some(match error {
            OciError::Io(_) => return None,
            OciError::Archive { problem } => Self::Archive { problem: cut(problem) },
            OciError::Member { member, reason } => {
                Self::Member { member: cut(member), reason: cut(reason) }
            }
            OciError::Absent { what, digest, size } => {
                Self::Absent { what: cut(what), digest: cut(digest), size: *size }
            }
            OciError::Document { what, problem } => {
                Self::Document { what: cut(what), problem: cut(problem) }
            }
            OciError::Mismatch { what, digest, expected, found } => Self::Mismatch {
                what: cut(what),
                digest: cut(digest),
                expected: cut(expected),
                found: cut(found),
            },
            OciError::Limit { what, limit } => Self::Limit { what: cut(what), limit: *limit },
            OciError::Layer { digest, problem } => {
                Self::Layer { digest: cut(digest), problem: cut(problem) }
            }
        })
    }
}

/// Restores the error. Its texts come from a reader, so they are cut and cleaned again.
impl From<Rejection> for OciError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Archive { problem } => Self::Archive { problem: clean(&problem) },
            Rejection::Member { member, reason } => {
                Self::Member { member: clean(&member), reason: clean(&reason) }
            }
            Rejection::Absent { what, digest, size } => {
                Self::Absent { what: role(&what), digest: clean(&digest), size }
            }
            Rejection::Document { what, problem } => {
                Self::Document { what: role(&what), problem: clean(&problem) }
            }
            Rejection::Mismatch { what, digest, expected, found } => Self::Mismatch {
                what: role(&what),
                digest: clean(&digest),
                expected: clean(&expected),
                found: clean(&found),
            },
            Rejection::Limit { what, limit } => Self::Limit { what: role(&what), limit },
            Rejection::Layer { digest, problem } => {
                Self::Layer { digest: clean(&digest), problem: clean(&problem) }
            }
        }
    }
}

fn role(what: &str) -> &'static str {
    ROLES.into_iter().find(|role| *role == what).unwrap_or(UNKNOWN_ROLE)
}

/// Cuts a text to the length that a message may have.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_PROBLEM_CHARS).collect()
}

/// Cuts a text and removes control characters.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_PROBLEM_CHARS).collect()
}

/// A received frame.
#[derive(Debug)]
pub enum Frame<'a, T> {
    /// A message.
    Message(T),
    /// Data of a blob.
    Data(&'a [u8]),
}

/// Sends a message.
///
/// # Errors
/// The message is too long, or the stream fails.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let bytes = postcard::to_allocvec(message).map_err(invalid)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(invalid(TooLong { limit: MAX_MESSAGE_BYTES, found: bytes.len() }));
    }
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(&bytes);
    stream.write_all(&frame)
}

/// Sends data, which must not be longer than [`MAX_DATA_BYTES`].
///
/// # Errors
/// The data is too long, or the stream fails.
pub fn send_data(stream: &mut impl Write, data: &[u8]) -> io::Result<()> {
    if data.len() > MAX_DATA_BYTES {
        return Err(invalid(TooLong { limit: MAX_DATA_BYTES, found: data.len() }));
    }
    stream.write_all(&(data.len() as u32 | DATA).to_le_bytes())?;
    stream.write_all(data)
}

/// Receives a frame into `buffer`, which grows up to the largest frame.
///
/// # Errors
/// `UnexpectedEof` at the end of the stream, `InvalidData` for a frame that is malformed or too
/// long, and the errors of the stream.
pub fn receive<'a, T: DeserializeOwned>(
    stream: &mut impl Read,
    buffer: &'a mut Vec<u8>,
) -> io::Result<Frame<'a, T>> {
    let mut number = [0; 4];
    stream.read_exact(&mut number)?;
    let number = u32::from_le_bytes(number);
    let (found, is_data) = ((number & !DATA) as usize, number & DATA != 0);
    let limit = if is_data { MAX_DATA_BYTES } else { MAX_MESSAGE_BYTES };
    if found > limit {
        return Err(invalid(TooLong { limit, found }));
    }
    buffer.resize(found, 0);
    stream.read_exact(buffer)?;
    if is_data {
        return Ok(Frame::Data(buffer));
    }
    let (message, rest) = postcard::take_from_bytes(buffer).map_err(invalid)?;
    if rest.is_empty() { Ok(Frame::Message(message)) } else { Err(invalid(TrailingBytes)) }
}

/// Receives a message. See [`receive`].
///
/// # Errors
/// Those of [`receive`], and `InvalidData` for data.
pub fn receive_message<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    match receive(stream, &mut Vec::new())? {
        Frame::Message(message) => Ok(message),
        Frame::Data(_) => Err(invalid(UnexpectedData)),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a frame: expected at most {limit} bytes, found {found}")]
struct TooLong {
    limit: usize,
    found: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("bytes follow a message in its frame")]
struct TrailingBytes;

#[derive(Debug, thiserror::Error)]
#[error("expected a message, found data")]
struct UnexpectedData;

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Vec<Answer> {
        let problem = || "x".repeat(5000);
        let rejections = [
            OciError::Archive { problem: problem() },
            OciError::Member { member: problem(), reason: "\u{1b}[2J".into() },
            OciError::Absent { what: "the config", digest: problem(), size: Some(7) },
            OciError::Document { what: "the index", problem: problem() },
            OciError::Mismatch {
                what: "the blob",
                digest: problem(),
                expected: problem(),
                found: problem(),
            },
            OciError::Limit { what: "number of members", limit: 3 },
            OciError::Layer { digest: problem(), problem: problem() },
        ];
        rejections
            .iter()
            .map(|error| Answer::Imported(Err(Rejection::from_error(error).unwrap())))
            .chain([Answer::Ready, Answer::Wanted("sha256:0".into()), Answer::Imported(Ok(()))])
            .collect()
    }

    #[test]
    fn messages_survive_the_connection_and_keep_their_kind() {
        for answer in answers() {
            let mut stream = Vec::new();
            send(&mut stream, &answer).unwrap();
            let received: Answer = receive_message(&mut stream.as_slice()).unwrap();
            assert_eq!(format!("{received:?}"), format!("{answer:?}"));
            let (Answer::Imported(Err(sent)), Answer::Imported(Err(received))) = (answer, received)
            else {
                continue;
            };
            let error = OciError::from(received);
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
            let again = Rejection::from_error(&error).unwrap();
            assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&sent));
        }
    }

    #[test]
    fn frames_that_are_malformed_or_too_long_are_rejected() {
        let receive = |bytes: &[u8]| {
            receive_message::<Answer>(&mut &*bytes).map_err(|error| error.kind()).map(|_| ())
        };
        let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
        assert_eq!(receive(&frame(&[0])), Ok(()));
        for (bytes, kind) in [
            (Vec::new(), io::ErrorKind::UnexpectedEof),
            (vec![1, 0, 0], io::ErrorKind::UnexpectedEof),
            (vec![1, 0, 0, 0], io::ErrorKind::UnexpectedEof),
            (frame(&[]), io::ErrorKind::InvalidData),
            (frame(&[0, 0]), io::ErrorKind::InvalidData),
            (frame(&[99]), io::ErrorKind::InvalidData),
            // A text that is longer than its frame.
            (frame(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f]), io::ErrorKind::InvalidData),
            (u32::MAX.to_le_bytes().to_vec(), io::ErrorKind::InvalidData),
            ((MAX_MESSAGE_BYTES as u32 + 1).to_le_bytes().to_vec(), io::ErrorKind::InvalidData),
            (DATA.to_le_bytes().to_vec(), io::ErrorKind::InvalidData),
        ] {
            assert_eq!(receive(&bytes), Err(kind), "{bytes:?}");
        }
        let long = Answer::Failed("x".repeat(MAX_MESSAGE_BYTES));
        assert!(send(&mut Vec::new(), &long).is_err());
        assert!(send_data(&mut Vec::new(), &vec![0; MAX_DATA_BYTES + 1]).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_a_frame_or_an_error() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let seeds: Vec<Vec<u8>> = answers()
            .iter()
            .map(|answer| {
                let mut stream = Vec::new();
                send(&mut stream, answer).unwrap();
                stream
            })
            .collect();
        for n in 0..50_000 {
            let mut bytes = seeds[n % seeds.len()].clone();
            for _ in 0..1 + random() % 4 {
                let at = (random() as usize) % bytes.len().min(40);
                bytes[at] = random() as u8;
            }
            let (mut stream, mut buffer) = (bytes.as_slice(), Vec::new());
            while receive::<Answer>(&mut stream, &mut buffer).is_ok() {}
            assert!(buffer.len() <= MAX_DATA_BYTES);
        }
    }

    #[test]
    fn every_role_of_the_library_is_known() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../lib/oci/src");
        let mut found = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_file() {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            for rest in source.split("what: \"").chain(source.split("what = \"")).skip(1) {
                let Some((what, _)) = rest.split_once('"') else { continue };
                if what.len() < 60 && !what.contains('\n') {
                    assert!(ROLES.contains(&what), "{}: add {what:?} to ROLES", path.display());
                    found += 1;
                }
            }
        }
        assert!(found > 10, "only {found} roles found");
    }
}
