//! A server that answers each request as a case says, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Time that no case reaches.
const NEVER: Duration = Duration::from_secs(3600);

/// Request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Request line and headers.
    pub(crate) head: String,
    /// Path and query.
    pub(crate) target: String,
}

impl Request {
    fn parse(head: String) -> Self {
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        Self { head, target }
    }

    /// Returns the value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn is_for_a_blob(&self) -> bool {
        self.target.contains("/blobs/")
    }
}

/// Step of an answer.
pub(crate) enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Sends these bytes until the client closes the connection, with a pause after each time.
    Repeat(Vec<u8>, Duration),
}

/// Answer to a request. The connection is closed after its last step.
pub(crate) struct Answer(pub(crate) Vec<Step>);

impl Answer {
    /// Returns an answer with a body and its length.
    pub(crate) fn new(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let length = body.len().to_string();
        let headers = [headers, &[("Content-Length", length.as_str())]].concat();
        Self::cut(status, &headers, body)
    }

    /// Returns an answer whose body may be shorter or longer than its headers say.
    pub(crate) fn cut(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        Self(vec![Step::Send(bytes)])
    }

    pub(crate) fn redirect(status: &str, location: &str) -> Self {
        Self::new(status, &[("Location", location)], b"")
    }

    pub(crate) fn unauthorized(challenges: &[&str]) -> Self {
        let headers: Vec<_> = challenges.iter().map(|text| ("WWW-Authenticate", *text)).collect();
        Self::new("401 Unauthorized", &headers, b"{}")
    }

    pub(crate) fn ok(body: &[u8]) -> Self {
        Self::new("200 OK", &[], body)
    }

    pub(crate) fn not_found() -> Self {
        Self::new("404 Not Found", &[], b"{\"errors\":[{\"message\":\"not here\"}]}")
    }

    pub(crate) fn silence() -> Self {
        Self(vec![Step::Wait(NEVER)])
    }

    /// Adds a step before or after the others.
    pub(crate) fn after(mut self, time: Duration) -> Self {
        self.0.insert(0, Step::Wait(time));
        self
    }

    pub(crate) fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }
}

type Script = dyn Fn(&Request) -> Answer + Send + Sync;

/// Server on a port of its own. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server without TLS.
    pub(crate) async fn start(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Socket::bind("127.0.0.1:0").await.serve(None, script)
    }

    /// Returns the number of requests.
    pub(crate) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the values of the authorization header in the order of the requests.
    pub(crate) fn authorizations(&self) -> Vec<Option<String>> {
        let header = |r: &Request| r.header("authorization").map(str::to_owned);
        self.requests().iter().map(header).collect()
    }

    /// Returns `HOST:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }
}

/// Socket that is open before its script is known, so that scripts can name each other's servers.
pub(crate) struct Socket(TcpListener);

impl Socket {
    pub(crate) async fn bind(address: &str) -> Self {
        Self(TcpListener::bind(address).await.unwrap())
    }

    pub(crate) fn host(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    pub(crate) fn serve(
        self,
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Server {
        let server = Server { address: self.0.local_addr().unwrap(), requests: Arc::default() };
        let requests = server.requests.clone();
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = self.0.accept().await {
                let (tls, requests, script) = (tls.clone(), requests.clone(), script.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, &requests, &*script).await,
                        Some(tls) => {
                            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
                            let stream = acceptor.accept(stream).await?;
                            answer(stream, &requests, &*script).await
                        }
                    }
                });
            }
        });
        server
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    requests: &Mutex<Vec<Request>>,
    script: &Script,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let request = Request::parse(String::from_utf8_lossy(&head).into_owned());
    requests.lock().unwrap().push(request.clone());
    for step in script(&request).0 {
        match step {
            Step::Send(bytes) => stream.write_all(&bytes).await?,
            Step::Wait(time) => {
                stream.flush().await?;
                tokio::time::sleep(time).await;
            }
            Step::Repeat(bytes, pause) => loop {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            },
        }
    }
    stream.flush().await?;
    stream.shutdown().await
}

/// Certificate for 127.0.0.1 in PEM, and the settings of a server that has it.
pub(crate) fn certificate(is_ca: bool) -> (String, Arc<rustls::ServerConfig>) {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    if is_ca {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (certificate.pem(), Arc::new(config))
}
