//! GET over HTTP/1.1, with and without TLS, bounded in time, in size and in the number of
//! redirects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{AUTHORIZATION, HOST, LOCATION};
use hyper::http::{HeaderName, HeaderValue};
use hyper::{Request, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::error::HttpError;
use super::response::{Connection, Response, redact, send_request};

const MAX_REDIRECTS: usize = 5;

/// Host and the TLS settings that it is accessed with.
#[derive(Clone)]
pub(super) struct Host {
    /// `HOST[:PORT]`.
    pub(super) name: String,
    /// TLS settings; `None` for a host that is accessed without TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// HTTP client.
#[derive(Clone)]
pub(super) struct HttpClient {
    /// Hosts with settings of their own.
    hosts: Arc<BTreeMap<String, Host>>,
    default_tls: Arc<ClientConfig>,
    /// Time without data after which a request fails.
    stall_timeout: Duration,
}

impl HttpClient {
    pub(super) fn new(
        hosts: BTreeMap<String, Host>,
        default_tls: Arc<ClientConfig>,
        stall_timeout: Duration,
    ) -> Self {
        Self { hosts: Arc::new(hosts), default_tls, stall_timeout }
    }

    /// Returns a host with its settings, or with TLS and the well-known authorities.
    pub(super) fn host(&self, name: &str) -> Host {
        self.hosts
            .get(name)
            .cloned()
            .unwrap_or_else(|| Host { name: name.to_owned(), tls: Some(self.default_tls.clone()) })
    }

    /// Sends a GET request and follows redirects. Only the first host gets the authorization
    /// header.
    pub(super) async fn get(
        &self,
        host: &Host,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, HttpError> {
        let (mut target, mut path) = (host.clone(), path.to_owned());
        for _ in 0..=MAX_REDIRECTS {
            let same_host = target.name == host.name;
            let sent = headers.iter().filter(|(name, _)| same_host || *name != AUTHORIZATION);
            let response = self.get_once(&target, &path, sent).await?;
            if !response.status.is_redirection() {
                return Ok(response);
            }
            let location = response.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            (target, path) = self.redirect(&target, location.unwrap_or_default())?;
        }
        Err(HttpError::Redirect {
            host: host.name.clone(),
            to: target.name,
            reason: "too many redirects",
        })
    }

    /// Returns the host and path that a host redirects to.
    fn redirect(&self, from: &Host, location: &str) -> Result<(Host, String), HttpError> {
        let reject =
            |reason| HttpError::Redirect { host: from.name.clone(), to: redact(location), reason };
        let uri: Uri = location.parse().map_err(|_| reject("the address is invalid"))?;
        let target = match (uri.scheme_str(), uri.authority()) {
            (None, None) => from.clone(),
            (Some("https"), Some(authority)) => {
                Host { tls: Some(self.default_tls.clone()), ..self.host(authority.as_str()) }
            }
            (Some("http"), Some(authority)) if from.tls.is_none() => {
                Host { name: authority.to_string(), tls: None }
            }
            (Some("http"), _) => return Err(reject("the connection would leave TLS")),
            _ => return Err(reject("the scheme is neither https nor http")),
        };
        if target.name.contains('@') {
            return Err(reject("the address contains a user name"));
        }
        let path = uri.path_and_query().map(ToString::to_string).filter(|p| p.starts_with('/'));
        let path = path.ok_or_else(|| reject("the address has no path"))?;
        // A host with settings of its own is accessed with them.
        let target = match self.hosts.get(&target.name) {
            Some(known) if known.tls.is_some() == target.tls.is_some() => known.clone(),
            _ => target,
        };
        Ok((target, path))
    }

    async fn get_once(
        &self,
        host: &Host,
        path: &str,
        headers: impl Iterator<Item = &(HeaderName, HeaderValue)>,
    ) -> Result<Response, HttpError> {
        let name = || host.name.clone();
        let mut request = Request::get(path).header(HOST, &host.name);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| HttpError::Broken { host: name(), source: error.into() })?;
        let exchange = async {
            let connection = self.connect(host).await?;
            send_request(connection, request)
                .await
                .map_err(|error| HttpError::Broken { host: name(), source: error.into() })
        };
        let response =
            tokio::time::timeout(self.stall_timeout, exchange).await.map_err(|_| {
                HttpError::Stalled { host: name(), seconds: self.stall_timeout.as_secs() }
            })??;
        Ok(Response::new(response, &host.name, self.stall_timeout))
    }

    async fn connect(&self, host: &Host) -> Result<Box<dyn Connection>, HttpError> {
        fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
            host: &Host,
        ) -> impl FnOnce(E) -> HttpError {
            let host = host.name.clone();
            move |source| HttpError::Connect { host, source: source.into() }
        }
        let default_port = if host.tls.is_some() { "443" } else { "80" };
        let (name, port) = host.name.rsplit_once(':').unwrap_or((&host.name, default_port));
        let port: u16 =
            port.parse().map_err(|_| failed(host)("the port is not a number from 0 to 65535"))?;
        let stream = TcpStream::connect((name, port)).await.map_err(failed(host))?;
        let Some(tls) = &host.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(name.to_owned()).map_err(failed(host))?;
        let stream = tokio_rustls::TlsConnector::from(tls.clone())
            .connect(name, stream)
            .await
            .map_err(failed(host))?;
        Ok(Box::new(stream))
    }
}
