//! Fetching of images from a real registry, and through a proxy that alters its answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basalt_trustd::admission::log_sources::LogPoller;
use basalt_trustd::images::fetch::{
    FetchError, Fetcher, ProgressCell, RegistryClient, RegistryError,
};
use basalt_trustd::images::store::{Store, StoreError};
use basalt_trustd::util::error_chain::error_chain;
use config::{ImageSource, Registry};
use ledger::{Decision, Status};
use oci::{Limits, OciError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::images::{
    Compression, TestImage, image, image_with_layers, index, publish, publish_artifact, sha,
};
use crate::node::{Node, WAIT_TIMEOUT, run, statement, wait};

const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Debian's docker-registry on its own port. Its drop ends it.
pub(crate) struct RealRegistry {
    child: Child,
    pub(crate) storage: PathBuf,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RealRegistry {
    pub(crate) fn start() -> Self {
        let program = crate::node::service("docker-registry");
        let dir = tempfile::tempdir_in("/run").unwrap();
        let storage = dir.path().join("storage");
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = dir.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\nhttp:\n  addr: {address}\n",
                storage.display()
            ),
        )
        .unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        wait("the registry", || std::net::TcpStream::connect(address).is_ok());
        Self { child, storage, address, _dir: dir }
    }
}

/// Change that the proxy makes to an answer.
#[derive(Debug, Clone)]
enum Fault {
    /// Replaces the body and adjusts its length.
    Replace(Vec<u8>),
    /// Flips a bit in the middle of the body.
    FlipBit,
    /// Closes the connection after this many bytes of the body.
    Close(usize),
    /// Sends this many bytes of the body and then nothing.
    Stall(usize),
    /// Cuts the last byte off and adjusts the length.
    Shorten,
    /// Sends a body without end.
    EndlessBody,
    /// Redirects to this address.
    Redirect(String),
    /// Answers with this status.
    Status(u16),
    /// Sends a header without end.
    EndlessHeader,
}

/// Part of a request line, and the fault of the answers to such requests.
type FaultRule = Arc<Mutex<Option<(String, Fault)>>>;

/// Proxy between the node and a registry.
struct Proxy {
    address: SocketAddr,
    rule: FaultRule,
    /// Heads of all requests.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            rule: Arc::default(),
            requests: Arc::default(),
        };
        let (rule, requests) = (proxy.rule.clone(), proxy.requests.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, to, rule.clone(), requests.clone()));
            }
        });
        proxy
    }

    /// Alters the answers to requests whose first line contains `target`.
    fn inject(&self, target: &str, fault: Fault) {
        *self.rule.lock().unwrap() = Some((target.to_owned(), fault));
    }

    /// Passes all answers on unaltered.
    fn clear(&self) {
        *self.rule.lock().unwrap() = None;
    }

    /// Counts the requests whose head contains `text`.
    fn count(&self, text: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|head| head.contains(text)).count()
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(head)
}

async fn serve(
    mut client: TcpStream,
    to: SocketAddr,
    rule: FaultRule,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let Some(head) = read_head(&mut client).await else { return };
    let text = String::from_utf8_lossy(&head).into_owned();
    requests.lock().unwrap().push(text.clone());
    let mut server = TcpStream::connect(to).await.unwrap();
    let request = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(request.as_bytes()).await.unwrap();
    let Some(answer) = read_head(&mut server).await else { return };
    let mut body = Vec::new();
    server.read_to_end(&mut body).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let rule = rule.lock().unwrap().clone();
    let fault = rule
        .filter(|(target, _)| text.lines().next().unwrap().contains(target))
        .map(|(_, fault)| fault);
    let (head, body) = match fault {
        Some(Fault::Stall(n)) => {
            client.write_all(answer.as_bytes()).await.unwrap();
            let _ = client.write_all(&body[..n.min(body.len())]).await;
            tokio::time::sleep(WAIT_TIMEOUT).await;
            return;
        }
        Some(Fault::EndlessBody) => {
            let head = format!("{}\r\n", without_length(&answer));
            let _ = client.write_all(head.as_bytes()).await;
            while client.write_all(&[b'{'; 65536]).await.is_ok() {}
            return;
        }
        Some(Fault::EndlessHeader) => {
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
            while client.write_all(&[b'a'; 65536]).await.is_ok() {}
            return;
        }
        fault => alter(fault, answer, body),
    };
    let _ = client.write_all(head.as_bytes()).await;
    let _ = client.write_all(&body).await;
}

/// Returns the head of an answer without its length and without the empty line.
fn without_length(head: &str) -> String {
    head.lines()
        .filter(|line| !line.to_lowercase().starts_with("content-length") && !line.is_empty())
        .map(|line| format!("{line}\r\n"))
        .collect()
}

