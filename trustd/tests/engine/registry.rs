//! A real registry, and one that lies.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basalt_trustd::admission::log_sources::Sources;
use basalt_trustd::images::fetch::{Client, FetchError, Fetcher, RegistryError, Watched};
use basalt_trustd::images::store::{Store, StoreError};
use config::{Registry, Source};
use ledger::{Decision, Status};
use oci::{Limits, OciError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::images::{Built, Packed, image, index, layered, publish, publish_file, sha};
use crate::node::{Node, PATIENCE, run, statement, wait};

/// Longest silence in these tests.
const SILENCE: Duration = Duration::from_secs(2);

/// Debian's docker-registry on a port of its own.
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
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
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

/// What the one in between does to an answer whose address contains a word.
#[derive(Debug, Clone)]
enum Lie {
    /// Another body, with its right length.
    Swap(Vec<u8>),
    FlipByte,
    /// Says how long it is and ends before.
    BreaksOff(usize),
    /// Says how long it is and then nothing more.
    Stalls(usize),
    /// Says that it is shorter than it is.
    Shorter,
    /// More than was asked for, without end.
    Endless,
    Redirect(String),
    Status(u16),
    /// A head without end.
    LongHead,
}

/// Between the node and a registry.
struct Proxy {
    address: SocketAddr,
    lie: Arc<Mutex<Option<(String, Lie)>>>,
    /// Heads of the requests so far.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            lie: Arc::default(),
            seen: Arc::default(),
        };
        let (lie, seen) = (proxy.lie.clone(), proxy.seen.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, to, lie.clone(), seen.clone()));
            }
        });
        proxy
    }

    fn lies(&self, about: &str, lie: Lie) {
        *self.lie.lock().unwrap() = Some((about.to_owned(), lie));
    }

    fn honest(&self) {
        *self.lie.lock().unwrap() = None;
    }

    fn seen(&self, what: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|head| head.contains(what)).count()
    }
}

async fn head_of(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(head)
}

async fn serve(
    mut client: TcpStream,
    to: SocketAddr,
    lie: Arc<Mutex<Option<(String, Lie)>>>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let Some(head) = head_of(&mut client).await else { return };
    let text = String::from_utf8_lossy(&head).into_owned();
    seen.lock().unwrap().push(text.clone());
    let mut server = TcpStream::connect(to).await.unwrap();
    let asked = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(asked.as_bytes()).await.unwrap();
    let Some(answer) = head_of(&mut server).await else { return };
    let mut body = Vec::new();
    server.read_to_end(&mut body).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let lie = lie
        .lock()
        .unwrap()
        .clone()
        .filter(|(about, _)| text.lines().next().unwrap().contains(about))
        .map(|(_, lie)| lie);
    let with = |length: usize| {
        let kept: String = answer
            .lines()
            .filter(|l| !l.to_lowercase().starts_with("content-length") && !l.is_empty())
            .map(|l| format!("{l}\r\n"))
            .collect();
        format!("{kept}Content-Length: {length}\r\n\r\n")
    };
    let (head, body) = match lie {
        None => (answer, body),
        Some(Lie::Swap(other)) => (with(other.len()), other),
        Some(Lie::FlipByte) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
            (answer, body)
        }
        Some(Lie::BreaksOff(n)) => (answer, body[..n.min(body.len())].to_vec()),
        Some(Lie::Stalls(n)) => {
            client.write_all(answer.as_bytes()).await.unwrap();
            let _ = client.write_all(&body[..n.min(body.len())]).await;
            tokio::time::sleep(PATIENCE).await;
            return;
        }
        Some(Lie::Shorter) => (with(body.len() - 1), body[..body.len() - 1].to_vec()),
        Some(Lie::Endless) => {
            let head: String = answer
                .lines()
                .filter(|l| !l.to_lowercase().starts_with("content-length") && !l.is_empty())
                .map(|l| format!("{l}\r\n"))
                .collect();
            let _ = client.write_all(format!("{head}\r\n").as_bytes()).await;
            while client.write_all(&[b'{'; 65536]).await.is_ok() {}
            return;
        }
        Some(Lie::Redirect(location)) => (
            format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            ),
            Vec::new(),
        ),
        Some(Lie::Status(status)) => {
            (format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\n"), b"no".to_vec())
        }
        Some(Lie::LongHead) => {
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
            while client.write_all(&[b'a'; 65536]).await.is_ok() {}
            return;
        }
    };
    let _ = client.write_all(head.as_bytes()).await;
    let _ = client.write_all(&body).await;
}

/// A store that fetches from somewhere.
struct Fetching {
    fetcher: Fetcher,
    registry: String,
    _dir: tempfile::TempDir,
}

fn plain(host: &str) -> Registry {
    Registry {
        host: host.into(),
        mirrors: Vec::new(),
        plain: true,
        ca: None,
        user: None,
        password: None,
    }
}

