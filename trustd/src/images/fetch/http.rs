//! GET over HTTP/1.1, with and without TLS, bounded in time, in size and in the number of
//! redirects.
//!
//! Invariants:
//! - A redirect never leads from TLS to plain HTTP, and never inward (see [`Reach`]).
//! - Once a redirect has left the first host, no request of that route carries authorization of the
//!   first host, even if it returns there.
//! - A host that asked for a pause (429 or 503 with `Retry-After`) gets no request meanwhile.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, HOST, LOCATION, USER_AGENT};
use hyper::http::{HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use url::Url;

use super::budget::Budget;
use super::error::HttpError;
use super::headers::retry_after;
use super::host::{Host, Origin, Reach, origin_name};
use super::pauses::Pauses;
use super::response::{Connection, Response, redact, send_request};

/// Redirects of one request.
const MAX_REDIRECTS: u32 = 5;
/// Time for the first byte of a response, as a multiple of the stall timeout. A registry that is a
/// cache fetches a blob from elsewhere before it answers.
const FIRST_BYTE_STALLS: u32 = 4;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Registries and their firewalls reject requests without it.
const AGENT: &str = concat!("basalt-trustd/", env!("CARGO_PKG_VERSION"));

pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// HTTP client.
#[derive(Clone)]
pub(super) struct HttpClient {
    /// Hosts with settings of their own.
    hosts: Arc<BTreeMap<Origin, Host>>,
    default_tls: Arc<ClientConfig>,
    /// Time without data after which a request fails.
    pub(super) stall_timeout: Duration,
    pauses: Pauses,
}

/// Where a request goes, and how it got there.
pub(super) struct Route {
    pub(super) host: Host,
    /// Path and query.
    pub(super) path: String,
    /// Every request of this route went to the first host.
    pub(super) is_own: bool,
    redirects: u32,
    /// Reach of the host that named this one; `None` if node.toml or a module file names it.
    named_by: Option<Reach>,
    /// Reach of the host, once a request was sent.
    reach: Option<Reach>,
}

impl Route {
    /// Creates a route to a host that node.toml or a module file names.
    pub(super) fn new(host: Host, path: &str) -> Self {
        let path = path.to_owned();
        Self { host, path, is_own: true, redirects: 0, named_by: None, reach: None }
    }

    /// Returns the address, as the base of relative ones.
    fn url(&self) -> Result<Url, url::ParseError> {
        let scheme = if self.host.tls.is_some() { "https" } else { "http" };
        Url::parse(&format!("{scheme}://{}{}", self.host.name, self.path))
    }
}

impl HttpClient {
    pub(super) fn new(
        hosts: BTreeMap<Origin, Host>,
        default_tls: Arc<ClientConfig>,
        stall_timeout: Duration,
    ) -> Self {
        Self { hosts: Arc::new(hosts), default_tls, stall_timeout, pauses: Pauses::default() }
    }

    /// Returns a host that a module file or node.toml names, with its settings, or with TLS and the
    /// well-known authorities.
    pub(super) fn host(&self, name: &str) -> Host {
        let find = |tls: bool| self.hosts.get(&(origin_name(name, tls), tls)).cloned();
        find(true)
            .or_else(|| find(false))
            .unwrap_or_else(|| Host::new(name, Some(self.default_tls.clone())))
    }

    /// Sends a GET request and follows redirects. `authorization` is for the first host.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError`] if there is no response that is no redirect.
    pub(super) async fn get(
        &self,
        mut route: Route,
        authorization: Option<&HeaderValue>,
        budget: &mut Budget,
    ) -> Result<Response, HttpError> {
        loop {
            let headers: Headers = authorization
                .filter(|_| route.is_own)
                .map(|value| (AUTHORIZATION, value.clone()))
                .into_iter()
                .collect();
            let response = self.send(&mut route, &headers, budget).await?;
            match self.next_route(&route, &response)? {
                Some(next) => route = next,
                None => return Ok(response),
            }
        }
    }

    /// Returns the route that a response redirects to (RFC 9110, section 15.4), or `None` if it is
    /// no redirect.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError::Redirect`] if it leads where it must not, and after [`MAX_REDIRECTS`].
    pub(super) fn next_route(
        &self,
        route: &Route,
        response: &Response,
    ) -> Result<Option<Route>, HttpError> {
        if !matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = response.headers.get(LOCATION).map(HeaderValue::as_bytes);
        let location = std::str::from_utf8(location.unwrap_or_default()).unwrap_or_default();
        let mut next = self.resolve(route, location)?;
        next.redirects = route.redirects + 1;
        if next.redirects > MAX_REDIRECTS {
            return Err(HttpError::Redirect {
                host: route.host.name.clone(),
                to: redact(location),
                reason: "too many redirects",
            });
        }
        next.is_own = route.is_own && next.host.origin() == route.host.origin();
        Ok(Some(next))
    }

    /// Resolves an address that a host sent: an absolute one, or a relative one in any form
    /// (RFC 3986, section 4.2).
    ///
    /// # Errors
    ///
    /// Returns [`HttpError::Redirect`] if the address is invalid, has a user name, or leaves TLS.
    pub(super) fn resolve(&self, from: &Route, address: &str) -> Result<Route, HttpError> {
        let reject = |reason| HttpError::Redirect {
            host: from.host.name.clone(),
            to: redact(address),
            reason,
        };
        if address.is_empty() {
            return Err(reject("there is no address"));
        }
        let url = from.url().and_then(|base| base.join(address));
        let url = url.map_err(|_| reject("the address is invalid"))?;
        let tls = match (url.scheme(), from.host.tls.is_some()) {
            ("https", _) => true,
            ("http", false) => false,
            ("http", true) => return Err(reject("the connection would leave TLS")),
            _ => return Err(reject("the scheme is neither https nor http")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(reject("the address contains a user name"));
        }
        let host = url.host_str().ok_or_else(|| reject("the address has no host"))?;
        // The parser removes the default port.
        let name = url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let origin = (origin_name(&name, tls), tls);
        let known = self.hosts.get(&origin);
        // The owner decided about a host that node.toml lists.
        let named_by = if known.is_some() { None } else { from.reach };
        let host = known
            .cloned()
            .unwrap_or_else(|| Host { name: origin.0, tls: tls.then(|| self.default_tls.clone()) });
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Ok(Route { named_by, is_own: false, ..Route::new(host, &path) })
    }

    /// Sends one GET request and reads the head of the response.
    ///
    /// # Errors
    ///
    /// Returns [`HttpError`] if there is no response in time, and [`HttpError::Busy`] if the host
    /// asks, or has asked, for a pause.
    pub(super) async fn send(
        &self,
        route: &mut Route,
        headers: &Headers,
        budget: &mut Budget,
    ) -> Result<Response, HttpError> {
        let host = route.host.clone();
        self.pauses.check(&host, Instant::now())?;
        budget.take_request(&host.name)?;
        let broken = |source| HttpError::Broken { host: host.name.clone(), source };
        let stalled = |time: Duration| HttpError::Stalled {
            host: host.name.clone(),
            seconds: time.as_secs(),
        };
        let mut request = Request::get(&route.path)
            .header(HOST, &host.name)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT_ENCODING, "identity");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(error.into()))?;
        let (connection, reach) = timeout(self.stall_timeout, self.connect(&host, route.named_by))
            .await
            .map_err(|_| stalled(self.stall_timeout))??;
        route.reach = Some(reach);
        let wait = self.stall_timeout * FIRST_BYTE_STALLS;
        let response = timeout(wait, send_request(connection, request))
            .await
            .map_err(|_| stalled(wait))?
            .map_err(|error| broken(error.into()))?;
        let response = Response::new(response, &host.name, self.stall_timeout);
        let is_busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE]
            .contains(&response.status);
        match retry_after(&response.headers, SystemTime::now()) {
            Some(pause) if is_busy && !pause.is_zero() => {
                self.pauses.set(&host, response.status, pause, Instant::now());
                self.pauses.check(&host, Instant::now())?;
                Ok(response)
            }
            _ => Ok(response),
        }
    }

    /// Opens a connection. `named_by` is the reach of the host that sent the node here.
    async fn connect(
        &self,
        host: &Host,
        named_by: Option<Reach>,
    ) -> Result<(Box<dyn Connection>, Reach), HttpError> {
        fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
            host: &Host,
        ) -> impl FnOnce(E) -> HttpError {
            let host = host.name.clone();
            move |source| HttpError::Connect { host, source: source.into() }
        }
        let (name, port) = host.host_and_port();
        let port = port.ok_or_else(|| failed(host)("the port is not a number from 0 to 65535"))?;
        let found = resolve(name, port).await.map_err(failed(host))?;
        let addresses: Vec<SocketAddr> = found
            .into_iter()
            .filter(|address| named_by.is_none_or(|by| Reach::of(address.ip()) >= by))
            .take(MAX_ADDRESSES)
            .collect();
        if addresses.is_empty() {
            return Err(HttpError::Inward { host: host.name.clone() });
        }
        let (stream, reach) = self.connect_to_any(&addresses).await.map_err(failed(host))?;
        let Some(tls) = &host.tls else { return Ok((Box::new(stream), reach)) };
        let name = ServerName::try_from(name.to_owned()).map_err(failed(host))?;
        let stream = tokio_rustls::TlsConnector::from(tls.clone())
            .connect(name, stream)
            .await
            .map_err(failed(host))?;
        Ok((Box::new(stream), reach))
    }

    /// Connects to the first address that answers. Each one has the same part of the time.
    async fn connect_to_any(
        &self,
        addresses: &[SocketAddr],
    ) -> std::io::Result<(TcpStream, Reach)> {
        let mut problem = std::io::ErrorKind::NotFound.into();
        for address in addresses {
            let time = self.stall_timeout / addresses.len() as u32;
            match timeout(time, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok((stream, Reach::of(address.ip()))),
                Ok(Err(error)) => problem = error,
                Err(_) => problem = std::io::ErrorKind::TimedOut.into(),
            }
        }
        Err(problem)
    }
}

