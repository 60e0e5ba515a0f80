//! Responses over HTTP/1.1: a head within limits, and a body that is read chunk by chunk.
//!
//! A body is passed on as it was sent. No content coding is undone (RFC 9110, section 8.4): the
//! requests ask for none, and the bytes are verified by their digest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, TRANSFER_ENCODING};
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::HttpError;

const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// Longest body of an error response that is read.
const MAX_ERROR_BYTES: u64 = 4096;
/// Time for the body of an error response.
const MAX_ERROR_TIME: Duration = Duration::from_secs(5);
/// Longest message of a host that is repeated in an error.
const MAX_MESSAGE_CHARS: usize = 200;
/// Bytes that a host must deliver within the stall timeout, unless the body ends, and after which a
/// broken transfer counts as progress.
pub(super) const MIN_PROGRESS_BYTES: u64 = 64 * 1024;

/// Response whose body was not read yet.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) host: String,
    body: Incoming,
    stall_timeout: Duration,
    /// Time spent waiting for the host, and bytes received meanwhile, since the last progress.
    waited: Duration,
    received: u64,
}

/// Connection with or without TLS.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Sends a request and reads the head of the response.
pub(super) async fn send_request(
    connection: impl Connection + 'static,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<hyper::Response<Incoming>> {
    let (mut sender, driver) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(connection))
        .await?;
    // The task ends with the response's body, or when the body is dropped.
    tokio::spawn(driver);
    sender.send_request(request).await
}

/// Reduces an address to scheme and host, without a user name or a signature, which are secrets.
pub(super) fn redact(address: &str) -> String {
    match address.parse::<Uri>() {
        Ok(uri) => {
            let host: String =
                uri.host().unwrap_or_default().chars().take(MAX_MESSAGE_CHARS).collect();
            format!("{}://{host}", uri.scheme_str().unwrap_or_default())
        }
        Err(_) => "an invalid address".into(),
    }
}

impl Response {
    pub(super) fn new(
        response: hyper::Response<Incoming>,
        host: &str,
        stall_timeout: Duration,
    ) -> Self {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, head.headers);
        let (waited, received) = (Duration::ZERO, 0);
        Self { status, headers, host: host.to_owned(), body, stall_timeout, waited, received }
    }

    /// Returns the announced number of bytes of the body, if there is one.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Reports whether the end of the body can be told from a broken connection (RFC 9112, section
    /// 6.3).
    pub(super) fn is_delimited(&self) -> bool {
        self.content_length().is_some() || self.headers.contains_key(TRANSFER_ENCODING)
    }

    /// Reports whether the body is in a coding that was not asked for.
    pub(super) fn is_encoded(&self) -> bool {
        let mut codings = self.headers.get_all(CONTENT_ENCODING).iter();
        codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    }

    /// Returns the error for a host that sent almost nothing for too long.
    fn stalled(&self) -> HttpError {
        HttpError::Stalled { host: self.host.clone(), seconds: self.stall_timeout.as_secs() }
    }

    /// Reads the next bytes of the body. Returns `None` at its end.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError::Stalled`] if the host delivers less than [`MIN_PROGRESS_BYTES`] within
    /// the stall timeout, and [`HttpError::Broken`] if the connection breaks.
    pub(super) async fn next_chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            // The time in which the caller works on a chunk does not count.
            let began = Instant::now();
            let frame = tokio::time::timeout(self.stall_timeout, self.body.frame()).await;
            self.waited += began.elapsed();
            let data = match frame.map_err(|_| self.stalled())? {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(HttpError::Broken {
                        host: self.host.clone(),
                        source: error.into(),
                    });
                }
                // Trailers are ignored.
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            self.received += data.len() as u64;
            if self.received >= MIN_PROGRESS_BYTES {
                (self.waited, self.received) = (Duration::ZERO, 0);
            } else if self.waited > self.stall_timeout {
                // A transfer of a few bytes at a time would have no end.
                return Err(self.stalled());
            }
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// Reads the whole body, at most `limit` bytes.
    pub(super) async fn read_all(mut self, limit: u64) -> Result<Vec<u8>, HttpError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.next_chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(HttpError::TooLong { host: self.host, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Converts a response whose status is not success. The host's message is shortened to fit a
    /// line.
    pub(super) async fn into_error(self) -> HttpError {
        let (host, status) = (self.host.clone(), self.status);
        // A message is not worth the wait for a slow host.
        let reading = tokio::time::timeout(MAX_ERROR_TIME, self.read_all(MAX_ERROR_BYTES)).await;
        let body = reading.ok().and_then(Result::ok).unwrap_or_default();
        let message = serde_json::from_slice::<ErrorBody>(&body)
            .ok()
            .and_then(|body| body.errors.into_iter().next()?.message);
        let message = message
            .map(|text| text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect());
        HttpError::Status { host, status, message }
    }
}

/// Body of an error response (OCI distribution-spec 1.1, "Error Codes").
#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    message: Option<String>,
}
