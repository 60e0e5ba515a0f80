//! Small files that are not images, such as logs and bundles of a chain. Their source is not
//! trusted, so every user of a file verifies its content.

use config::Repository;
use hyper::StatusCode;
use hyper::header::ACCEPT;
use hyper::http::HeaderValue;
use oci::MANIFEST_TYPES;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::budget::Budget;
use super::error::{FileError, HttpError};
use super::host::Host;
use super::http::{Headers, Route};
use super::registry::RegistryClient;

const MAX_MANIFEST_BYTES: u64 = 64 * 1024;

impl RegistryClient {
    /// Fetches a file over HTTP, with the certificates that are set for its host.
    ///
    /// # Errors
    ///
    /// Returns [`FileError::PlainHost`] if TLS is required and excluded by the host's settings, and
    /// [`FileError::Http`] if the host does not deliver the file within `limit` bytes.
    pub(crate) async fn get_file(
        &self,
        tls: bool,
        host: &str,
        path: &str,
        limit: u64,
    ) -> Result<Vec<u8>, FileError> {
        let host = if tls { self.http.host(host) } else { Host::new(host, None) };
        if tls && host.tls.is_none() {
            return Err(FileError::PlainHost { host: host.name });
        }
        let mut budget = Budget::new(limit, self.http.stall_timeout);
        let response = self.http.get(Route::new(host, path), None, &mut budget).await?;
        if response.status != StatusCode::OK {
            // The body is not read. A message of the host, which can differ in each response, would
            // be logged at each poll.
            let (host, status) = (response.host, response.status);
            return Err(HttpError::Status { host, status, message: None }.into());
        }
        Ok(response.read_all(limit).await?)
    }

    /// Fetches the first layer of an artifact by the artifact's tag. The registry decides which
    /// artifact that is.
    ///
    /// # Errors
    ///
    /// Returns [`FileError`] if the tag leads to no artifact, or if the registry does not deliver
    /// the layer within `limit` bytes.
    pub(crate) async fn get_artifact(
        &self,
        registry: &str,
        tag: &str,
        limit: u64,
    ) -> Result<Vec<u8>, FileError> {
        let Repository { host, name: repository } =
            config::parse_repository(registry).map_err(FileError::Repository)?;
        let expected = self.artifact_layer(&host, &repository, tag).await?;
        let path = format!("/v2/{repository}/blobs/{expected}");
        let bytes = self.get_all(&host, &repository, &path, Headers::new(), limit).await?;
        let found = format!("sha256:{}", measure::hex(&Sha256::digest(&bytes)));
        if found != expected {
            return Err(FileError::WrongDigest { host, expected, found });
        }
        Ok(bytes)
    }

    /// Returns the digest of an artifact's first layer.
    ///
    /// # Errors
    ///
    /// Returns [`FileError`] if the tag leads to no artifact with a layer.
    pub(super) async fn artifact_layer(
        &self,
        host: &str,
        repository: &str,
        tag: &str,
    ) -> Result<String, FileError> {
        let accept = HeaderValue::from_str(&MANIFEST_TYPES.join(", ")).ok();
        let headers = accept.map(|types| (ACCEPT, types)).into_iter().collect();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let manifest = self.get_all(host, repository, &path, headers, MAX_MANIFEST_BYTES).await?;
        let tag = || tag.to_owned();
        let manifest: Artifact = serde_json::from_slice(&manifest)
            .map_err(|source| FileError::Manifest { tag: tag(), source })?;
        let layer =
            manifest.layers.into_iter().next().ok_or_else(|| FileError::NoLayer { tag: tag() })?;
        config::check_digest(&layer.digest)
            .map_err(|source| FileError::Layer { tag: tag(), source })?;
        Ok(layer.digest)
    }

    async fn get_all(
        &self,
        host: &str,
        repository: &str,
        path: &str,
        headers: Headers,
        limit: u64,
    ) -> Result<Vec<u8>, FileError> {
        let mut budget = Budget::new(limit, self.http.stall_timeout);
        let response = self.get(host, repository, path, &headers, &mut budget).await?;
        if response.status != StatusCode::OK {
            return Err(FileError::from(response.into_error().await));
        }
        Ok(response.read_all(limit).await?)
    }
}

/// The used part of an artifact's manifest (OCI image-spec 1.1, "Guidelines for Artifact Usage").
#[derive(Deserialize)]
struct Artifact {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::util::error_chain::error_chain;

    const STALL_TIMEOUT: Duration = Duration::from_secs(1);

    /// Starts a server with one answer, which it repeats or whose last byte it repeats without end.
    /// Returns its address.
    async fn server(answer: &'static str, is_endless: bool, count: &'static AtomicUsize) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let address = host.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer.replace("HOST", &address);
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    while is_endless && stream.write_all(b" ").await.is_ok() {
                        tokio::time::sleep(STALL_TIMEOUT / 4).await;
                    }
                });
            }
        });
        host
    }

    #[tokio::test]
    async fn sources_of_files_that_misbehave_end() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let client = RegistryClient::new(&[], STALL_TIMEOUT).unwrap();
        for (answer, is_endless, requests, message) in [
            ("HTTP/1.1 302 Found\r\nLocation: /log\r\n\r\n", false, 6, "too many redirects"),
            ("HTTP/1.1 302 Found\r\nLocation: //HOST/log\r\n\r\n", false, 6, "too many"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n", true, 1, "stalled"),
            ("HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=x\r\n\r\n", true, 1, "401"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n", true, 1, "stalled"),
        ] {
            let host = server(answer, is_endless, &COUNT).await;
            COUNT.store(0, Ordering::SeqCst);
            let error = client.get_file(false, &host, "/log", 1 << 20).await.unwrap_err();
            let text = error_chain(&error);
            assert!(text.contains(message), "{answer}: {text}");
            assert_eq!(COUNT.load(Ordering::SeqCst), requests, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_source_of_files_that_asks_for_a_pause_is_left_alone_with_one_message() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let client = RegistryClient::new(&[], STALL_TIMEOUT).unwrap();
        let answer = "HTTP/1.1 429 Slow\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n";
        let host = server(answer, false, &COUNT).await;
        let mut problems = Vec::new();
        for _ in 0..3 {
            let error = client.get_file(false, &host, "/log", 1 << 20).await.unwrap_err();
            problems.push(error_chain(&error));
        }
        problems.dedup();
        assert!(problems.len() == 1 && problems[0].contains("a pause of 60 s"), "{problems:?}");
        assert_eq!(COUNT.load(Ordering::SeqCst), 1);
    }
}
