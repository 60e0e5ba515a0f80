//! Client of a node's API: HTTP/1.1 with JSON over TLS, or over a Unix socket.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use api::{ErrorBody, ErrorCode};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use crate::keys::Owner;
use crate::tls;

/// Timeout for the TCP connection and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a request that the node answers with 429 is no longer retried.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Chunks of a file that can wait to be sent.
const UPLOAD_QUEUE_LEN: usize = 4;
const UPLOAD_CHUNK_BYTES: usize = 128 << 10;

/// Bounds of one request.
#[derive(Clone, Copy)]
struct Limits {
    timeout: Duration,
    max_answer_bytes: usize,
}

/// Bounds for a node of one's own: an upload takes as long as the network and the card do.
const OWNER_LIMITS: Limits =
    Limits { timeout: Duration::from_secs(3600), max_answer_bytes: 256 << 20 };
/// Bounds for a node that may belong to anyone.
const ANONYMOUS_LIMITS: Limits =
    Limits { timeout: Duration::from_secs(60), max_answer_bytes: 32 << 20 };

/// Address of a node's API: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TLS to `HOST:PORT`.
    Tls(String),
    /// Unix socket.
    Unix(PathBuf),
}

/// The text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected HOST:PORT or unix:PATH, found {0:?}")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tls(text.to_owned()))
            }
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tls(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Client of one node. Each request has a connection of its own.
pub struct Client {
    address: Address,
    /// Folder with the owner's key and `known_nodes`.
    folder: PathBuf,
    /// SHA-256 of the certificate that the node showed last, hex.
    node_certificate: Mutex<Option<String>>,
    /// Whether the client presents no certificate.
    anonymous: bool,
}

/// The node answered with an error status.
#[derive(Debug, thiserror::Error)]
#[error("the node answers {status} ({code}): {message}")]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Error code of the API (docs/api.md).
    pub code: ErrorCode,
    /// Reason in words.
    pub message: String,
}

/// The node's answer does not have the form that the API describes (`lib/api`).
#[derive(Debug, thiserror::Error)]
#[error(
    "the node's answer ({status}) has an unexpected form; are the node and trustctl of the same \
     version?"
)]
pub struct InvalidAnswer {
    /// HTTP status.
    pub status: u16,
    /// Cause: the difference from the expected type.
    pub source: serde_json::Error,
}

impl Client {
    /// Makes a client that presents the owner's certificate, if there is one in the folder.
    pub fn new(address: Address, folder: &Path) -> Self {
        let node_certificate = Mutex::new(None);
        Self { address, folder: folder.to_owned(), node_certificate, anonymous: false }
    }

    /// Makes a client that presents no certificate, for a node that may belong to anyone.
    pub fn anonymous(address: Address, folder: &Path) -> Self {
        Self { anonymous: true, ..Self::new(address, folder) }
    }

    /// Returns the node's address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the SHA-256 of the certificate that the node showed, hex; `None` before the first
    /// answer and on a Unix socket.
    pub fn node_certificate(&self) -> Option<String> {
        self.node_certificate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a GET request and parses the JSON answer.
    ///
    /// # Errors
    /// Returns a [`Refusal`] if the node answers with an error status, an [`InvalidAnswer`] if the
    /// answer has another form, and other errors if the node cannot be reached.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.request_json(Method::GET, path, Body::Json(Vec::new()))
    }

