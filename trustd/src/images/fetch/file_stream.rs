//! Files that are not images and are read piece by piece, such as logs. Their source is not
//! trusted, so every user of a file verifies its content.

use bytes::Bytes;
use config::Repository;
use hyper::header::{CONTENT_RANGE, RANGE};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};

use super::budget::Budget;
use super::error::{FileError, HttpError};
use super::host::Host;
use super::http::{Headers, Route};
use super::registry::RegistryClient;
use super::response::Response;

/// A file that arrives.
pub(crate) struct FileStream {
    response: Response,
    /// Place in the file at which the stream begins.
    pub(crate) start: u64,
    /// Digest that the file must have, and the hash of what arrived.
    expected: Option<(String, Sha256)>,
}

impl FileStream {
    /// Returns the next bytes of the file, or `None` at its end.
    ///
    /// # Errors
    ///
    /// Returns [`FileError`] if the connection breaks or stalls, and at the end of a file that has
    /// another digest than the requested one.
    pub(crate) async fn next_chunk(&mut self) -> Result<Option<Bytes>, FileError> {
        let chunk = self.response.next_chunk().await?;
        if let Some((expected, hash)) = &mut self.expected {
            match &chunk {
                Some(chunk) => hash.update(chunk),
                None => {
                    let hash = std::mem::take(hash);
                    let found = format!("sha256:{}", measure::hex(&hash.finalize()));
                    if found != *expected {
                        let (host, expected) = (self.response.host.clone(), expected.clone());
                        return Err(FileError::WrongDigest { host, expected, found });
                    }
                }
            }
        }
        Ok(chunk)
    }
}

impl RegistryClient {
    /// Opens a file over HTTP, with the certificates that are set for its host, from the byte
    /// `start` on if the host supports ranges (RFC 9110 section 14), otherwise from its beginning.
    ///
    /// `limit` is the greatest length of the file.
    ///
    /// # Errors
    ///
    /// Returns [`FileError::PlainHost`] if TLS is required and excluded by the host's settings, and
    /// [`FileError::Http`] if the host does not deliver the file.
    pub(crate) async fn open_file(
        &self,
        tls: bool,
        host: &str,
        path: &str,
        start: u64,
        limit: u64,
    ) -> Result<FileStream, FileError> {
        let host = if tls { self.http.host(host) } else { Host::new(host, None) };
        if tls && host.tls.is_none() {
            return Err(FileError::PlainHost { host: host.name });
        }
        let mut budget = Budget::new(limit, self.http.stall_timeout);
        let range = HeaderValue::from_str(&format!("bytes={start}-")).ok();
        if let Some(range) = range.filter(|_| start > 0) {
            let headers = vec![(RANGE, range)];
            let response = self.get_file_response(&host, path, &headers, &mut budget).await?;
            match response.status {
                StatusCode::PARTIAL_CONTENT if first_byte(&response.headers) == Some(start) => {
                    return Ok(FileStream { response, start, expected: None });
                }
                StatusCode::OK => return Ok(FileStream { response, start: 0, expected: None }),
                _ => {}
            }
        }
        let response = self.get_file_response(&host, path, &Headers::new(), &mut budget).await?;
        if response.status != StatusCode::OK {
            // The body is not read. A message of the host, which can differ in each response, would
            // be logged at each poll.
            let (host, status) = (response.host, response.status);
            return Err(HttpError::Status { host, status, message: None }.into());
        }
        Ok(FileStream { response, start: 0, expected: None })
    }

    /// Sends a GET request and follows redirects.
    async fn get_file_response(
        &self,
        host: &Host,
        path: &str,
        headers: &Headers,
        budget: &mut Budget,
    ) -> Result<Response, HttpError> {
        let mut route = Route::new(host.clone(), path);
        loop {
            let response = self.http.send(&mut route, headers, budget).await?;
            match self.http.next_route(&route, &response)? {
                Some(next) => route = next,
                None => return Ok(response),
            }
        }
    }

    /// Opens the first layer of an artifact by the artifact's tag. The registry decides which
    /// artifact that is. `limit` is the greatest length of the layer.
    ///
    /// # Errors
    ///
    /// Returns [`FileError`] if the tag leads to no artifact, or if the registry does not deliver
    /// the layer.
    pub(crate) async fn open_artifact(
        &self,
        registry: &str,
        tag: &str,
        limit: u64,
    ) -> Result<FileStream, FileError> {
        let Repository { host, name: repository } =
            config::parse_repository(registry).map_err(FileError::Repository)?;
        let expected = self.artifact_layer(&host, &repository, tag).await?;
        let path = format!("/v2/{repository}/blobs/{expected}");
        let mut budget = Budget::new(limit, self.http.stall_timeout);
        let response = self.get(&host, &repository, &path, &Headers::new(), &mut budget).await?;
        if response.status != StatusCode::OK {
            return Err(FileError::from(response.into_error().await));
        }
        Ok(FileStream { response, start: 0, expected: Some((expected, Sha256::new())) })
    }
}

/// Returns the first byte of a partial response (RFC 9110 section 14.4).
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_of_a_partial_response_is_read() {
        let first = |text: &'static str| {
            first_byte(&HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]))
        };
        assert_eq!(first("bytes 42-1233/1234"), Some(42));
        assert_eq!(first("bytes 42-1233/*"), Some(42));
        for bad in ["bytes */1234", "bytes -5/10", "items 1-2/3", "42-50", ""] {
            assert_eq!(first(bad), None, "{bad}");
        }
    }
}
