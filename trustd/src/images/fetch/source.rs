//! One source of a blob: a registry or one of its mirrors, asked again as long as that helps.
//!
//! Invariants:
//! - Each round ends with the blob, with the end of this source, or with a request taken from the
//!   source's [`Budget`]. No answer leads to rounds without end.
//! - What the store has of a blob is lost only if the bytes turn out to be wrong. A source that
//!   sends the blob from its beginning continues it all the same: the known bytes are skipped.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ACCEPT, RANGE};
use hyper::http::HeaderValue;
use oci::{INDEX_TYPES, MANIFEST_TYPES, OciError};

use super::budget::Budget;
use super::download::Download;
use super::error::{AttemptError, HttpError};
use super::headers::ContentRange;
use super::http::Headers;
use super::registry::{BlobRequest, Content, RegistryClient};
use super::response::{MIN_PROGRESS_BYTES, Response};
use crate::images::store::{Store, StoreError};
use crate::util::low_priority;

/// Attempts in a row at one source without [`MIN_PROGRESS_BYTES`] of progress.
const MAX_ATTEMPTS: u32 = 3;
/// Pause before the first repeated attempt without progress. It doubles at each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause that the last source may ask for and that is waited for. A longer one ends the
/// fetch, which the module's rollout repeats later.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Source while a blob is fetched from it.
struct Source<'a> {
    client: &'a RegistryClient,
    store: &'a Arc<Store>,
    host: &'a str,
    repository: &'a str,
    request: &'a BlobRequest<'a>,
    budget: Budget,
    /// No answer to a request for a range was wrong so far.
    has_ranges: bool,
    /// The blob was requested from its beginning because what the store had may have been wrong.
    is_restarted: bool,
}

impl RegistryClient {
    /// Fetches a blob from one source.
    pub(super) async fn fetch_from(
        &self,
        store: &Arc<Store>,
        host: &str,
        repository: &str,
        request: &BlobRequest<'_>,
        is_last: bool,
    ) -> Result<(), AttemptError> {
        let size = match request.content {
            Content::Manifest => store.limits.json,
            Content::Blob { size } => size.unwrap_or_default(),
        };
        let source = Source {
            client: self,
            store,
            host,
            repository,
            request,
            budget: Budget::new(size, self.http.stall_timeout),
            has_ranges: true,
            is_restarted: false,
        };
        source.fetch(is_last).await
    }
}

