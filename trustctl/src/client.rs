//! Speaks to a node's API: HTTP/1.1 with JSON over a Unix socket, or over TLS with the owner's
//! certificate.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use crate::keys::Owner;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const TURN_WITHIN: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(500);

/// What an answer may take.
#[derive(Clone, Copy)]
struct Limits {
    within: Duration,
    largest: usize,
}

/// Sending an image takes as long as the network and the card do.
const OWN: Limits = Limits { within: Duration::from_secs(3600), largest: 256 << 20 };
const STRANGERS: Limits = Limits { within: Duration::from_secs(60), largest: 32 << 20 };

/// Where a node is: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tls(String),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tls(text.to_owned()))
            }
            _ => Err(format!("expected HOST:PORT or unix:PATH, found {text:?}")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tls(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A node that can be asked.
pub struct Client {
    address: Address,
    /// Folder with the owner's key and the list of known nodes.
    folder: PathBuf,
    /// SHA-256 of the certificate that the node showed last, hex.
    shown: std::sync::Mutex<Option<String>>,
    /// Shows no certificate, and has little patience: the node may be anybody's.
    stranger: bool,
}

/// The node answered, and its answer is no.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the node answers {} ({}): {}", self.status, self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

impl Client {
    pub fn new(address: Address, folder: &Path) -> Self {
        Self { address, folder: folder.to_owned(), shown: Default::default(), stranger: false }
    }

    /// To a node that is not one's own.
    pub fn stranger(address: Address, folder: &Path) -> Self {
        Self { stranger: true, ..Self::new(address, folder) }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// SHA-256 of the certificate that the node showed, hex; none before the first answer and on a
    /// Unix socket.
    pub fn certificate(&self) -> Option<String> {
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, Content::Bytes(Vec::new()), "application/json")
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(
            Method::POST,
            path,
            Content::Bytes(body.to_string().into_bytes()),
            "application/json",
        )
    }

    /// As often as the node says that others are being answered first (429), for a minute.
    ///
    /// # Errors
    /// Those of `ask`.
    pub fn in_turn<T>(&self, mut ask: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let until = std::time::Instant::now() + TURN_WITHIN;
        loop {
            let answer = ask(self);
            let later = |error: &anyhow::Error| {
                error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.status == 429)
            };
            match answer {
                Err(error) if later(&error) && std::time::Instant::now() < until => {
                    std::thread::sleep(TURN)
                }
                answer => return answer,
            }
        }
    }

    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(
            Method::PUT,
            path,
            Content::Bytes(body.to_string().into_bytes()),
            "application/json",
        )
    }

    /// Sends a file, however large.
    pub fn upload(&self, path: &str, file: &Path) -> Result<Value> {
        self.send(Method::PUT, path, Content::File(file), "application/octet-stream")
    }

    /// What is meant for people or for other programs: the status page, the metrics.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, bytes) =
            self.ask(Method::GET, path, Content::Bytes(Vec::new()), "text/plain")?;
        if status != StatusCode::OK {
            return Err(refusal(status, &bytes)?.into());
        }
        String::from_utf8(bytes.to_vec()).context("the node's answer is not a text")
    }

    fn send(&self, method: Method, path: &str, content: Content<'_>, kind: &str) -> Result<Value> {
        let (status, bytes) = self.ask(method, path, content, kind)?;
        if status != StatusCode::OK {
            return Err(refusal(status, &bytes)?.into());
        }
        json(status, &bytes)
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        content: Content<'_>,
        kind: &str,
    ) -> Result<(StatusCode, Bytes)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let limits = if self.stranger { STRANGERS } else { OWN };
        runtime.block_on(async {
            match &self.address {
                Address::Unix(socket) => {
                    let stream = tokio::net::UnixStream::connect(socket)
                        .await
                        .with_context(|| format!("cannot connect to {}", socket.display()))?;
                    exchange(stream, method, path, content, kind, limits).await
                }
                Address::Tls(address) => {
                    let stream = tokio::time::timeout(CONNECT_WITHIN, self.connect(address))
                        .await
                        .with_context(|| format!("{address} does not answer"))??;
                    exchange(stream, method, path, content, kind, limits).await
                }
            }
        })
    }

    async fn connect(
        &self,
        address: &str,
    ) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        // Who is no owner is a stranger to the node, and may still ask what it is.
        let owner = if !self.stranger && self.folder.join("owner.key").exists() {
            Some(Owner::load(&self.folder)?)
        } else {
            None
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let seen = Arc::new(std::sync::Mutex::new(None));
        let verifier = Arc::new(Remember { provider: provider.clone(), seen: seen.clone() });
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match owner {
            Some(owner) => config.with_client_auth_cert(vec![owner.certificate], owner.key)?,
            None => config.with_no_client_auth(),
        };
        let stream = tokio::net::TcpStream::connect(address).await.with_context(|| {
            format!("cannot connect to {address}; does the node run, and is the port forwarded?")
        })?;
        let name = ServerName::try_from("basalt-node")?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .context("the node refused the connection; is your certificate the one that its node.toml pins?")?;
        let fingerprint = seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
            .context("the node showed no certificate")?;
        known(&self.folder, address, &fingerprint)?;
        *self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(fingerprint);
        Ok(stream)
    }
}