/// Returns the addresses of a host. The name `localhost` is this node, whatever a resolver says
/// (RFC 6761, section 6.3).
async fn resolve(name: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    if name.eq_ignore_ascii_case("localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    Ok(tokio::net::lookup_host((name, port)).await?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(listed: &[&str]) -> HttpClient {
        let tls = super::super::tls::well_known().unwrap();
        let hosts = listed.iter().map(|name| Host::new(name, None)).map(|h| (h.origin(), h));
        HttpClient::new(hosts.collect(), tls, Duration::from_secs(2))
    }

    fn route(client: &HttpClient, tls: bool) -> Route {
        let tls = tls.then(|| client.default_tls.clone());
        Route::new(Host::new("h.example:5000", tls), "/v2/a/blobs/x?y=1")
    }

    #[test]
    fn addresses_are_resolved_in_every_form() {
        let client = client(&[]);
        for (address, name, path) in [
            ("https://o.example/x?sig=a%2Fb", "o.example", "/x?sig=a%2Fb"),
            ("https://O.example:443", "o.example", "/"),
            ("https://o.example:5001/x#part", "o.example:5001", "/x"),
            ("https://[2001:db8::1]:5000/x", "[2001:db8::1]:5000", "/x"),
            ("//o.example/x", "o.example", "/x"),
            ("/downloads/x", "h.example:5000", "/downloads/x"),
            ("z", "h.example:5000", "/v2/a/blobs/z"),
            ("../z?q", "h.example:5000", "/v2/a/z?q"),
            ("/../../../etc", "h.example:5000", "/etc"),
            ("?q", "h.example:5000", "/v2/a/blobs/x?q"),
        ] {
            let found = client.resolve(&route(&client, true), address).unwrap();
            assert_eq!((found.host.name.as_str(), found.path.as_str()), (name, path), "{address}");
            assert!(found.host.tls.is_some(), "{address}");
        }
        let plain = client.resolve(&route(&client, false), "//o.example/x").unwrap();
        assert!(plain.host.tls.is_none());
    }

    #[test]
    fn addresses_that_must_not_be_followed_are_rejected() {
        let client = client(&[]);
        for (address, message) in [
            ("", "no address"),
            ("http://o.example/x", "would leave TLS"),
            ("file:///etc/passwd", "neither https nor http"),
            ("https://user:secret@o.example/", "user name"),
            ("https://user@o.example/", "user name"),
            ("https://", "invalid"),
            ("https://o.example:99999/", "invalid"),
        ] {
            let error = client.resolve(&route(&client, true), address).err().unwrap().to_string();
            assert!(error.contains(message) && !error.contains("secret"), "{address}: {error}");
        }
    }

    /// Asks a server on loopback as if a host with this reach had redirected there.
    async fn reached(listed: bool, named_by: Option<Reach>) -> Result<(), HttpError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            }
        });
        let names = [name.as_str()];
        let client = client(if listed { &names } else { &[] });
        let from = Route { reach: named_by, ..route(&client, false) };
        let mut next = client.resolve(&from, &format!("http://{name}/x")).unwrap();
        let mut budget = Budget::new(0, Duration::from_secs(2));
        client.send(&mut next, &Headers::new(), &mut budget).await.map(drop)
    }

    #[tokio::test]
    async fn a_host_in_the_internet_names_no_host_inside() {
        for reach in [Reach::Local, Reach::Public] {
            let error = reached(false, Some(reach)).await.unwrap_err();
            assert!(matches!(error, HttpError::Inward { .. }), "{error}");
            assert!(error.to_string().contains("[[registries]]"), "{error}");
        }
        reached(false, Some(Reach::Loopback)).await.unwrap();
        // The owner's file names it.
        reached(true, Some(Reach::Public)).await.unwrap();
    }
}