impl Fetching {
    fn new(registries: &[Registry]) -> Self {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let store =
            Store::open(dir.path(), 1 << 30, Limits { unpacked: 64 << 20, ..Limits::default() })
                .unwrap();
        let client = Client::new(registries, SILENCE).unwrap();
        let fetcher = Fetcher::new(Arc::new(store), client, oci::Platform::linux("amd64"));
        Self { fetcher, registry: format!("{}/team/app", registries[0].host), _dir: dir }
    }

    async fn get(&self, digest: &str) -> Result<oci::Verified, FetchError> {
        let source =
            Source { digest: digest.into(), registry: Some(self.registry.clone()), archive: None };
        self.fetcher.get("test", &source, &Watched::default(), &|_, _| {}).await
    }
}

#[test]
fn an_image_is_fetched_from_a_real_registry_and_runs() {
    run(async {
        let registry = RealRegistry::start();
        let image = layered("from afar", &[Packed::Gzip, Packed::Zstd], 100_000);
        let list = index(&image);
        publish(&registry.storage, "team/app", &image.blobs, &[&image.manifest, &list]);
        let mut node = Node::with(
            "registry",
            &format!("[[registries]]\nhost = \"{}\"\nplain = true\n", registry.address),
        )
        .await;
        node.state(&sha(&list), Status::Approved).await;
        node.apply(
            "app",
            &format!(
                "memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\nregistry = \"{}/team/app\"\n[health]\nstays-s = 0\n",
                sha(&list),
                registry.address
            ),
        );
        let container = node.running("app").await;
        assert_eq!(node.own().await.containers().await.unwrap()[0].image, image.digest);
        assert!(!container.is_empty());
    });
}