/// Nodes are known by their certificate, as hosts are to ssh: remembered at first contact, compared
/// from then on.
fn known(folder: &Path, address: &str, fingerprint: &str) -> Result<()> {
    let path = folder.join("known_nodes");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        // Unreadable is not empty: then any node would pass as new.
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    match text.lines().filter_map(|l| l.split_once(' ')).find(|(a, _)| *a == address) {
        Some((_, expected)) if expected == fingerprint => Ok(()),
        Some((_, expected)) => bail!(
            "{address} shows another certificate than before: expected {expected}, found {fingerprint}. Either it was flashed anew \
             (then remove its line from {}), or somebody answers in its place",
            path.display()
        ),
        None => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            eprintln!(
                "first contact with {address}: its certificate is {fingerprint} (compare it with the console's line \"this node's certificate\")"
            );
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            std::io::Write::write_all(
                &mut file,
                format!(
                    "{}{address} {fingerprint}\n",
                    if text.is_empty() || text.ends_with('\n') { "" } else { "\n" }
                )
                .as_bytes(),
            )?;
            Ok(())
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    content: Content<'_>,
    kind: &str,
    limits: Limits,
) -> Result<(StatusCode, Bytes)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "basalt-node")
        .header("content-type", kind)
        .body(match content {
            Content::Bytes(bytes) => Either::Left(Full::new(Bytes::from(bytes))),
            Content::File(path) => Either::Right(stream_file(path).await?),
        })?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limits.largest)
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!(e))?;
        Ok::<_, anyhow::Error>((status, body.to_bytes()))
    };
    tokio::time::timeout(limits.within, answer)
        .await
        .context("the node does not answer")?
        .context("the node broke the connection off")
}

fn json(status: StatusCode, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .with_context(|| format!("the node's answer ({status}) is not JSON"))
}

fn refusal(status: StatusCode, bytes: &[u8]) -> Result<Refusal> {
    let value = json(status, bytes)?;
    let text = |key: &str| value["error"][key].as_str().unwrap_or("?").to_owned();
    Ok(Refusal { status: status.as_u16(), code: text("code"), message: text("message") })
}

/// What is sent along with a request.
enum Content<'a> {
    Bytes(Vec<u8>),
    File(&'a Path),
}

/// A file as a body that is read while it is sent.
async fn stream_file(path: &Path) -> Result<Channel<Bytes, std::io::Error>> {
    let mut file = tokio::fs::File::open(path)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    let (mut sender, body) = Channel::new(4);
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match file.read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) if sender.send_data(Bytes::copy_from_slice(&buffer[..n])).await.is_ok() => {}
                // The node has heard enough; its answer says why.
                Ok(_) => return,
                Err(error) => return sender.abort(error),
            }
        }
    });
    Ok(body)
}

/// Takes any certificate for now and remembers it; [`known`] judges it before anything is sent.
#[derive(Debug)]
struct Remember {
    provider: Arc<CryptoProvider>,
    seen: Arc<std::sync::Mutex<Option<String>>>,
}

impl ServerCertVerifier for Remember {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(measure::hex(&Sha256::digest(certificate)));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("127.0.0.1:7443".parse(), Ok(Address::Tls("127.0.0.1:7443".into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for bad in ["", "host", ":1", "host:x", "host:70000"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_that_shows_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        known(dir.path(), "a:1", "11").unwrap();
        known(dir.path(), "a:1", "11").unwrap();
        known(dir.path(), "b:1", "22").unwrap();
        assert!(
            known(dir.path(), "a:1", "22").unwrap_err().to_string().contains("another certificate")
        );
    }
}