/// Returns head and body of an answer after a fault that has an end.
fn alter(fault: Option<Fault>, head: String, mut body: Vec<u8>) -> (String, Vec<u8>) {
    let with_length =
        |length: usize| format!("{}Content-Length: {length}\r\n\r\n", without_length(&head));
    match fault {
        Some(Fault::Replace(other)) => (with_length(other.len()), other),
        Some(Fault::FlipBit) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
            (head, body)
        }
        Some(Fault::Close(n)) => (head, body[..n.min(body.len())].to_vec()),
        Some(Fault::Shorten) => (with_length(body.len() - 1), body[..body.len() - 1].to_vec()),
        Some(Fault::Redirect(location)) => (
            format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\n\
                 Content-Length: 0\r\n\r\n"
            ),
            Vec::new(),
        ),
        Some(Fault::Status(status)) => {
            (format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\n"), b"no".to_vec())
        }
        None => (head, body),
        Some(Fault::Stall(_) | Fault::EndlessBody | Fault::EndlessHeader) => unreachable!(),
    }
}

/// Fetcher with an empty store.
struct TestFetcher {
    fetcher: Fetcher,
    registry: String,
    _dir: tempfile::TempDir,
}

/// Returns the settings of a registry without TLS.
fn plain(host: &str) -> Registry {
    Registry { host: host.into(), plain: true, ..Registry::default() }
}

impl TestFetcher {
    fn new(registries: &[Registry]) -> Self {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let limits = Limits { unpacked: 64 << 20, ..Limits::default() };
        let store = Store::open(dir.path(), 1 << 30, limits, crate::node::readers()).unwrap();
        let client = RegistryClient::new(registries, STALL_TIMEOUT).unwrap();
        let fetcher = Fetcher::new(Arc::new(store), client, oci::Platform::linux("amd64"));
        Self { fetcher, registry: format!("{}/team/app", registries[0].host), _dir: dir }
    }

    async fn fetch(&self, digest: &str) -> Result<oci::Verified, FetchError> {
        let source = ImageSource {
            digest: digest.into(),
            registry: Some(self.registry.clone()),
            archive: None,
        };
        self.fetcher.fetch("test", &source, &ProgressCell::default(), &|_, _| {}).await
    }
}

#[test]
fn an_image_is_fetched_from_a_real_registry_and_runs() {
    run(async {
        let registry = RealRegistry::start();
        let image =
            image_with_layers("from afar", &[Compression::Gzip, Compression::Zstd], 100_000);
        let list = index(&image);
        publish(&registry.storage, "team/app", &image.blobs, &[&image.manifest, &list]);
        let mut node = Node::with(
            "registry",
            &format!("[[registries]]\nhost = \"{}\"\nplain = true\n", registry.address),
        )
        .await;
        node.add_statement(&sha(&list), Status::Approved).await;
        node.apply(
            "app",
            &format!(
                "memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n\
                 registry = \"{}/team/app\"\n[health]\nstays-s = 0\n",
                sha(&list),
                registry.address
            ),
        );
        let container = node.wait_until_running("app").await;
        assert_eq!(node.connect_engine().await.containers().await.unwrap()[0].image, image.digest);
        assert!(!container.is_empty());
    });
}

