//! Client for modules of a Basalt node: keys, proofs, random bytes and quotes from trustd, over the
//! socket in the module's container.
//!
//! ```no_run
//! use basalt_client::{Client, Suite};
//!
//! let mut node = Client::connect()?;
//! let proof = node.vrf_prove(Suite::Ed25519Tai, b"round 1")?;
//! println!("{} {}", proof.beta, proof.pi);
//! # Ok::<(), basalt_client::Error>(())
//! ```
//!
//! The client is blocking and sends one request at a time. It reuses its connection, and opens a
//! new one after a restart of trustd. The file of a module lists the calls that it may make under
//! `crypto`. docs/api.md describes the calls; [`Client::call`] makes any of them. Requests and
//! answers are the types of the crate `basalt-api`, in which bytes are hex.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::module::{
    Call, RandomRequest, SealRequest, SignRequest, UnsealRequest, VrfProveRequest, VrfVerifyRequest,
};
use api::{ErrorBody, QuoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use api::module::{Identity, ModuleQuote, Signature, SignatureAlgorithm, Suite, VrfProof};
pub use api::{ErrorCode, Evidence, module as calls};

/// Path of the socket in a container.
pub const SOCKET: &str = "/run/basalt/trustd.sock";
/// Time to wait for an answer. trustd needs less for its slowest answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
/// Longest body of an answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;
const MAX_HEADERS: usize = 32;

/// Error of a call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be reached, or the connection broke.
    #[error("cannot call trustd at {path}")]
    Io {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the connection.
        source: std::io::Error,
    },
    /// trustd rejected the call, such as 403 `forbidden` for a call that the module's file does not
    /// list, 403 `unknown-peer`, 429 `quota`, 400 `bad-request` or 503 `busy`.
    #[error("{code} ({status}): {message}")]
    Rejected {
        /// HTTP status.
        status: u16,
        /// Code of the error.
        code: ErrorCode,
        /// Description of the error.
        message: String,
    },
    /// The answer has another form than trustd's.
    #[error("malformed answer of trustd: {0}")]
    Answer(String),
}

/// Connection to trustd.
pub struct Client {
    path: PathBuf,
    connection: Option<UnixStream>,
}

