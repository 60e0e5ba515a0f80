//! Client of OCI registries (OCI distribution-spec 1.1, "Pull"): it fetches blobs by digest only
//! and resumes interrupted transfers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::header::{ACCEPT, AUTHORIZATION, RANGE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use config::Registry;
use oci::{INDEX_TYPES, MANIFEST_TYPES, OciError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::auth::{TokenCache, answer_challenge};
use super::download::{Download, MIN_PROGRESS_BYTES};
use super::error::{AttemptError, HttpError, RegistryError};
use super::http::{Host, HttpClient};
use super::progress::ProgressCell;
use super::response::Response;
use crate::images::store::{Store, StoreError};
use crate::util::error_chain::error_chain;

/// Time after which a host that sends almost no data is given up.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts in a row at one host without [`MIN_PROGRESS_BYTES`] of progress.
const MAX_ATTEMPTS: usize = 3;

/// Client with the registries of node.toml, their mirrors and their certificates.
#[derive(Clone)]
pub struct RegistryClient {
    pub(super) http: HttpClient,
    registries: Arc<BTreeMap<String, Registry>>,
    tokens: TokenCache,
}

/// Blob to fetch.
pub(super) struct BlobRequest<'a> {
    /// `HOST[:PORT]/REPOSITORY`.
    pub(super) registry: &'a str,
    pub(super) digest: &'a str,
    pub(super) content: Content,
    pub(super) progress: &'a ProgressCell,
}

/// Kind of a blob, which decides how it is requested.
#[derive(Clone, Copy)]
pub(super) enum Content {
    /// Manifest or index of a size that is not known.
    Manifest,
    /// Config or layer, with its size in bytes.
    Blob { size: Option<u64> },
}

fn tls_config(ca: Option<&str>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots
                    .add(certificate.context("expected certificates in PEM")?)
                    .context("expected certificates of authorities")?;
            }
            anyhow::ensure!(!roots.is_empty(), "expected certificates in PEM, found none");
        }
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_root_certificates(roots)
    .with_no_client_auth();
    Ok(Arc::new(config))
}

impl RegistryClient {
    /// Creates a client with the settings of `registries`.
    ///
    /// # Errors
    ///
    /// Returns an error if a registry's certificates cannot be parsed.
    pub fn new(registries: &[Registry], stall_timeout: Duration) -> anyhow::Result<Self> {
        let default_tls = tls_config(None)?;
        let mut hosts = BTreeMap::new();
        for registry in registries {
            let tls = match (&registry.ca, registry.plain) {
                (_, true) => None,
                (Some(ca), _) => Some(
                    tls_config(Some(ca))
                        .with_context(|| format!("registries: ca of {}", registry.host))?,
                ),
                (None, _) => Some(default_tls.clone()),
            };
            for name in std::iter::once(&registry.host).chain(&registry.mirrors) {
                // A mirror that has an entry of its own is accessed with that entry's settings.
                let listed = *name != registry.host && registries.iter().any(|r| r.host == *name);
                if !listed {
                    hosts.insert(name.clone(), Host { name: name.clone(), tls: tls.clone() });
                }
            }
        }
        let registries = registries.iter().map(|r| (r.host.clone(), r.clone())).collect();
        Ok(Self {
            http: HttpClient::new(hosts, default_tls, stall_timeout),
            registries: Arc::new(registries),
            tokens: TokenCache::default(),
        })
    }

    /// Fetches a blob into the store, from the first of the registry's mirrors and the registry
    /// itself that delivers it.
    pub(super) async fn fetch(
        &self,
        store: &Arc<Store>,
        request: &BlobRequest<'_>,
    ) -> Result<(), RegistryError> {
        let digest = request.digest;
        let unreachable =
            |problems| RegistryError::Unreachable { digest: digest.to_owned(), problems };
        let (host, repository) = config::parse_repository(request.registry)
            .map_err(|error| unreachable(vec![error.to_string()]))?;
        let mirrors = self.registries.get(host).map(|r| r.mirrors.clone()).unwrap_or_default();
        let mut problems = Vec::new();
        let mut wrong_content = None;
        for name in mirrors.iter().map(String::as_str).chain([host]) {
            let (mut attempts, mut known) = (0, store.partial_size(digest));
            while attempts < MAX_ATTEMPTS {
                match self.attempt(store, name, repository, request).await {
                    Ok(()) => return Ok(()),
                    Err(AttemptError::Store(error)) => return Err(RegistryError::Store(error)),
                    Err(AttemptError::WrongContent { .. })
                        if known > 0
                            && attempts == 0
                            && matches!(request.content, Content::Blob { .. }) =>
                    {
                        // The part that the store had may be wrong. It is removed now.
                        known = 0;
                    }
                    Err(AttemptError::WrongContent { host, source }) => {
                        logging::warn!(
                            "registry {host} sent something else than {digest}: {}",
                            error_chain(&source)
                        );
                        wrong_content = Some(RegistryError::WrongContent { host, source });
                        break;
                    }
                    Err(AttemptError::Http(error)) => {
                        problems.push(error_chain(&error));
                        // A retry can succeed only after an error of the server itself.
                        let is_final = match error {
                            HttpError::Status { status, .. } => !status.is_server_error(),
                            _ => false,
                        };
                        if is_final {
                            break;
                        }
                    }
                }
                let partial = store.partial_size(digest);
                if partial >= known + MIN_PROGRESS_BYTES {
                    (attempts, known) = (0, partial);
                } else {
                    attempts += 1;
                }
            }
        }
        problems.dedup();
        Err(wrong_content.unwrap_or_else(|| unreachable(problems)))
    }

