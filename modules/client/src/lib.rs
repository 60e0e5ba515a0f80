//! For modules of a Basalt node: keys, proofs, randomness and quotes from trustd, over the socket
//! in the module's container.
//!
//! ```no_run
//! let mut node = basalt_client::Client::connect()?;
//! let proof = node.vrf_prove("ECVRF-EDWARDS25519-SHA512-TAI", b"round 1")?;
//! println!("{} {}", proof.beta, proof.pi);
//! # Ok::<(), basalt_client::Error>(())
//! ```
//!
//! Blocking, one request at a time on a connection that is kept; it is opened anew when trustd was
//! started anew. What a module may call stands in its file under `crypto`. docs/api.md describes
//! the calls; [`Client::call`] makes any of them. Bytes are hex in what comes back, ready to be
//! sent on.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Where the socket is in a container.
pub const SOCKET: &str = "/run/basalt/trustd.sock";
/// Longer than trustd takes for the slowest answer that it gives.
const WITHIN: Duration = Duration::from_secs(40);
/// An answer longer than this is none of trustd's.
const LONGEST: usize = 16 << 20;
const MOST_HEADERS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not reached, or the connection broke.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// trustd said no: 403 `forbidden` (not in the module's file) or `identity`, 429 `quota`, 400
    /// `bad-request`, 503 `busy`, …
    #[error("{code} ({status}): {message}")]
    Refused { status: u16, code: String, message: String },
    #[error("the answer is not one of trustd's: {0}")]
    Answer(String),
}

/// A proof with what is needed to verify it anywhere; all in hex.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Proof {
    pub suite: String,
    pub public_key: String,
    pub pi: String,
    /// The random output.
    pub beta: String,
}

/// Who trustd takes this module for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Identity {
    pub module: String,
    /// Digest of the manifest that this container runs from.
    pub image: String,
    pub container: String,
    /// What decides who has the same keys: `approvers:` or `image:` and a digest.
    pub bound_to: String,
}

/// A signature and the module's key that made it, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Signature {
    pub public_key: String,
    pub signature: String,
}

pub struct Client {
    path: PathBuf,
    connection: Option<UnixStream>,
}

impl Client {
    /// # Errors
    /// That there is no socket: is this a module's container?
    pub fn connect() -> Result<Self, Error> {
        Self::at(SOCKET)
    }

    /// # Errors
    /// [`Error::Io`]
    pub fn at(path: impl AsRef<Path>) -> Result<Self, Error> {
        let mut client = Self { path: path.as_ref().to_owned(), connection: None };
        client.connection = Some(client.open()?);
        Ok(client)
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
    }

    fn open(&self) -> Result<UnixStream, Error> {
        let connection = UnixStream::connect(&self.path).map_err(|e| self.io(e))?;
        connection
            .set_read_timeout(Some(WITHIN))
            .and_then(|()| connection.set_write_timeout(Some(WITHIN)))
            .map_err(|e| self.io(e))?;
        Ok(connection)
    }

    /// One request over the kept connection; where that was closed meanwhile, over a new one.
    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Value, Error> {
        if let Some(connection) = self.connection.take() {
            // No call changes anything, so one that was lost can be made again.
            if let Ok(answer) = self.exchange(connection, method, path, body) {
                return answer;
            }
        }
        let connection = self.open()?;
        self.exchange(connection, method, path, body).map_err(|e| self.io(e))?
    }

