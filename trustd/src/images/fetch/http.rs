//! GET over HTTP/1.1, with and without TLS: bounded in time, in size and in the number of
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

use super::response::{Answer, HttpError, Stream, exchange, shown};

const MOST_REDIRECTS: usize = 5;

/// How a host is spoken to.
#[derive(Clone)]
pub(super) struct Host {
    pub name: String,
    /// None: without TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

#[derive(Clone)]
pub(super) struct Http {
    /// Hosts with settings of their own.
    hosts: Arc<BTreeMap<String, Host>>,
    usual: Arc<ClientConfig>,
    /// The longest silence.
    patience: Duration,
}

impl Http {
    pub(super) fn new(
        hosts: BTreeMap<String, Host>,
        usual: Arc<ClientConfig>,
        patience: Duration,
    ) -> Self {
        Self { hosts: Arc::new(hosts), usual, patience }
    }

    pub(super) fn host(&self, name: &str) -> Host {
        self.hosts
            .get(name)
            .cloned()
            .unwrap_or_else(|| Host { name: name.to_owned(), tls: Some(self.usual.clone()) })
    }

    /// Asks, and follows redirects. What authorises goes to the first host only.
    pub(super) async fn get(
        &self,
        host: &Host,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Answer, HttpError> {
        let (mut at, mut path) = (host.clone(), path.to_owned());
        for _ in 0..=MOST_REDIRECTS {
            let same = at.name == host.name;
            let sent = headers.iter().filter(|(name, _)| same || *name != AUTHORIZATION);
            let answer = self.once(&at, &path, sent).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let to = answer
                .headers
                .get(LOCATION)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            let refuse = |why| HttpError::Redirect { host: at.name.clone(), to: shown(&to), why };
            let uri: Uri = to.parse().map_err(|_| refuse("it is no address"))?;
            let next = match (uri.scheme_str(), uri.authority()) {
                (None, None) => at.clone(),
                (Some("https"), Some(authority)) => {
                    Host { tls: Some(self.usual.clone()), ..self.host(authority.as_str()) }
                }
                (Some("http"), Some(authority)) if at.tls.is_none() => {
                    Host { name: authority.to_string(), tls: None }
                }
                (Some("http"), _) => return Err(refuse("it leaves TLS")),
                _ => return Err(refuse("it is neither https nor http")),
            };
            if next.name.contains('@') {
                return Err(refuse("it carries a user"));
            }
            let target =
                uri.path_and_query().map(ToString::to_string).filter(|p| p.starts_with('/'));
            path = target.ok_or_else(|| refuse("it has no path"))?;
            // A host with settings of its own keeps them.
            at = match self.hosts.get(&next.name) {
                Some(known) if known.tls.is_some() == next.tls.is_some() => known.clone(),
                _ => next,
            };
        }
        Err(HttpError::Redirect {
            host: host.name.clone(),
            to: at.name,
            why: "there were too many before it",
        })
    }

    async fn once(
        &self,
        host: &Host,
        path: &str,
        headers: impl Iterator<Item = &(HeaderName, HeaderValue)>,
    ) -> Result<Answer, HttpError> {
        let broken = |problem: String| HttpError::Broken { host: host.name.clone(), problem };
        let mut request = Request::get(path).header(HOST, &host.name);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| broken(e.to_string()))?;
        let stalled =
            || HttpError::Stalled { host: host.name.clone(), seconds: self.patience.as_secs() };
        let asked = async {
            let stream = self.connect(host).await?;
            exchange(stream, request).await.map_err(|e| broken(e.to_string()))
        };
        let response =
            tokio::time::timeout(self.patience, asked).await.map_err(|_| stalled())??;
        Ok(Answer::new(response, &host.name, self.patience))
    }

    async fn connect(&self, host: &Host) -> Result<Box<dyn Stream>, HttpError> {
        let failed = |problem: String| HttpError::Connect { host: host.name.clone(), problem };
        let (name, port) = host
            .name
            .rsplit_once(':')
            .unwrap_or((&host.name, if host.tls.is_some() { "443" } else { "80" }));
        let port: u16 = port.parse().map_err(|_| failed("its port is none".into()))?;
        let stream = TcpStream::connect((name, port)).await.map_err(|e| failed(e.to_string()))?;
        let Some(tls) = &host.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(name.to_owned()).map_err(|e| failed(e.to_string()))?;
        let stream = tokio_rustls::TlsConnector::from(tls.clone())
            .connect(name, stream)
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok(Box::new(stream))
    }
}
