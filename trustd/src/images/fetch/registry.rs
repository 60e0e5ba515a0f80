//! Pulling from a registry (OCI distribution-spec 1.1, "Pull"): by digest only, resumed where it
//! broke off.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::header::{ACCEPT, AUTHORIZATION, RANGE, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use config::Registry;
use oci::{INDEX_TYPES, MANIFEST_TYPES, OciError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Watched;
use super::http::{Host, Http};
use super::response::{Answer, HttpError, shown};
use crate::images::store::{Store, StoreError};
use crate::util::low_priority;

/// The longest silence of a registry.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// A blob is asked for so often in a row without much being won.
const ATTEMPTS: usize = 3;
const MUCH: u64 = 64 * 1024;
const LARGEST_TOKEN: u64 = 64 * 1024;
const LARGEST_COMPLAINT: u64 = 4096;
const LARGEST_MANIFEST: u64 = 64 * 1024;
/// Chunks between the network and the disk.
const AHEAD: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("no registry gives {digest}: {}", .problems.join("; "))]
    Unreachable { digest: String, problems: Vec<String> },
    #[error("{host} sends something else than was asked for: {source}")]
    Lies { host: String, source: OciError },
    #[error(transparent)]
    Store(StoreError),
}

#[derive(Debug, thiserror::Error)]
enum Attempt {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{host} answers {status}{text}")]
    Status { host: String, status: StatusCode, text: String },
    #[error("{host} sends something else than was asked for: {source}")]
    Lies { host: String, source: OciError },
    #[error("{0}")]
    Store(StoreError),
}

/// Knows the registries that node.toml names, and their mirrors.
#[derive(Clone)]
pub struct Client {
    http: Http,
    registries: Arc<BTreeMap<String, Registry>>,
    /// What a host gave for a repository, to be shown with the next question.
    tokens: Arc<Mutex<BTreeMap<(String, String), HeaderValue>>>,
}

fn tls(ca: Option<&str>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots
                    .add(certificate.context("not a certificate in PEM")?)
                    .context("not a certificate of an authority")?;
            }
            anyhow::ensure!(!roots.is_empty(), "no certificate in it");
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

impl Client {
    pub fn new(registries: &[Registry], patience: Duration) -> anyhow::Result<Self> {
        let usual = tls(None)?;
        let mut hosts = BTreeMap::new();
        for registry in registries {
            let own = match (&registry.ca, registry.plain) {
                (_, true) => None,
                (Some(ca), _) => Some(
                    tls(Some(ca))
                        .with_context(|| format!("registries: ca of {}", registry.host))?,
                ),
                (None, _) => Some(usual.clone()),
            };
            for name in std::iter::once(&registry.host).chain(&registry.mirrors) {
                // A host with an entry of its own goes by that, also where it is another's mirror.
                let listed = *name != registry.host && registries.iter().any(|r| r.host == *name);
                if !listed {
                    hosts.insert(name.clone(), Host { name: name.clone(), tls: own.clone() });
                }
            }
        }
        let registries = registries.iter().map(|r| (r.host.clone(), r.clone())).collect();
        Ok(Self {
            http: Http::new(hosts, usual, patience),
            registries: Arc::new(registries),
            tokens: Arc::default(),
        })
    }

    /// A small file that is no image, with the certificates that are set for its host.
    pub(crate) async fn file(
        &self,
        tls: bool,
        host: &str,
        path: &str,
        limit: u64,
    ) -> Result<Vec<u8>, String> {
        let host =
            if tls { self.http.host(host) } else { Host { name: host.to_owned(), tls: None } };
        if tls && host.tls.is_none() {
            return Err(format!(
                "{} is set to plain in [[registries]], and its source says https",
                host.name
            ));
        }
        let answer = self.http.get(&host, path, &[]).await.map_err(|e| e.to_string())?;
        if answer.status != StatusCode::OK {
            return Err(format!("{} answers {}", answer.host, answer.status));
        }
        answer.whole(limit).await.map_err(|e| e.to_string())
    }