#[test]
fn altered_answers_of_a_registry_are_rejected() {
    run(async {
        let registry = RealRegistry::start();
        let image = image_with_layers("true", &[Compression::Gzip, Compression::None], 50_000);
        image.publish(&registry.storage, "team/app");
        let evil = image_with_layers("false", &[Compression::Gzip, Compression::None], 50_000);
        let proxy = Proxy::start(registry.address).await;
        let host = proxy.address.to_string();
        let layer = image.layers[0].as_str();
        let is_wrong_content = |error: &FetchError| {
            matches!(
                error,
                FetchError::Registry(RegistryError::WrongContent { .. })
                    | FetchError::Store(StoreError::Oci(
                        OciError::Mismatch { .. } | OciError::Limit { .. }
                    ))
            )
        };
        let is_unreachable = |error: &FetchError| {
            matches!(error, FetchError::Registry(RegistryError::Unreachable { .. }))
        };
        let cases: Vec<(&str, Fault, bool)> = vec![
            ("/manifests/", Fault::Replace(evil.manifest.clone()), true),
            ("/manifests/", Fault::FlipBit, true),
            ("/manifests/", Fault::Shorten, true),
            ("/manifests/", Fault::EndlessBody, true),
            ("/manifests/", Fault::Close(20), false),
            ("/manifests/", Fault::Status(404), false),
            ("/manifests/", Fault::EndlessHeader, false),
            (
                "/manifests/",
                Fault::Redirect(format!("http://{host}/v2/team/app/manifests/{}", image.digest)),
                false,
            ),
            ("/manifests/", Fault::Redirect("file:///etc/passwd".into()), false),
            ("/manifests/", Fault::Redirect("http://user:secret@127.0.0.1:1/".into()), false),
            (layer, Fault::Replace(evil.blobs[0].clone()), true),
            (layer, Fault::FlipBit, true),
            (layer, Fault::Shorten, true),
            (layer, Fault::EndlessBody, true),
            (layer, Fault::Status(500), false),
            (layer, Fault::Stall(1000), false),
        ];
        for (target, fault, wrong_content) in cases {
            let fetcher = TestFetcher::new(&[plain(&host)]);
            proxy.inject(target, fault.clone());
            let began = Instant::now();
            let error = fetcher.fetch(&image.digest).await.unwrap_err();
            let expected =
                if wrong_content { is_wrong_content(&error) } else { is_unreachable(&error) };
            let text = error_chain(&error);
            assert!(expected, "{fault:?}: {text}");
            assert!(!text.contains("secret"), "{text}");
            assert!(began.elapsed() < 20 * STALL_TIMEOUT, "{fault:?} took {:?}", began.elapsed());
            let store = &fetcher.fetcher.store;
            let rejected = if target == layer { layer } else { image.digest.as_str() };
            assert_eq!(store.size(rejected), None, "{fault:?}");
            // The next fetch succeeds, so no wrong bytes stayed in the store.
            proxy.clear();
            let fetched = fetcher.fetch(&image.digest).await.unwrap();
            assert_eq!(fetched.digest, image.digest, "{fault:?}");
        }
    });
}

#[test]
fn interrupted_transfers_resume_and_mirrors_are_tried_first() {
    run(async {
        let registry = RealRegistry::start();
        let image = image_with_layers("large", &[Compression::None], 400_000);
        image.publish(&registry.storage, "team/app");
        let proxy = Proxy::start(registry.address).await;
        let host = proxy.address.to_string();
        let fetcher = TestFetcher::new(&[plain(&host)]);
        // Each answer ends after 150,000 bytes. The fetch resumes as long as it makes progress.
        proxy.inject(&image.layers[0], Fault::Close(150_000));
        fetcher.fetch(&image.digest).await.unwrap();
        assert!(
            proxy.count("bytes=150000-") == 1 && proxy.count("bytes=300000-") == 1,
            "{:?}",
            proxy.requests.lock().unwrap()
        );

        // The wrong bytes of a mirror are discarded, and the registry is tried next.
        let mirror = Proxy::start(registry.address).await;
        mirror.inject(&image.layers[0], Fault::FlipBit);
        proxy.clear();
        let mut with_mirrors = plain(&host);
        with_mirrors.mirrors = vec!["127.0.0.1:1".into(), mirror.address.to_string()];
        let fetcher = TestFetcher::new(&[with_mirrors]);
        fetcher.fetch(&image.digest).await.unwrap();
        assert!(mirror.count(&image.layers[0]) >= 1);
    });
}

#[test]
fn a_decompression_bomb_ends_early() {
    run(async {
        let registry = RealRegistry::start();
        let bomb = bomb();
        bomb.publish(&registry.storage, "team/app");
        let fetcher = TestFetcher::new(&[plain(&registry.address.to_string())]);
        let error = fetcher.fetch(&bomb.digest).await.unwrap_err();
        let text = error_chain(&error);
        assert!(text.contains("limit exceeded"), "{text}");
        assert!(!error.is_transient(), "{text}");
    });
}

/// Returns an image whose layer unpacks to 256 MiB of zeros.
fn bomb() -> TestImage {
    let mut built = image("bomb");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..256 {
        std::io::Write::write_all(&mut gz, &vec![0; 1 << 20]).unwrap();
    }
    let layer = gz.finish().unwrap();
    let manifest = String::from_utf8(built.manifest.clone()).unwrap();
    let manifest = manifest.replace(&built.layers[0], &sha(&layer)).replace(
        &format!("\"size\":{}}}]", built.blobs[0].len()),
        &format!("\"size\":{}}}]", layer.len()),
    );
    built.blobs[0] = layer;
    built.manifest = manifest.into_bytes();
    built.digest = sha(&built.manifest);
    *built.blobs.last_mut().unwrap() = built.manifest.clone();
    built
}

