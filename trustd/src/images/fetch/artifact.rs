//! Small files that are not images, such as logs and bundles of a chain. Their source is not
//! trusted, so every user of a file verifies its content.

use axum::http::header::ACCEPT;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use oci::MANIFEST_TYPES;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::error::{FileError, HttpError};
use super::http::Host;
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
        let host =
            if tls { self.http.host(host) } else { Host { name: host.to_owned(), tls: None } };
        if tls && host.tls.is_none() {
            return Err(FileError::PlainHost { host: host.name });
        }
        let response = self.http.get(&host, path, &[]).await?;
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
        let (host, repository) =
            config::parse_repository(registry).map_err(FileError::Repository)?;
        let get = async |path: String, headers: Vec<(HeaderName, HeaderValue)>, limit| {
            let response = self.get(host, repository, &path, headers).await?;
            if response.status != StatusCode::OK {
                return Err(FileError::from(response.into_error().await));
            }
            Ok(response.read_all(limit).await?)
        };
        let accept = HeaderValue::from_str(&MANIFEST_TYPES.join(", ")).ok();
        let headers = accept.map(|types| (ACCEPT, types)).into_iter().collect();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let manifest = get(path, headers, MAX_MANIFEST_BYTES).await?;
        let tag = || tag.to_owned();
        let manifest: Artifact = serde_json::from_slice(&manifest)
            .map_err(|source| FileError::Manifest { tag: tag(), source })?;
        let layer =
            manifest.layers.into_iter().next().ok_or_else(|| FileError::NoLayer { tag: tag() })?;
        let expected = layer.digest;
        config::check_digest(&expected)
            .map_err(|source| FileError::Layer { tag: tag(), source })?;
        let path = format!("/v2/{repository}/blobs/{expected}");
        let bytes = get(path, Vec::new(), limit).await?;
        let found = format!("sha256:{}", measure::hex(&Sha256::digest(&bytes)));
        if found != expected {
            return Err(FileError::WrongDigest { host: host.to_owned(), expected, found });
        }
        Ok(bytes)
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