    /// A small file that is an artifact's first layer, by its tag: nobody vouches for which one
    /// that is.
    pub(crate) async fn artifact(
        &self,
        registry: &str,
        tag: &str,
        limit: u64,
    ) -> Result<Vec<u8>, String> {
        let (host, repository) = config::repository(registry)?;
        let accept =
            HeaderValue::from_str(&MANIFEST_TYPES.join(", ")).map_err(|e| e.to_string())?;
        let get = async |path: String, headers, limit| {
            let answer =
                self.ask(host, repository, &path, headers).await.map_err(|e| e.to_string())?;
            if answer.status != StatusCode::OK {
                return Err(complaint(answer).await.to_string());
            }
            answer.whole(limit).await.map_err(|e| e.to_string())
        };
        let manifest = get(
            format!("/v2/{repository}/manifests/{tag}"),
            vec![(ACCEPT, accept)],
            LARGEST_MANIFEST,
        )
        .await?;
        let manifest: Artifact = serde_json::from_slice(&manifest)
            .map_err(|e| format!("{tag} is not an artifact's manifest: {e}"))?;
        let digest = manifest
            .layers
            .into_iter()
            .next()
            .ok_or_else(|| format!("the artifact {tag} has no layer"))?
            .digest;
        config::valid_digest(&digest)?;
        let bytes = get(format!("/v2/{repository}/blobs/{digest}"), Vec::new(), limit).await?;
        let found = format!("sha256:{}", measure::hex(&Sha256::digest(&bytes)));
        if found == digest { Ok(bytes) } else { Err(format!("{host} sends {found} for {digest}")) }
    }

    /// Fetches one blob or manifest into the store: from the first of mirrors and registry that
    /// gives it.
    pub(super) async fn fetch(
        &self,
        store: &Arc<Store>,
        registry: &str,
        digest: &str,
        size: Option<u64>,
        manifest: bool,
        watched: &Watched,
    ) -> Result<(), RegistryError> {
        let unreachable =
            |problems| RegistryError::Unreachable { digest: digest.to_owned(), problems };
        let (host, repository) = config::repository(registry).map_err(|e| unreachable(vec![e]))?;
        let mirrors = self.registries.get(host).map(|r| r.mirrors.clone()).unwrap_or_default();
        let mut problems = Vec::new();
        let mut lie = None;
        for name in mirrors.iter().map(String::as_str).chain([host]) {
            let (mut attempts, mut before) = (0, store.partial(digest));
            while attempts < ATTEMPTS {
                match self.attempt(store, name, repository, digest, size, manifest, watched).await {
                    Ok(()) => return Ok(()),
                    Err(Attempt::Store(error)) => return Err(RegistryError::Store(error)),
                    Err(Attempt::Lies { .. }) if before > 0 && !manifest && attempts == 0 => {
                        // What was here from before may be what is wrong; it is gone now.
                        before = 0;
                    }
                    Err(Attempt::Lies { host, source }) => {
                        // Another source may be honest.
                        println!("registry {host}: {source}");
                        lie = Some(RegistryError::Lies { host, source });
                        break;
                    }
                    Err(error) => {
                        problems.push(error.to_string());
                        if matches!(error, Attempt::Status { status, .. } if !status.is_server_error())
                        {
                            break;
                        }
                    }
                }
                // As long as it gets on, it goes on; drop by drop is not getting on.
                let now = store.partial(digest);
                if now >= before + MUCH {
                    (attempts, before) = (0, now);
                } else {
                    attempts += 1;
                }
            }
        }
        problems.dedup();
        Err(lie.unwrap_or_else(|| unreachable(problems)))
    }