#[test]
fn a_registry_that_lies_is_not_believed() {
    run(async {
        let registry = RealRegistry::start();
        let image = layered("true", &[Packed::Gzip, Packed::No], 50_000);
        image.publish(&registry.storage, "team/app");
        let evil = layered("false", &[Packed::Gzip, Packed::No], 50_000);
        let proxy = Proxy::start(registry.address).await;
        let host = proxy.address.to_string();
        let layer = image.layers[0].as_str();
        let is_lie = |error: &FetchError| {
            matches!(
                error,
                FetchError::Registry(RegistryError::Lies { .. })
                    | FetchError::Store(StoreError::Oci(
                        OciError::Mismatch { .. } | OciError::Limit { .. }
                    ))
            )
        };
        let unreachable = |error: &FetchError| {
            matches!(error, FetchError::Registry(RegistryError::Unreachable { .. }))
        };
        let cases: Vec<(&str, Lie, bool)> = vec![
            ("/manifests/", Lie::Swap(evil.manifest.clone()), true),
            ("/manifests/", Lie::FlipByte, true),
            ("/manifests/", Lie::Shorter, true),
            ("/manifests/", Lie::Endless, true),
            ("/manifests/", Lie::BreaksOff(20), false),
            ("/manifests/", Lie::Status(404), false),
            ("/manifests/", Lie::LongHead, false),
            (
                "/manifests/",
                Lie::Redirect(format!("http://{host}/v2/team/app/manifests/{}", image.digest)),
                false,
            ),
            ("/manifests/", Lie::Redirect("file:///etc/passwd".into()), false),
            ("/manifests/", Lie::Redirect("http://user:secret@127.0.0.1:1/".into()), false),
            (layer, Lie::Swap(evil.blobs[0].clone()), true),
            (layer, Lie::FlipByte, true),
            (layer, Lie::Shorter, true),
            (layer, Lie::Endless, true),
            (layer, Lie::Status(500), false),
            (layer, Lie::Stalls(1000), false),
        ];
        for (about, lie, lies) in cases {
            let fetching = Fetching::new(&[plain(&host)]);
            proxy.lies(about, lie.clone());
            let begun = Instant::now();
            let error = fetching.get(&image.digest).await.unwrap_err();
            assert!(if lies { is_lie(&error) } else { unreachable(&error) }, "{lie:?}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(begun.elapsed() < 20 * SILENCE, "{lie:?} took {:?}", begun.elapsed());
            let store = &fetching.fetcher.store;
            let bad = if about == layer { layer } else { image.digest.as_str() };
            assert_eq!(store.size(bad), None, "{lie:?}");
            // An honest answer is enough afterwards: nothing of the lie stayed.
            proxy.honest();
            assert_eq!(fetching.get(&image.digest).await.unwrap().digest, image.digest, "{lie:?}");
        }
    });
}

#[test]
fn what_broke_off_is_gone_on_with_and_mirrors_are_asked_first() {
    run(async {
        let registry = RealRegistry::start();
        let image = layered("large", &[Packed::No], 400_000);
        image.publish(&registry.storage, "team/app");
        let proxy = Proxy::start(registry.address).await;
        let host = proxy.address.to_string();
        let fetching = Fetching::new(&[plain(&host)]);
        // Each answer breaks off after 150,000 bytes; as long as bytes are won, it goes on.
        proxy.lies(&image.layers[0], Lie::BreaksOff(150_000));
        fetching.get(&image.digest).await.unwrap();
        assert!(
            proxy.seen("bytes=150000-") == 1 && proxy.seen("bytes=300000-") == 1,
            "{:?}",
            proxy.seen.lock().unwrap()
        );

        // A mirror that lies is passed over; what it sent is not kept.
        let liar = Proxy::start(registry.address).await;
        liar.lies(&image.layers[0], Lie::FlipByte);
        proxy.honest();
        let mut with_mirror = plain(&host);
        with_mirror.mirrors = vec!["127.0.0.1:1".into(), liar.address.to_string()];
        let fetching = Fetching::new(&[with_mirror]);
        fetching.get(&image.digest).await.unwrap();
        assert!(liar.seen(&image.layers[0]) >= 1);
    });
}

#[test]
fn bombs_and_overlong_images_end_early() {
    run(async {
        let registry = RealRegistry::start();
        let bomb = bomb();
        bomb.publish(&registry.storage, "team/app");
        let fetching = Fetching::new(&[plain(&registry.address.to_string())]);
        let error = fetching.get(&bomb.digest).await.unwrap_err();
        assert!(error.to_string().contains("too much"), "{error}");
        assert!(!error.passing(), "{error}");
    });
}

/// 256 MiB of nothing in a few kilobytes.
fn bomb() -> Built {
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
fn a_log_or_a_bundle_may_be_an_artifact_and_its_registry_is_not_believed() {
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
        publish_file(&registry.storage, "fleet/ledger", "latest", log.as_bytes());
        proxy.lies("/blobs/", Lie::FlipByte);
        let sources = Arc::new(
            Sources::new(
                &node.config,
                Path::new("/nowhere"),
                Client::new(&node.config.registries, SILENCE).unwrap(),
            )
            .unwrap(),
        );
        tokio::spawn(sources.clone().keep(node.approvals.clone(), || ()));
        let heard = async |says: Option<&str>| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let found = sources.heard().get(&source).map(|heard| heard.problem.clone());
                match (&found, says) {
                    (Some(None), None) => return,
                    (Some(Some(problem)), Some(says)) if problem.contains(says) => return,
                    _ => assert!(Instant::now() < deadline, "{found:?}, expected {says:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        heard(Some("sends sha256:")).await;
        assert!(matches!(node.approvals.decide(&good.digest), Decision::Deny(_)));
        proxy.lies("/blobs/", Lie::Endless);
        heard(Some("more than")).await;
        proxy.lies("/manifests/", Lie::Swap(b"[]".to_vec()));
        heard(Some("is not an artifact's manifest")).await;
        proxy.honest();
        heard(None).await;
        assert!(matches!(node.approvals.decide(&good.digest), Decision::Allow(_)));
    });
}

#[test]
fn tls_and_passwords() {
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
            mirrors: Vec::new(),
            plain: false,
            ca,
            user: password.map(|_| "node".into()),
            password: password.map(Into::into),
        };
        let good = with(Some(certificate.pem()), Some("pass"));
        assert_eq!(Fetching::new(&[good]).get(&image.digest).await.unwrap().digest, image.digest);
        let stranger = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        for (registry, says) in [
            (with(Some(stranger.pem()), Some("pass")), "certificate"),
            (with(None, Some("pass")), "certificate"),
            (with(Some(certificate.pem()), Some("wrong")), "401"),
            (with(Some(certificate.pem()), None), "401"),
        ] {
            let error =
                Fetching::new(&[registry]).get(&image.digest).await.unwrap_err().to_string();
            assert!(error.to_lowercase().contains(says) && !error.contains("wrong"), "{error}");
        }
        assert!(Client::new(&[with(Some("no certificate".into()), None)], SILENCE).is_err());
    });
}

/// TLS in front of a registry; whoever does not come with node:pass is sent for a token first.
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
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match client.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                let answer = |status: &str, more: &str, body: &str| {
                    format!(
                        "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    )
                };
                if text
                    .starts_with("GET /token?scope=repository%3Ateam%2Fapp%3Apull&service=front ")
                {
                    let good = text.contains("Basic bm9kZTpwYXNz");
                    let said = if good {
                        answer("200 OK", "", "{\"token\":\"abc\"}")
                    } else {
                        answer("401 Unauthorized", "", "{}")
                    };
                    let _ = client.write_all(said.as_bytes()).await;
                } else if text.contains("Bearer abc") {
                    let mut server = TcpStream::connect(to).await.unwrap();
                    server
                        .write_all(text.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())
                        .await
                        .unwrap();
                    let mut all = Vec::new();
                    server.read_to_end(&mut all).await.unwrap();
                    let _ = client.write_all(&all).await;
                } else {
                    let realm = format!(
                        "WWW-Authenticate: Bearer realm=\"https://{address}/token\",service=\"front\"\r\n"
                    );
                    let _ =
                        client.write_all(answer("401 Unauthorized", &realm, "{}").as_bytes()).await;
                }
                let _ = client.shutdown().await;
            });
        }
    });
    address
}