#[test]
fn a_log_is_fetched_as_an_artifact_and_its_registry_is_not_trusted() {
    run(async {
        let registry = RealRegistry::start();
        let proxy = Proxy::start(registry.address).await;
        let good = image("good");
        let source = format!("oci:{}/fleet/ledger:latest", proxy.address);
        let more = format!(
            "sources = [\"{source}\"]\npoll-s = 1\n[[registries]]\nhost = \"{}\"\nplain = true\n",
            proxy.address
        );
        let node = Node::with("artifact", &more).await;
        let log = statement(&node.key, &good.digest, Status::Approved, 1);
        publish_artifact(&registry.storage, "fleet/ledger", "latest", log.as_bytes());
        proxy.inject("/blobs/", Fault::FlipBit);
        let sources = Arc::new(
            LogPoller::new(
                &node.config,
                Path::new("/nowhere"),
                RegistryClient::new(&node.config.registries, STALL_TIMEOUT).unwrap(),
            )
            .unwrap(),
        );
        tokio::spawn(sources.clone().poll_forever(node.admission.clone(), || ()));
        let reports = async |expected: Option<&str>| {
            let deadline = Instant::now() + WAIT_TIMEOUT;
            loop {
                let found = sources.statuses().get(&source).map(|status| status.problem.clone());
                match (&found, expected) {
                    (Some(None), None) => return,
                    (Some(Some(problem)), Some(text)) if problem.contains(text) => return,
                    _ => assert!(Instant::now() < deadline, "{found:?}, expected {expected:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        reports(Some("sent sha256:")).await;
        assert!(matches!(node.admission.decide(&good.digest), Decision::Deny(_)));
        proxy.inject("/blobs/", Fault::EndlessBody);
        reports(Some("too long")).await;
        proxy.inject("/manifests/", Fault::Replace(b"[]".to_vec()));
        reports(Some("is not an artifact's manifest")).await;
        proxy.clear();
        reports(None).await;
        assert!(matches!(node.admission.decide(&good.digest), Decision::Allow(_)));
    });
}

#[test]
fn certificates_and_passwords_of_registries_are_verified() {
    run(async {
        let registry = RealRegistry::start();
        let image = image("secret");
        image.publish(&registry.storage, "team/app");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let address = tls_front(registry.address, &certificate, &key).await;
        let host = address.to_string();
        let with = |ca: Option<String>, password: Option<&str>| Registry {
            host: host.clone(),
            ca,
            user: password.map(|_| "node".into()),
            password: password.map(Into::into),
            ..Registry::default()
        };
        let good = with(Some(certificate.pem()), Some("pass"));
        let fetched = TestFetcher::new(&[good]).fetch(&image.digest).await.unwrap();
        assert_eq!(fetched.digest, image.digest);
        let other = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        for (registry, message) in [
            (with(Some(other.pem()), Some("pass")), "certificate"),
            (with(None, Some("pass")), "certificate"),
            (with(Some(certificate.pem()), Some("wrong")), "401"),
            (with(Some(certificate.pem()), None), "401"),
        ] {
            let error = TestFetcher::new(&[registry]).fetch(&image.digest).await.unwrap_err();
            let text = error_chain(&error);
            assert!(text.to_lowercase().contains(message) && !text.contains("wrong"), "{text}");
        }
        assert!(
            RegistryClient::new(&[with(Some("no certificate".into()), None)], STALL_TIMEOUT)
                .is_err()
        );
    });
}

/// Starts a proxy with TLS in front of a registry. It demands a token, which its token service
/// gives for the password node:pass.
async fn tls_front(
    to: SocketAddr,
    certificate: &rcgen::Certificate,
    key: &rcgen::KeyPair,
) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(client) = acceptor.accept(stream).await {
                    let _ = serve_front(client, address, to).await;
                }
            });
        }
    });
    address
}

/// Answers one request: with a token, with the registry's answer, or with a challenge.
async fn serve_front(
    mut client: tokio_rustls::server::TlsStream<TcpStream>,
    address: SocketAddr,
    to: SocketAddr,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let answer = |status: &str, header: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\n{header}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    let token_request = "GET /token?scope=repository%3Ateam%2Fapp%3Apull&service=front ";
    let response = if text.starts_with(token_request) {
        // node:pass in base64.
        if text.contains("Basic bm9kZTpwYXNz") {
            answer("200 OK", "", "{\"token\":\"abc\"}")
        } else {
            answer("401 Unauthorized", "", "{}")
        }
    } else if text.contains("Bearer abc") {
        let mut server = TcpStream::connect(to).await?;
        let request = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(request.as_bytes()).await?;
        let mut response = Vec::new();
        server.read_to_end(&mut response).await?;
        response
    } else {
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"https://{address}/token\",service=\"front\"\r\n"
        );
        answer("401 Unauthorized", &challenge, "{}")
    };
    client.write_all(&response).await?;
    client.shutdown().await
}