    async fn attempt(
        &self,
        store: &Arc<Store>,
        host: &str,
        repository: &str,
        request: &BlobRequest<'_>,
    ) -> Result<(), AttemptError> {
        let digest = request.digest;
        let size = match request.content {
            Content::Manifest => {
                return self.fetch_manifest(store, host, repository, digest).await;
            }
            Content::Blob { size } => size,
        };
        let start = store.partial_size(digest);
        let mut headers = Vec::new();
        if start > 0 {
            let range = HeaderValue::from_str(&format!("bytes={start}-"));
            headers.extend(range.ok().map(|value| (RANGE, value)));
        }
        let path = format!("/v2/{repository}/blobs/{digest}");
        let response = self.get(host, repository, &path, headers).await?;
        let start = match response.status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if start > 0 => start,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // The partial blob is longer than the registry's, so it is not the same blob.
                store.remove(digest).map_err(AttemptError::Store)?;
                return Err(response.into_error().await.into());
            }
            _ => return Err(response.into_error().await.into()),
        };
        let Some(size) = size else {
            let source =
                OciError::Absent { what: "the size of", digest: digest.to_owned(), size: None };
            return Err(AttemptError::WrongContent { host: response.host, source });
        };
        let download = Download { digest, size, start, progress: request.progress };
        download.receive(store, response).await
    }

    /// Fetches a manifest or an index. Its size is not known in advance, so it is read as a whole
    /// before it is stored.
    async fn fetch_manifest(
        &self,
        store: &Arc<Store>,
        host: &str,
        repository: &str,
        digest: &str,
    ) -> Result<(), AttemptError> {
        let types = [MANIFEST_TYPES, INDEX_TYPES].concat().join(", ");
        let accept = HeaderValue::from_str(&types).ok().map(|value| (ACCEPT, value));
        let path = format!("/v2/{repository}/manifests/{digest}");
        let response = self.get(host, repository, &path, accept.into_iter().collect()).await?;
        if response.status != StatusCode::OK {
            return Err(response.into_error().await.into());
        }
        let (host, limit) = (response.host.clone(), store.limits.json);
        let bytes = match response.read_all(limit).await {
            Err(HttpError::TooLong { host, .. }) => {
                let source = OciError::Limit { what: "a manifest in bytes", limit };
                return Err(AttemptError::WrongContent { host, source });
            }
            other => other?,
        };
        let (store, digest) = (store.clone(), digest.to_owned());
        let stored = tokio::task::spawn_blocking(move || {
            store.receive(&digest, bytes.len() as u64, 0, bytes.as_slice())
        });
        match stored.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(StoreError::Oci(source))) => Err(AttemptError::WrongContent { host, source }),
            Ok(Err(error)) => Err(AttemptError::Store(error)),
            Err(error) => Err(HttpError::Broken { host, source: error.into() }.into()),
        }
    }

    /// Sends a GET request, and repeats it with authorization if the host demands it.
    pub(super) async fn get(
        &self,
        name: &str,
        repository: &str,
        path: &str,
        mut headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Response, HttpError> {
        let host = self.http.host(name);
        let cached = self.tokens.get(name, repository);
        headers.extend(cached.map(|token| (AUTHORIZATION, token)));
        let response = self.http.get(&host, path, &headers).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let registry = self.registries.get(&host.name);
        let answer =
            answer_challenge(&self.http, &host, registry, repository, &response.headers).await?;
        let Some(token) = answer else { return Ok(response) };
        self.tokens.set(name, repository, token.clone());
        headers.retain(|(name, _)| *name != AUTHORIZATION);
        headers.push((AUTHORIZATION, token));
        self.http.get(&host, path, &headers).await
    }
}