    /// Sends a POST request with a JSON body and parses the JSON answer.
    ///
    /// # Errors
    /// Returns the errors of [`Self::get`].
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.request_json(Method::POST, path, Body::Json(serde_json::to_vec(body)?))
    }

    /// Sends a PUT request with a JSON body and parses the JSON answer.
    ///
    /// # Errors
    /// Returns the errors of [`Self::get`].
    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.request_json(Method::PUT, path, Body::Json(serde_json::to_vec(body)?))
    }

    /// Sends a PUT request with a text as the body and parses the JSON answer.
    ///
    /// # Errors
    /// Returns the errors of [`Self::get`].
    pub(crate) fn put_text<T: DeserializeOwned>(&self, path: &str, text: String) -> Result<T> {
        self.request_json(Method::PUT, path, Body::Text(text))
    }

    /// Sends a PUT request with a file as the body, read while it is sent, and parses the JSON
    /// answer.
    ///
    /// # Errors
    /// Returns the errors of [`Self::get`], and an error if the file cannot be read.
    pub(crate) fn upload<T: DeserializeOwned>(&self, path: &str, file: &Path) -> Result<T> {
        self.request_json(Method::PUT, path, Body::File(file))
    }

    /// Sends a GET request and returns the answer as text: a log, the status page or the
    /// metrics.
    ///
    /// # Errors
    /// Returns a [`Refusal`] if the node answers with an error status, and other errors if the node
    /// cannot be reached or the answer is not UTF-8.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, bytes) = self.request(Method::GET, path, Body::Json(Vec::new()))?;
        if status != StatusCode::OK {
            return Err(refusal(status, &bytes)?.into());
        }
        String::from_utf8(bytes.to_vec()).context("the node's answer is not UTF-8 text")
    }

    /// Retries a request while the node answers that too many clients are waiting (429), for at
    /// most a minute.
    ///
    /// # Errors
    /// Returns the last error of `request`.
    pub fn retry_when_busy<T>(&self, mut request: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        let is_busy = |error: &anyhow::Error| {
            error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.status == 429)
        };
        loop {
            match request(self) {
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(BUSY_RETRY_INTERVAL)
                }
                answer => return answer,
            }
        }
    }

    fn request_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body<'_>,
    ) -> Result<T> {
        let (status, bytes) = self.request(method, path, body)?;
        if status != StatusCode::OK {
            return Err(refusal(status, &bytes)?.into());
        }
        Ok(parse_json(status, &bytes)?)
    }

    fn request(&self, method: Method, path: &str, body: Body<'_>) -> Result<(StatusCode, Bytes)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let limits = if self.anonymous { ANONYMOUS_LIMITS } else { OWNER_LIMITS };
        runtime.block_on(async {
            match &self.address {
                Address::Unix(socket) => {
                    let stream = tokio::net::UnixStream::connect(socket)
                        .await
                        .with_context(|| format!("cannot connect to {}", socket.display()))?;
                    exchange(stream, method, path, body, limits).await
                }
                Address::Tls(address) => {
                    // Without an owner's key every client is anonymous.
                    let owner = if !self.anonymous && self.folder.join("owner.key").exists() {
                        Some(Owner::load(&self.folder)?)
                    } else {
                        None
                    };
                    let connect = tls::connect(address, &self.folder, owner);
                    let (stream, certificate) = tokio::time::timeout(CONNECT_TIMEOUT, connect)
                        .await
                        .with_context(|| {
                            format!("{address} does not answer in {} s", CONNECT_TIMEOUT.as_secs())
                        })??;
                    *self.node_certificate.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(certificate);
                    exchange(stream, method, path, body, limits).await
                }
            }
        })
    }
}

/// Sends one request on a connection and reads the answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    body: Body<'_>,
    limits: Limits,
) -> Result<(StatusCode, Bytes)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "basalt-node")
        .header("content-type", body.content_type())
        .body(match body {
            Body::Json(bytes) => Either::Left(Full::new(Bytes::from(bytes))),
            Body::Text(text) => Either::Left(Full::new(Bytes::from(text))),
            Body::File(path) => Either::Right(stream_file(path).await?),
        })?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limits.max_answer_bytes)
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!(e))?;
        Ok::<_, anyhow::Error>((status, body.to_bytes()))
    };
    tokio::time::timeout(limits.timeout, answer)
        .await
        .with_context(|| format!("the node does not answer in {} s", limits.timeout.as_secs()))?
        .context("the connection to the node was closed")
}

fn parse_json<T: DeserializeOwned>(status: StatusCode, bytes: &[u8]) -> Result<T, InvalidAnswer> {
    serde_json::from_slice(bytes)
        .map_err(|source| InvalidAnswer { status: status.as_u16(), source })
}

fn refusal(status: StatusCode, bytes: &[u8]) -> Result<Refusal, InvalidAnswer> {
    let ErrorBody { error } = parse_json(status, bytes)?;
    Ok(Refusal { status: status.as_u16(), code: error.code, message: error.message })
}

/// Body of a request.
enum Body<'a> {
    /// JSON, or empty.
    Json(Vec<u8>),
    /// Text.
    Text(String),
    /// Content of a file.
    File(&'a Path),
}

impl Body<'_> {
    fn content_type(&self) -> &'static str {
        match self {
            Self::Json(_) => "application/json",
            Self::Text(_) => "text/plain; charset=utf-8",
            Self::File(_) => "application/octet-stream",
        }
    }
}

/// Opens a file as a body that is read while it is sent.
async fn stream_file(path: &Path) -> Result<Channel<Bytes, std::io::Error>> {
    let mut file = tokio::fs::File::open(path)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    let (mut sender, body) = Channel::new(UPLOAD_QUEUE_LEN);
    tokio::spawn(async move {
        let mut buffer = vec![0; UPLOAD_CHUNK_BYTES];
        loop {
            match file.read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) if sender.send_data(Bytes::copy_from_slice(&buffer[..n])).await.is_ok() => {}
                // The node stopped reading; its answer has the reason.
                Ok(_) => return,
                Err(error) => return sender.abort(error),
            }
        }
    });
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses_of_both_kinds() {
        assert_eq!("127.0.0.1:7443".parse(), Ok(Address::Tls("127.0.0.1:7443".into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for bad in ["", "host", ":1", "host:x", "host:70000"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