impl Source<'_> {
    async fn fetch(mut self, is_last: bool) -> Result<(), AttemptError> {
        let mut attempts = 0;
        loop {
            let before = self.store.partial_size(self.request.digest);
            let Err(error) = self.attempt().await else { return Ok(()) };
            let after = self.store.partial_size(self.request.digest);
            let made_progress = after >= before + MIN_PROGRESS_BYTES;
            match error {
                // The part that the store had may be wrong. It is removed now.
                AttemptError::WrongContent { .. } if before > 0 && !self.is_restarted => {
                    self.is_restarted = true;
                }
                AttemptError::Http(HttpError::WrongRange { .. }) if self.has_ranges => {
                    self.has_ranges = false;
                }
                AttemptError::Http(error) => {
                    attempts = if made_progress { 0 } else { attempts + 1 };
                    match self.pause(&error, attempts, is_last) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Err(error.into()),
                    }
                }
                error => return Err(error),
            }
        }
    }

    /// Returns the pause before the next attempt, or `None` if this source is given up. `attempts`
    /// is the number of attempts in a row without progress.
    fn pause(&self, error: &HttpError, attempts: u32, is_last: bool) -> Option<Duration> {
        let longest = MAX_WAIT.min(self.budget.time_left());
        match error {
            _ if attempts >= MAX_ATTEMPTS => None,
            // Another source may have the blob without a pause.
            HttpError::Busy { left, .. } => (is_last && *left <= longest).then_some(*left),
            error if !error.is_worth_a_retry(attempts == 0) => None,
            _ => {
                Some(attempts.checked_sub(1).map_or(Duration::ZERO, |n| RETRY_PAUSE * 2u32.pow(n)))
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), AttemptError> {
        match self.request.content {
            Content::Manifest => self.fetch_manifest().await,
            Content::Blob { size: Some(size) } => self.fetch_blob(size).await,
            Content::Blob { size: None } => {
                let digest = self.request.digest.to_owned();
                let source = OciError::Absent { what: "the size of", digest, size: None };
                Err(AttemptError::WrongContent { host: self.host.to_owned(), source })
            }
        }
    }

    async fn get(&mut self, path: &str, headers: &Headers) -> Result<Response, HttpError> {
        self.client.get(self.host, self.repository, path, headers, &mut self.budget).await
    }

    /// Fetches a config or a layer (OCI distribution-spec 1.1, "Pulling blobs"), from where the
    /// store's part of it ends.
    async fn fetch_blob(&mut self, size: u64) -> Result<(), AttemptError> {
        let digest = self.request.digest;
        if self.store.partial_size(digest) >= size && self.complete(size).await? {
            return Ok(());
        }
        let start = self.store.partial_size(digest);
        let is_range = start > 0 && self.has_ranges;
        let mut headers = vec![(ACCEPT, HeaderValue::from_static("*/*"))];
        if is_range {
            // Both ends are named, because some registries reject a range without an end.
            let range = HeaderValue::from_str(&format!("bytes={start}-{}", size - 1));
            headers.extend(range.ok().map(|value| (RANGE, value)));
        }
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        let response = self.get(&path, &headers).await?;
        let wrong_range = || HttpError::WrongRange { host: response.host.clone(), start, size };
        let whole = ContentRange { start: 0, end: size };
        let ContentRange { start: offset, end } = match response.status {
            StatusCode::OK => whole,
            // Where the range starts too late, bytes would be missing.
            StatusCode::PARTIAL_CONTENT => {
                match ContentRange::from_headers(&response.headers, size) {
                    Some(range) if range.start <= start && range.end > start => range,
                    // Some proxies answer every request like this.
                    None if !is_range => whole,
                    _ => return Err(wrong_range().into()),
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if is_range => return Err(wrong_range().into()),
            _ => return Err(response.into_error().await.into()),
        };
        if let Some(length) = response.content_length()
            && length > size - offset
            && !response.is_encoded()
        {
            let (digest, expected) = (digest.to_owned(), format!("{} bytes", size - offset));
            let found = format!("{length} bytes");
            let source = OciError::Mismatch { what: "the blob", digest, expected, found };
            return Err(AttemptError::WrongContent { host: response.host, source });
        }
        let progress = self.request.progress;
        let download = Download { digest, size, start, offset, end, progress };
        download.receive(self.store, response, &mut self.budget).await
    }

    /// Verifies a blob of which the store has all bytes, and reports whether it is right. It is
    /// removed otherwise.
    async fn complete(&self, size: u64) -> Result<bool, StoreError> {
        let (store, digest) = (self.store.clone(), self.request.digest.to_owned());
        let verifying = low_priority::run(move || {
            let found = store.partial_size(&digest);
            match store.receive(&digest, size, found, std::io::empty()) {
                Ok(()) => Ok(true),
                Err(StoreError::Oci(_)) => store.remove(&digest).map(|()| false),
                Err(error) => Err(error),
            }
        });
        // The task fails if the runtime ends.
        verifying.await.unwrap_or(Ok(false))
    }

    /// Fetches a manifest or an index (OCI distribution-spec 1.1, "Pulling manifests"). Its size is
    /// not known in advance, so it is read as a whole before it is stored.
    async fn fetch_manifest(&mut self) -> Result<(), AttemptError> {
        let types = [MANIFEST_TYPES, INDEX_TYPES].concat().join(", ");
        let accept = HeaderValue::from_str(&types).ok().map(|value| (ACCEPT, value));
        let headers = accept.into_iter().collect();
        let path = format!("/v2/{}/manifests/{}", self.repository, self.request.digest);
        let response = self.get(&path, &headers).await?;
        if response.status != StatusCode::OK {
            return Err(response.into_error().await.into());
        }
        let (host, limit) = (response.host.clone(), self.store.limits.json);
        let (is_encoded, is_delimited) = (response.is_encoded(), response.is_delimited());
        let bytes = match response.read_all(limit).await {
            Err(HttpError::TooLong { host, .. }) => {
                let source = OciError::Limit { what: "a manifest in bytes", limit };
                return Err(AttemptError::WrongContent { host, source });
            }
            other => other?,
        };
        self.budget.take_bytes(&host, bytes.len())?;
        let (store, digest) = (self.store.clone(), self.request.digest.to_owned());
        let size = bytes.len() as u64;
        let stored =
            tokio::task::spawn_blocking(move || store.receive(&digest, size, 0, bytes.as_slice()));
        match stored.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(StoreError::Oci(_))) if is_encoded => Err(HttpError::Encoded { host }.into()),
            Ok(Err(StoreError::Oci(_))) if !is_delimited => {
                Err(HttpError::Truncated { host, received: size, size: limit }.into())
            }
            Ok(Err(StoreError::Oci(source))) => Err(AttemptError::WrongContent { host, source }),
            Ok(Err(error)) => Err(AttemptError::Store(error)),
            Err(error) => Err(HttpError::Broken { host, source: error.into() }.into()),
        }
    }
}
