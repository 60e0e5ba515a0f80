//! Client of OCI registries (OCI distribution-spec 1.1, "Pull"): it fetches blobs by digest only
//! and resumes interrupted transfers.
//!
//! It needs GET alone. What a blob is follows from its digest and its size, so a registry that
//! rejects HEAD, names another type (`Content-Type`) or another digest (`Docker-Content-Digest`)
//! delivers all the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use config::{Registry, Repository};
use hyper::StatusCode;
use hyper::header::AUTHORIZATION;
use hyper::http::HeaderValue;
use tokio::time::Instant;

use super::auth::{self, Credentials};
use super::budget::Budget;
use super::error::{AttemptError, ChallengeError, HttpError, RegistryError};
use super::host::{Host, Origin};
use super::http::{Headers, HttpClient, Route};
use super::progress::ProgressCell;
use super::response::Response;
use super::tls;
use super::tokens::{TokenCache, TokenKey};
use crate::images::store::Store;
use crate::util::error_chain::error_chain;

/// Time after which a host that sends almost no data is given up.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest problem of one source that an error repeats.
const MAX_PROBLEM_CHARS: usize = 300;

/// Client with the registries of node.toml, their mirrors and their certificates.
#[derive(Clone)]
pub struct RegistryClient {
    pub(super) http: HttpClient,
    /// Mirrors by the canonical name of their registry.
    mirrors: Arc<BTreeMap<String, Vec<String>>>,
    credentials: Arc<BTreeMap<Origin, Credentials>>,
    tokens: TokenCache,
}

/// Blob, where it is, and who waits for it.
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

impl RegistryClient {
    /// Creates a client with the settings of `registries`.
    ///
    /// # Errors
    ///
    /// Returns an error if a registry's certificates cannot be parsed.
    pub fn new(registries: &[Registry], stall_timeout: Duration) -> anyhow::Result<Self> {
        let well_known = tls::well_known()?;
        let mut hosts = BTreeMap::new();
        let (mut mirrors, mut credentials) = (BTreeMap::new(), BTreeMap::new());
        // A host that has an entry of its own is accessed with that entry's settings, also as
        // another registry's mirror or token service.
        let mut others = Vec::new();
        for registry in registries {
            let tls = match (&registry.ca, registry.plain) {
                (_, true) => None,
                (Some(ca), _) => Some(
                    tls::listed(ca)
                        .with_context(|| format!("registries: ca of {}", registry.host))?,
                ),
                (None, _) => Some(well_known.clone()),
            };
            let host = Host::new(&registry.host, tls.clone());
            credentials.extend(Credentials::of(registry).map(|found| (host.origin(), found)));
            mirrors.insert(registry.canonical_host(), registry.mirrors.clone());
            let token_hosts = if tls.is_some() && credentials.contains_key(&host.origin()) {
                registry.allowed_token_hosts()
            } else {
                Vec::new()
            };
            let names = registry.mirrors.iter().chain(&token_hosts);
            others.extend(names.map(|name| Host::new(name, tls.clone())));
            hosts.insert(host.origin(), host);
        }
        for host in others {
            let (name, tls) = host.origin();
            if !hosts.contains_key(&(name.clone(), !tls)) {
                hosts.entry((name, tls)).or_insert(host);
            }
        }
        Ok(Self {
            http: HttpClient::new(hosts, well_known, stall_timeout),
            mirrors: Arc::new(mirrors),
            credentials: Arc::new(credentials),
            tokens: TokenCache::default(),
        })
    }