    /// The outer error is of the connection, the inner one trustd's.
    fn exchange(
        &mut self,
        mut connection: UnixStream,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<Result<Value, Error>> {
        let request = format!(
            "{method} /v1/{path} HTTP/1.1\r\nhost: trustd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // Of what is too large trustd reads only the beginning, and has answered by then.
        let written = connection.write_all(request.as_bytes());
        let (mut read, mut chunk) = (Vec::new(), [0; 8192]);
        loop {
            let n = match connection.read(&mut chunk) {
                Ok(n) if n > 0 => n,
                Ok(_) => {
                    return Err(written
                        .err()
                        .unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()));
                }
                Err(error) => return Err(written.err().unwrap_or(error)),
            };
            read.extend_from_slice(&chunk[..n]);
            match whole(&read) {
                Ok(None) if read.len() > LONGEST => {
                    return Ok(Err(Error::Answer(format!("it is longer than {LONGEST} bytes"))));
                }
                Ok(None) => {}
                Ok(Some(answer)) => {
                    if !answer.closes {
                        self.connection = Some(connection);
                    }
                    return Ok(answer.value());
                }
                Err(problem) => return Ok(Err(Error::Answer(problem))),
            }
        }
    }

    /// Any call by its name: `vrf/prove`, `hash`, …
    ///
    /// # Errors
    /// [`Error`]
    pub fn call<T: DeserializeOwned>(&mut self, name: &str, request: &Value) -> Result<T, Error> {
        let answer = self.request("POST", name, &request.to_string())?;
        serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))
    }

    /// # Errors
    /// [`Error`]
    pub fn identity(&mut self) -> Result<Identity, Error> {
        let answer = self.request("GET", "identity", "")?;
        serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))
    }

    /// # Errors
    /// [`Error`]
    pub fn vrf_prove(&mut self, suite: &str, alpha: &[u8]) -> Result<Proof, Error> {
        self.call("vrf/prove", &json!({ "suite": suite, "alpha": hex(alpha) }))
    }

    /// The output if the proof holds; `alpha` is what was proved, the rest as it came.
    ///
    /// # Errors
    /// [`Error`]; 400 if key or proof cannot be those of anybody.
    pub fn vrf_verify(
        &mut self,
        suite: &str,
        public_key: &str,
        alpha: &[u8],
        pi: &str,
    ) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Verdict {
            beta: Option<String>,
        }
        let request =
            json!({ "suite": suite, "public_key": public_key, "alpha": hex(alpha), "pi": pi });
        Ok(self.call::<Verdict>("vrf/verify", &request)?.beta)
    }

    /// Random bytes of the TPM, 1 to 1,024.
    ///
    /// # Errors
    /// [`Error`]
    pub fn random(&mut self, bytes: usize) -> Result<Vec<u8>, Error> {
        self.bytes("random", &json!({ "bytes": bytes }), "random")
    }

    /// `algorithm` is `ed25519` or `ecdsa-p256-sha256`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn sign(&mut self, algorithm: &str, data: &[u8]) -> Result<Signature, Error> {
        self.call("sign", &json!({ "algorithm": algorithm, "data": hex(data) }))
    }

    /// Only this module on this node can unseal it, with the same context.
    ///
    /// # Errors
    /// [`Error`]
    pub fn seal(&mut self, context: &[u8], data: &[u8]) -> Result<Vec<u8>, Error> {
        self.bytes("seal", &json!({ "context": hex(context), "data": hex(data) }), "sealed")
    }

    /// # Errors
    /// [`Error`]; 422 `sealed` if somebody else sealed it, with another context, or it was altered.
    pub fn unseal(&mut self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        self.bytes("unseal", &json!({ "context": hex(context), "sealed": hex(sealed) }), "data")
    }

    /// Evidence of this node for a verifier's nonce of 8 to 32 bytes: `trustctl verify` checks it.
    ///
    /// # Errors
    /// [`Error`]
    pub fn quote(&mut self, nonce: &[u8]) -> Result<Value, Error> {
        self.call("quote", &json!({ "nonce": hex(nonce) }))
    }

    fn bytes(&mut self, name: &str, request: &Value, field: &str) -> Result<Vec<u8>, Error> {
        let answer: Value = self.call(name, request)?;
        answer[field]
            .as_str()
            .and_then(unhex)
            .ok_or_else(|| Error::Answer(format!("it has no {field}")))
    }
}

struct Answer {
    status: u16,
    body: Vec<u8>,
    /// trustd will answer no more on this connection.
    closes: bool,
}

impl Answer {
    fn value(&self) -> Result<Value, Error> {
        let value: Value =
            serde_json::from_slice(&self.body).map_err(|e| Error::Answer(e.to_string()))?;
        if self.status == 200 {
            return Ok(value);
        }
        let word = |key: &str| value["error"][key].as_str().unwrap_or_default().to_owned();
        Err(Error::Refused { status: self.status, code: word("code"), message: word("message") })
    }
}

/// An answer, once it is there as a whole.
fn whole(read: &[u8]) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = head.parse(read).map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    let header = |name: &str| {
        head.headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .and_then(|h| std::str::from_utf8(h.value).ok())
    };
    let length: usize = header("content-length")
        .and_then(|value| value.parse().ok())
        .ok_or("it does not say how long it is")?;
    if length > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let closes = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let status = head.code.ok_or("it has no status")?;
    Ok(read.get(end..end + length).map(|body| Answer { status, body: body.to_vec(), closes }))
}

/// Lower-case hex, as trustd takes bytes.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// The inverse of [`hex`].
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes()
        .chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole() {
        let body = r#"{"error":{"code":"forbidden","message":"no"}}"#;
        let text =
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let text = text.as_bytes();
        for end in 0..text.len() {
            assert!(whole(&text[..end]).unwrap().is_none(), "{end}");
        }
        let answer = whole(text).unwrap().unwrap();
        assert!(!answer.closes);
        assert!(
            matches!(answer.value(), Err(Error::Refused { status: 403, code, .. }) if code == "forbidden")
        );
        for bad in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "junk\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        ] {
            assert!(whole(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(unhex(&hex(&[0, 0x5a, 255])), Some(vec![0, 0x5a, 255]));
        assert_eq!(unhex("abc"), None);
    }
}
