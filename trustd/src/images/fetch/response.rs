//! What a host answers over HTTP/1.1: the head within limits, the body piece by piece.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

const LARGEST_HEAD: usize = 64 * 1024;
const MOST_HEADERS: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{host} cannot be reached: {problem}")]
    Connect { host: String, problem: String },
    #[error("{host} says nothing, or next to nothing, for {seconds} s")]
    Stalled { host: String, seconds: u64 },
    #[error("{host} broke off: {problem}")]
    Broken { host: String, problem: String },
    #[error("{host} redirects to {to:?}, which is not followed: {why}")]
    Redirect { host: String, to: String, why: &'static str },
    #[error("{host} sends more than {limit} bytes")]
    TooLong { host: String, limit: u64 },
}

pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub host: String,
    body: Incoming,
    /// The longest silence.
    pub patience: Duration,
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Sends a request and reads the head of the answer.
pub(super) async fn exchange(
    stream: impl Stream + 'static,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<hyper::Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await?;
    // It ends with the answer's body, or when that is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// An address without what could be secret in it: a user, a signature.
pub(super) fn shown(address: &str) -> String {
    match address.parse::<Uri>() {
        Ok(uri) => {
            format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default())
        }
        Err(_) => "something else than an address".into(),
    }
}

impl Answer {
    pub(super) fn new(response: hyper::Response<Incoming>, host: &str, patience: Duration) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, host: host.to_owned(), body, patience }
    }

    /// The next bytes of the body; None at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame =
                tokio::time::timeout(self.patience, self.body.frame()).await.map_err(|_| {
                    HttpError::Stalled { host: self.host.clone(), seconds: self.patience.as_secs() }
                })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(HttpError::Broken {
                        host: self.host.clone(),
                        problem: error.to_string(),
                    });
                }
                Some(Ok(frame)) => {
                    // Trailers say nothing that counts here.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole of a small body.
    pub(super) async fn whole(mut self, limit: u64) -> Result<Vec<u8>, HttpError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(HttpError::TooLong { host: self.host, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