impl Client {
    /// Connects to the socket of this module's container.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Io`] if there is no socket, as outside of a module's container.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(SOCKET)
    }

    /// Connects to a socket at another path.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Io`] if the socket cannot be reached.
    pub fn connect_to(path: impl AsRef<Path>) -> Result<Self, Error> {
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
            .set_read_timeout(Some(REQUEST_TIMEOUT))
            .and_then(|()| connection.set_write_timeout(Some(REQUEST_TIMEOUT)))
            .map_err(|e| self.io(e))?;
        Ok(connection)
    }

    /// Sends a request over the open connection. If that was closed in the meantime, retries over a
    /// new one.
    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>, Error> {
        if let Some(connection) = self.connection.take() {
            // All calls are idempotent, so a lost one can be repeated.
            if let Ok(answer) = self.exchange(connection, method, path, body) {
                return answer;
            }
        }
        let connection = self.open()?;
        self.exchange(connection, method, path, body).map_err(|e| self.io(e))?
    }

    /// Sends a request and reads the answer. The outer error is that of the connection, the inner
    /// one that of trustd.
    fn exchange(
        &mut self,
        mut connection: UnixStream,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<Result<Vec<u8>, Error>> {
        let request = format!(
            "{method} /v1/{path} HTTP/1.1\r\nhost: trustd\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        // trustd answers a request that is too large without reading all of it. The answer is then
        // more useful than the write error.
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
            match parse_answer(&read) {
                Ok(None) if read.len() > MAX_ANSWER_BYTES => {
                    return Ok(Err(Error::Answer(format!(
                        "expected at most {MAX_ANSWER_BYTES} bytes, found more"
                    ))));
                }
                Ok(None) => {}
                Ok(Some(answer)) => {
                    if !answer.closes {
                        self.connection = Some(connection);
                    }
                    return Ok(answer.into_body());
                }
                Err(problem) => return Ok(Err(Error::Answer(problem))),
            }
        }
    }

    /// Makes the call that belongs to a request, such as `vrf/prove` for [`VrfProveRequest`].
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn call<C: Call>(&mut self, request: &C) -> Result<C::Answer, Error> {
        self.call_by_name(C::NAME, request)
    }

    /// Makes the call of this name, such as `batch`, with any request and answer.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails or the answer is not of the type `T`.
    pub fn call_by_name<T: DeserializeOwned>(
        &mut self,
        name: &str,
        request: &impl Serialize,
    ) -> Result<T, Error> {
        let request = serde_json::to_string(request).map_err(|e| Error::Answer(e.to_string()))?;
        parse(&self.request("POST", name, &request)?)
    }

    /// Returns the identity of the module.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn identity(&mut self) -> Result<Identity, Error> {
        parse(&self.request("GET", "identity", "")?)
    }

    /// Computes a VRF proof with the module's key of this suite.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn vrf_prove(&mut self, suite: Suite, alpha: &[u8]) -> Result<VrfProof, Error> {
        self.call(&VrfProveRequest { suite, alpha: hex(alpha) })
    }

    /// Verifies a VRF proof for `alpha`. Returns the output if the proof is valid, and `None` if it
    /// is not.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails, with status 400 if key or proof are malformed.
    pub fn vrf_verify(
        &mut self,
        suite: Suite,
        public_key: &str,
        alpha: &[u8],
        pi: &str,
    ) -> Result<Option<String>, Error> {
        let (public_key, pi) = (public_key.to_owned(), pi.to_owned());
        let request = VrfVerifyRequest { suite, public_key, alpha: hex(alpha), pi };
        Ok(self.call(&request)?.beta)
    }

    /// Returns 1 to 1,024 random bytes of the TPM.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn random(&mut self, bytes: usize) -> Result<Vec<u8>, Error> {
        parse_hex("random", &self.call(&RandomRequest { bytes })?.random)
    }

    /// Signs data with the module's key.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn sign(&mut self, algorithm: SignatureAlgorithm, data: &[u8]) -> Result<Signature, Error> {
        self.call(&SignRequest { algorithm, data: hex(data) })
    }

    /// Seals data, so that only this module on this node can unseal it, with the same context.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn seal(&mut self, context: &[u8], data: &[u8]) -> Result<Vec<u8>, Error> {
        let request = SealRequest { data: hex(data), context: hex(context) };
        parse_hex("sealed", &self.call(&request)?.sealed)
    }

    /// Unseals data.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails, with 422 `sealed` if another module or node sealed the
    /// data, if the context differs, or if the data was altered.
    pub fn unseal(&mut self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let request = UnsealRequest { sealed: hex(sealed), context: hex(context) };
        parse_hex("data", &self.call(&request)?.data)
    }

    /// Returns evidence of this node for a verifier's nonce of 8 to 32 bytes. `trustctl verify`
    /// appraises it.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if the call fails.
    pub fn quote(&mut self, nonce: &[u8]) -> Result<ModuleQuote, Error> {
        self.call(&QuoteRequest { nonce: hex(nonce) })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|e| Error::Answer(e.to_string()))
}

fn parse_hex(member: &str, text: &str) -> Result<Vec<u8>, Error> {
    unhex(text).ok_or_else(|| Error::Answer(format!("{member} is not hex")))
}

struct Answer {
    status: u16,
    body: Vec<u8>,
    /// Whether trustd closes the connection after this answer.
    closes: bool,
}

impl Answer {
    /// Returns the body of a successful answer.
    fn into_body(self) -> Result<Vec<u8>, Error> {
        if self.status == 200 {
            return Ok(self.body);
        }
        let ErrorBody { error } = serde_json::from_slice(&self.body)
            .map_err(|e| Error::Answer(format!("status {}: {e}", self.status)))?;
        Err(Error::Rejected { status: self.status, code: error.code, message: error.message })
    }
}

/// Parses an answer; returns `None` if it is incomplete.
fn parse_answer(read: &[u8]) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
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
        .ok_or("content-length is missing or invalid")?;
    if length > MAX_ANSWER_BYTES {
        return Err(format!("expected at most {MAX_ANSWER_BYTES} bytes, found more"));
    }
    let closes = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let status = head.code.ok_or("status is missing")?;
    Ok(read.get(end..end + length).map(|body| Answer { status, body: body.to_vec(), closes }))
}

/// Formats bytes as lower-case hex, the form of the API.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// Parses hex. Returns `None` for any other text.
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
    fn an_answer_is_parsed_once_it_is_complete() {
        let body = r#"{"error":{"code":"forbidden","message":"no"}}"#;
        let text =
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let text = text.as_bytes();
        for end in 0..text.len() {
            assert!(parse_answer(&text[..end]).unwrap().is_none(), "{end}");
        }
        let answer = parse_answer(text).unwrap().unwrap();
        assert!(!answer.closes);
        let Err(Error::Rejected { status: 403, code, .. }) = answer.into_body() else {
            panic!("not a rejection")
        };
        assert_eq!(code, ErrorCode::Forbidden);
        for bad in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "junk\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        ] {
            assert!(parse_answer(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(unhex(&hex(&[0, 0x5a, 255])), Some(vec![0, 0x5a, 255]));
        assert_eq!(unhex("abc"), None);
    }
}