    /// Fetches a blob into the store, from the first of the registry's mirrors and the registry
    /// itself that delivers it.
    ///
    /// # Errors
    ///
    /// Returns [`RegistryError::Unreachable`] with the problem of each source,
    /// [`RegistryError::WrongContent`] if one of them sent something else, and
    /// [`RegistryError::Store`] if the store fails.
    pub(super) async fn fetch(
        &self,
        store: &Arc<Store>,
        request: &BlobRequest<'_>,
    ) -> Result<(), RegistryError> {
        let digest = request.digest;
        let unreachable =
            |problems| RegistryError::Unreachable { digest: digest.to_owned(), problems };
        let Repository { host, name } = config::parse_repository(request.registry)
            .map_err(|error| unreachable(vec![error.to_string()]))?;
        let mirrors = self.mirrors.get(&host).map(Vec::as_slice).unwrap_or_default();
        let sources: Vec<&str> =
            mirrors.iter().map(String::as_str).chain([host.as_str()]).collect();
        let mut problems = Vec::new();
        let mut wrong_content = None;
        for (n, source) in sources.iter().enumerate() {
            let is_last = n + 1 == sources.len();
            match self.fetch_from(store, source, &name, request, is_last).await {
                Ok(()) => return Ok(()),
                Err(AttemptError::Store(error)) => {
                    return Err(RegistryError::Store(error));
                }
                Err(AttemptError::WrongContent { host, source }) => {
                    logging::warn!(
                        "registry {host} sent something else than {digest}: {}",
                        error_chain(&source)
                    );
                    wrong_content = Some(RegistryError::WrongContent { host, source });
                }
                Err(AttemptError::Http(error)) => {
                    problems.push(error_chain(&error).chars().take(MAX_PROBLEM_CHARS).collect());
                }
            }
        }
        Err(wrong_content.unwrap_or_else(|| unreachable(problems)))
    }

    /// Sends a GET request to a registry, follows redirects, and answers the challenges of each
    /// host on the way.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError`] if there is no response, or only challenges that have no answer.
    pub(super) async fn get(
        &self,
        registry: &str,
        repository: &str,
        path: &str,
        headers: &Headers,
        budget: &mut Budget,
    ) -> Result<Response, HttpError> {
        let mut route = Route::new(self.http.host(registry), path);
        loop {
            let response = self.authorized(&mut route, repository, headers, budget).await?;
            match self.http.next_route(&route, &response)? {
                Some(next) => route = next,
                None => return Ok(response),
            }
        }
    }

    /// Sends one request, and repeats it with authorization if the host demands it.
    async fn authorized(
        &self,
        route: &mut Route,
        repository: &str,
        headers: &Headers,
        budget: &mut Budget,
    ) -> Result<Response, HttpError> {
        // A redirect can lead to another name of the repository.
        let repository = if route.is_own {
            repository.to_owned()
        } else {
            repository_of(&route.path).unwrap_or_default().to_owned()
        };
        let key = TokenKey {
            origin: route.host.origin(),
            is_own: route.is_own,
            repository: repository.clone(),
        };
        let with = |value: Option<HeaderValue>| -> Headers {
            headers.iter().cloned().chain(value.map(|value| (AUTHORIZATION, value))).collect()
        };
        let response =
            self.http.send(route, &with(self.tokens.get(&key, Instant::now())), budget).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // The cached value expired, or there was none.
        self.tokens.remove(&key);
        let credentials = self.credentials.get(&key.origin);
        let challenge = &response.headers;
        let authorization =
            auth::answer(&self.http, route, credentials, &repository, challenge, budget).await?;
        let value = authorization.value.clone();
        let response = self.http.send(route, &with(Some(value)), budget).await?;
        if response.status == StatusCode::UNAUTHORIZED {
            let source = if route.is_own {
                ChallengeError::Rejected
            } else {
                ChallengeError::RejectedAfterRedirect
            };
            return Err(HttpError::Unauthorized { host: route.host.name.clone(), source });
        }
        self.tokens.set(key, &authorization, Instant::now());
        Ok(response)
    }
}

/// Returns the repository in the path of a manifest or a blob (OCI distribution-spec 1.1,
/// "Endpoints": end-2 and end-3).
fn repository_of(path: &str) -> Option<&str> {
    let path = path.split_once('?').map_or(path, |(path, _)| path).strip_prefix("/v2/")?;
    let (start, _digest) = path.rsplit_once('/')?;
    start.strip_suffix("/blobs").or_else(|| start.strip_suffix("/manifests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_read_from_the_path() {
        for (path, expected) in [
            ("/v2/a/b/manifests/sha256:0", Some("a/b")),
            ("/v2/a/blobs/sha256:0?x=/v2/c/blobs/d", Some("a")),
            ("/v2/blobs/sha256:0", None),
            ("/bucket/sha256:0", None),
            ("/v2/", None),
        ] {
            assert_eq!(repository_of(path), expected, "{path}");
        }
    }
}