    #[expect(clippy::too_many_arguments, reason = "what, where from and where to")]
    async fn attempt(
        &self,
        store: &Arc<Store>,
        name: &str,
        repository: &str,
        digest: &str,
        size: Option<u64>,
        manifest: bool,
        watched: &Watched,
    ) -> Result<(), Attempt> {
        let start = if manifest { 0 } else { store.partial(digest) };
        let path =
            format!("/v2/{repository}/{}/{digest}", if manifest { "manifests" } else { "blobs" });
        let mut headers = Vec::new();
        if manifest {
            let kinds = [MANIFEST_TYPES, INDEX_TYPES].concat().join(", ");
            headers.extend(HeaderValue::from_str(&kinds).ok().map(|v| (ACCEPT, v)));
        }
        if start > 0 {
            headers
                .extend(HeaderValue::from_str(&format!("bytes={start}-")).ok().map(|v| (RANGE, v)));
        }
        let answer = self.ask(name, repository, &path, headers).await?;
        let start = match answer.status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if start > 0 => start,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // What is here is longer than what is there: not of the same blob.
                store.remove(digest).map_err(Attempt::Store)?;
                return Err(complaint(answer).await);
            }
            _ => return Err(complaint(answer).await),
        };
        if manifest {
            // Small, and of a length that nobody vouches for: read as a whole, then put away.
            let (host, limit) = (answer.host.clone(), store.limits.json);
            let bytes = match answer.whole(limit).await {
                Err(HttpError::TooLong { host, .. }) => {
                    return Err(Attempt::Lies {
                        host,
                        source: OciError::Limit { what: "a manifest in bytes", limit },
                    });
                }
                other => other?,
            };
            let stored = {
                let (store, digest) = (store.clone(), digest.to_owned());
                tokio::task::spawn_blocking(move || {
                    store.receive(&digest, bytes.len() as u64, 0, bytes.as_slice())
                })
            };
            return match stored.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(StoreError::Oci(source))) => Err(Attempt::Lies { host, source }),
                Ok(Err(error)) => Err(Attempt::Store(error)),
                Err(error) => {
                    Err(Attempt::Http(HttpError::Broken { host, problem: error.to_string() }))
                }
            };
        }
        let Some(size) = size else {
            let source =
                OciError::Absent { what: "the size of", digest: digest.to_owned(), size: None };
            return Err(Attempt::Lies { host: answer.host.clone(), source });
        };
        receive(store, answer, digest, size, start, watched).await
    }

    /// Asks, and asks once more with a token if that is wanted.
    async fn ask(
        &self,
        name: &str,
        repository: &str,
        path: &str,
        mut headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, Attempt> {
        let host = self.http.host(name);
        let key = (name.to_owned(), repository.to_owned());
        let kept = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        headers.extend(kept.map(|token| (AUTHORIZATION, token)));
        let answer = self.http.get(&host, path, &headers).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let wanted = answer
            .headers
            .get(WWW_AUTHENTICATE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let Some(token) = self.token(&host, repository, &wanted).await? else { return Ok(answer) };
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
        headers.retain(|(name, _)| *name != AUTHORIZATION);
        headers.push((AUTHORIZATION, token));
        Ok(self.http.get(&host, path, &headers).await?)
    }

    /// What the challenge asks for (RFC 7617 Basic; RFC 6750 Bearer with the registries' token
    /// service).
    async fn token(
        &self,
        host: &Host,
        repository: &str,
        challenge: &str,
    ) -> Result<Option<HeaderValue>, Attempt> {
        let own = self.registries.get(&host.name);
        let basic = own.and_then(|r| {
            Some(format!(
                "Basic {}",
                BASE64_STANDARD.encode(format!("{}:{}", r.user.as_ref()?, r.password.as_ref()?))
            ))
        });
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let Some((scheme, rest)) = challenge.split_once(' ') else { return Ok(None) };
        if scheme.eq_ignore_ascii_case("basic") {
            return Ok(basic.as_deref().and_then(secret));
        }
        let parameters = parameters(rest);
        let (Some(realm), true) = (parameters.get("realm"), scheme.eq_ignore_ascii_case("bearer"))
        else {
            return Ok(None);
        };
        let refuse = |why| {
            Attempt::Http(HttpError::Redirect { host: host.name.clone(), to: shown(realm), why })
        };
        let uri: axum::http::Uri = realm.parse().map_err(|_| refuse("it is no address"))?;
        let authority = uri.authority().ok_or_else(|| refuse("it has no host"))?.as_str();
        let service = match (uri.scheme_str(), host.tls.is_some()) {
            (Some("https"), _) => Host {
                tls: self.http.host(authority).tls.or_else(|| host.tls.clone()),
                ..self.http.host(authority)
            },
            (Some("http"), false) => Host { name: authority.to_owned(), tls: None },
            _ => return Err(refuse("a token must come over TLS")),
        };
        let mut path =
            format!("{}?scope={}", uri.path(), escape(&format!("repository:{repository}:pull")));
        if let Some(name) = parameters.get("service") {
            path += &format!("&service={}", escape(name));
        }
        let headers: Vec<_> =
            basic.as_deref().and_then(secret).map(|v| (AUTHORIZATION, v)).into_iter().collect();
        let answer = self.http.get(&service, &path, &headers).await?;
        if answer.status != StatusCode::OK {
            return Err(complaint(answer).await);
        }
        let broken = HttpError::Broken {
            host: service.name.clone(),
            problem: "its token is not usable".into(),
        };
        let found: Token =
            serde_json::from_slice(&answer.whole(LARGEST_TOKEN).await?).map_err(|_| broken)?;
        Ok(found.token.or(found.access_token).and_then(|token| secret(&format!("Bearer {token}"))))
    }
}

/// Of an artifact's manifest what is used (OCI image-spec 1.1, "Guidelines for Artifact Usage").
#[derive(Deserialize)]
struct Artifact {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// An error as OCI Distribution 1.1 has it.
#[derive(Deserialize)]
struct Complaint {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    message: Option<String>,
}

/// What a host has against the question, shortened to what fits a line.
async fn complaint(answer: Answer) -> Attempt {
    let (host, status) = (answer.host.clone(), answer.status);
    let body = answer.whole(LARGEST_COMPLAINT).await.unwrap_or_default();
    let said = serde_json::from_slice::<Complaint>(&body)
        .ok()
        .and_then(|complaint| complaint.errors.into_iter().next()?.message);
    let text = said
        .map(|s| {
            format!(": {}", s.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
        })
        .unwrap_or_default();
    Attempt::Status { host, status, text }
}

/// From the network to the disk, with a few chunks in between.
async fn receive(
    store: &Arc<Store>,
    mut answer: Answer,
    digest: &str,
    size: u64,
    start: u64,
    watched: &Watched,
) -> Result<(), Attempt> {
    let (sender, chunks) = Chunks::pipe();
    let writing = {
        let (store, digest) = (store.clone(), digest.to_owned());
        low_priority::run(move || store.receive(&digest, size, start, chunks))
    };
    let host = answer.host.clone();
    let mut have = start;
    let (mut since, mut then) = (tokio::time::Instant::now(), start);
    let ended = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if chunk.is_empty() => {}
            Ok(Some(chunk)) => {
                have += chunk.len() as u64;
                if since.elapsed() > answer.patience {
                    if have < then + MUCH {
                        // Drop by drop it would hold the module up for ever.
                        let _ = sender
                            .send(Err(std::io::Error::other("the connection is too slow")))
                            .await;
                        break Err(HttpError::Stalled {
                            host: host.clone(),
                            seconds: answer.patience.as_secs(),
                        });
                    }
                    (since, then) = (tokio::time::Instant::now(), have);
                }
                watched.have(digest, have.min(size));
                if sender.send(Ok(chunk)).await.is_err() {
                    // The disk's side has had enough: it says why.
                    break Ok(());
                }
            }
            Ok(None) => {
                let _ = sender.send(Ok(Bytes::new())).await;
                break Ok(());
            }
            Err(error) => {
                let _ = sender.send(Err(std::io::Error::other("the connection broke"))).await;
                break Err(error);
            }
        }
    };
    drop(sender);
    let written = writing.await.map_err(|e| {
        Attempt::Http(HttpError::Broken { host: host.clone(), problem: e.to_string() })
    })?;
    match (written, ended) {
        (Ok(()), _) => Ok(()),
        (Err(_), Err(error)) => Err(error.into()),
        (Err(StoreError::Oci(source)), Ok(())) => Err(Attempt::Lies { host, source }),
        (Err(error), Ok(())) => Err(Attempt::Store(error)),
    }
}

/// What an asynchronous task sends, for one that may block. An empty chunk is its end: one that was
/// given up ends without.
pub struct Chunks {
    receiver: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>,
    chunk: Bytes,
    ended: bool,
}

impl Chunks {
    pub fn pipe() -> (tokio::sync::mpsc::Sender<std::io::Result<Bytes>>, Self) {
        let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
        (sender, Self { receiver, chunk: Bytes::new(), ended: false })
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            }
            self.ended = self.chunk.is_empty();
        }
        let n = buffer.len().min(self.chunk.len());
        buffer[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}

/// `key="value"` pairs of a challenge (RFC 9110, section 11.2), as far as registries use them.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(key.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    found
}

/// Percent-encoding of everything that is not unreserved (RFC 3986, section 2.3).
fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let p = parameters(
            r#"realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(p["realm"], "https://auth.example/token");
        assert_eq!(p["scope"], "repository:a/b:pull,push");
        assert_eq!(parameters("realm=x, a=b")["a"], "b");
        assert!(parameters("").is_empty());
        assert_eq!(parameters("realm=\"never ends")["realm"], "never ends");
    }

    #[test]
    fn what_goes_into_an_address_is_escaped() {
        assert_eq!(escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
        assert_eq!(escape("a&b=c d"), "a%26b%3Dc%20d");
    }
}
