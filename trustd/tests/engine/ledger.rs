//! The ledger with third-party witnesses, and with untrustworthy log sources.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basalt_trustd::admission::log_sources::LogPoller;
use basalt_trustd::images::fetch::RegistryClient;
use basalt_trustd::modules::ModuleStatus;
use basalt_trustd::util::error_chain::error_chain;
use ledger::{NoteKey, SigningKey, Status};
use trustctl::{keys, witness};

use crate::images::{TestImage, image};
use crate::node::{Node, run, service, statement, wait};

/// Process of sigsum-witness on its own port.
struct RealWitness {
    child: Child,
    address: SocketAddr,
    vkey: String,
}

impl Drop for RealWitness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RealWitness {
    /// Starts a witness of the log whose public key, in the form of OpenSSH, is in a file.
    fn start(dir: &Path, name: &str, log: &Path) -> Self {
        let file = |what: &str| dir.join(format!("{name}{what}"));
        sigsum_key(&["generate", "-o", file("").to_str().unwrap()]);
        let public = file(".pub").to_str().unwrap().to_owned();
        let hash = sigsum_key(&["to-hash", "-k", &public]);
        let own = format!("sigsum.org/v1/witness/{}", hash.trim());
        let vkey = sigsum_key(&["to-vkey", "-k", &public, "-t", "cosignature/v1", "-n", &own]);
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(service("sigsum-witness"))
            .env("GODEBUG", "httpmuxgo121=0")
            .arg("-k")
            .arg(file(""))
            .arg("--log-key")
            .arg(log)
            .arg("--state-file")
            .arg(file(".state"))
            .arg(address.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait("the witness", || std::net::TcpStream::connect(address).is_ok());
        Self { child, address, vkey: vkey.trim().to_owned() }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Returns the module file for an image.
fn module_toml(image: &TestImage) -> String {
    format!("memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n", image.digest)
}

fn sigsum_key(args: &[&str]) -> String {
    let output = Command::new(service("sigsum-key")).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "sigsum-key {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Key of a log, and three witnesses of the log.
struct Witnessed {
    key: SigningKey,
    vkey: NoteKey,
    witnesses: Vec<RealWitness>,
    _dir: tempfile::TempDir,
}

impl Witnessed {
    fn start() -> Self {
        let dir = tempfile::tempdir_in("/run").unwrap();
        keys::new_log(dir.path(), None).unwrap();
        let (key, vkey) = keys::load_log(&dir.path().join(keys::LOG)).unwrap();
        let public = dir.path().join("log.vkey").to_str().unwrap().to_owned();
        let log = dir.path().join("log.pub");
        sigsum_key(&["from-vkey", "-k", &public, "-o", log.to_str().unwrap()]);
        let witnesses =
            ["a", "b", "c"].iter().map(|name| RealWitness::start(dir.path(), name, &log)).collect();
        Self { key, vkey, witnesses, _dir: dir }
    }

    /// Returns the section of node.toml that requires cosignatures of these witnesses.
    fn settings(&self, threshold: usize, more: &str) -> String {
        let witnesses: Vec<String> =
            self.witnesses.iter().map(|w| format!("{:?}", w.vkey)).collect();
        format!(
            "[ledger.checkpoints]\nlog = \"{}\"\nwitnesses = [{}]\n\
             threshold = {threshold}\n{more}\n",
            self.vkey,
            witnesses.join(", ")
        )
    }

    /// Has some of the witnesses cosign a log. Returns the log and the errors of the witnesses that
    /// did not.
    async fn cosign(&self, log: &str, by: &[usize]) -> (String, Vec<String>) {
        let urls: Vec<String> = by.iter().map(|n| self.witnesses[*n].url()).collect();
        let keys: Vec<NoteKey> =
            self.witnesses.iter().map(|w| NoteKey::parse(&w.vkey).unwrap()).collect();
        let (log, key, origin) = (log.to_owned(), self.key.clone(), self.vkey.name.clone());
        let cosigned = tokio::task::spawn_blocking(move || {
            let leaves = trustctl::statement::leaves(&log, "t").unwrap();
            witness::cosign(&log, &leaves, &origin, &key, &urls, &keys).unwrap()
        })
        .await
        .unwrap();
        (cosigned.log, cosigned.failed.iter().map(|(_, error)| format!("{error:#}")).collect())
    }
}

/// HTTP server that answers every request with one text.
struct TextServer {
    address: SocketAddr,
    text: Arc<Mutex<Vec<u8>>>,
}

impl TextServer {
    async fn start(text: &str) -> Self {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            text: Arc::new(Mutex::new(text.as_bytes().to_vec())),
        };
        let text = server.text.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let body = text.lock().unwrap().clone();
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = client.read(&mut head).await;
                    let _ = client
                        .write_all(
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())
                                .as_bytes(),
                        )
                        .await;
                    let _ = client.write_all(&body).await;
                });
            }
        });
        server
    }

    fn set_text(&self, text: &str) {
        *self.text.lock().unwrap() = text.as_bytes().to_vec();
    }
}

/// Starts to poll the log sources of a node and a log on the boot partition.
fn start_polling(node: &Node, boot: PathBuf) -> Arc<LogPoller> {
    let client = RegistryClient::new(&[], Duration::from_secs(3)).unwrap();
    let sources = Arc::new(LogPoller::new(&node.config, &boot, client).unwrap());
    let modules = node.modules.clone();
    tokio::spawn(sources.clone().poll_forever(node.admission.clone(), move || modules.wake()));
    sources
}

/// Waits until the last poll of a source has this problem, or none.
async fn wait_for_poll(sources: &LogPoller, source: &str, expected: Option<&str>) {
    let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
    loop {
        let found = sources
            .statuses()
            .into_iter()
            .find(|(name, _)| name.contains(source))
            .map(|(_, status)| status.problem);
        match (&found, expected) {
            (Some(None), None) => return,
            (Some(Some(problem)), Some(text)) if problem.contains(text) => return,
            _ => assert!(
                std::time::Instant::now() < deadline,
                "{source}: expected {expected:?}, found {found:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_log_needs_cosignatures_of_enough_witnesses() {
    run(async {
        let witnessed = Witnessed::start();
        let node = Node::with("witnessed", &witnessed.settings(2, "")).await;
        let built = image("good");
        node.push(&built.archive()).await.unwrap();
        node.apply("m", &module_toml(&built));
        assert!(node.wait_until_denied("m").await.contains("no checkpoint"));
        let approved = statement(&node.key, &built.digest, Status::Approved, 1);
        let rejected = async |text: &str, reason: &str| {
            let error = error_chain(&node.admission.extend_log(text).await.unwrap_err());
            assert!(error.contains(reason), "{error}");
        };
        rejected(&approved, "no checkpoint").await;
        rejected(&witnessed.cosign(&approved, &[]).await.0, "0 of the node's witnesses").await;
        let (one, _) = witnessed.cosign(&approved, &[0]).await;
        rejected(&one, "1 of the node's witnesses").await;
        // A second witness cosigns later; the cosignature of the first stays in the log.
        let (two, failed) = witnessed.cosign(&one, &[1]).await;
        assert!(failed.is_empty(), "{failed:?}");
        node.admission.extend_log(&two).await.unwrap();
        node.modules.wake();
        node.wait_until_running("m").await;

        // Another log of the same length: the witnesses that have seen the first one reject it, and
        // so does the node.
        let fork =
            statement(&node.key, &format!("sha256:{}", "ab".repeat(32)), Status::Approved, 1);
        let (forked, failed) = witnessed.cosign(&fork, &[0, 1, 2]).await;
        assert_eq!(failed.len(), 2, "the third witness has seen no log yet: {failed:?}");
        assert!(failed.iter().all(|error| error.contains("forked")), "{failed:?}");
        rejected(&forked, "forked").await;
        let longer = fork + &statement(&node.key, &built.digest, Status::Approved, 2);
        assert_eq!(witnessed.cosign(&longer, &[0, 1]).await.1.len(), 2);

        // A revocation, cosigned by the two witnesses that have seen the first statement.
        let revoked = approved + &statement(&node.key, &built.digest, Status::Revoked, 2);
        let (revoked, failed) = witnessed.cosign(&revoked, &[0, 1]).await;
        assert!(failed.is_empty(), "{failed:?}");
        node.admission.extend_log(&revoked).await.unwrap();
        node.modules.wake();
        assert!(node.wait_until_denied("m").await.contains("revoked"));
    });
}

#[test]
fn a_log_without_fresh_cosignatures_stops_running_modules() {
    run(async {
        let witnessed = Witnessed::start();
        let node =
            Node::with("stale", &witnessed.settings(2, "max-age-s = 40\nstale-grace-s = 1")).await;
        let built = image("good");
        node.push(&built.archive()).await.unwrap();
        let approved = statement(&node.key, &built.digest, Status::Approved, 1);
        let (first, _) = witnessed.cosign(&approved, &[0, 1]).await;
        node.admission.extend_log(&first).await.unwrap();
        node.apply("m", &module_toml(&built));
        node.wait_until_running("m").await;
        node.wait_for_event(|e| e.contains("module-stopped") && e.contains("stale")).await;
        assert!(node.wait_until_denied("m").await.contains("too old"));
        // The witnesses cosign the same log again.
        let (fresh, _) = witnessed.cosign(&first, &[1, 2]).await;
        assert_eq!(node.admission.extend_log(&fresh).await.unwrap(), (1, true));
        // The log with the older cosignatures does not replace it.
        assert_eq!(node.admission.extend_log(&first).await.unwrap(), (1, false));
        node.modules.wake();
        node.wait_until_running("m").await;
    });
}

#[test]
fn log_sources_are_polled_and_none_is_trusted() {
    run(async {
        let (liar, behind, good) = (
            TextServer::start("junk\n").await,
            TextServer::start("").await,
            TextServer::start("").await,
        );
        let sources = format!(
            "sources = [\"http://{}/ledger\", \"http://127.0.0.1:1/none\", \"http://{}/l\", \
             \"http://{}/l\"]\npoll-s = 1\n",
            liar.address, behind.address, good.address
        );
        let node = Node::with("sources", &sources).await;
        let built = image("good");
        node.push(&built.archive()).await.unwrap();
        node.apply("m", &module_toml(&built));
        node.wait_until_denied("m").await;
        let approved = statement(&node.key, &built.digest, Status::Approved, 1);
        // The boot partition has the log.
        let boot = node.dir.path().join("boot.jsonl");
        std::fs::write(&boot, &approved).unwrap();
        let sources = start_polling(&node, boot.clone());
        node.wait_until_running("m").await;
        wait_for_poll(&sources, "boot.jsonl", None).await;
        wait_for_poll(&sources, &liar.address.to_string(), Some("not a valid log entry")).await;
        wait_for_poll(&sources, "127.0.0.1:1/", Some("cannot connect")).await;
        wait_for_poll(&sources, &behind.address.to_string(), Some("it is behind")).await;
        // A server has a longer log, while the boot partition still has the old one.
        let revoked = approved.clone() + &statement(&node.key, &built.digest, Status::Revoked, 2);
        good.set_text(&revoked);
        assert!(node.wait_until_denied("m").await.contains("revoked"));
        wait_for_poll(&sources, "boot.jsonl", Some("it is behind")).await;
        wait_for_poll(&sources, &good.address.to_string(), None).await;
        // A pipe as a source does not block the poll.
        let pipe = node.dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let piped = start_polling(&node, pipe);
        wait_for_poll(&piped, "pipe", Some("not a regular file")).await;
        // A log with an entry of another key is rejected.
        let other_key = SigningKey::from_bytes(&[77; 32]);
        liar.set_text(&(revoked + &statement(&other_key, &built.digest, Status::Approved, 3)));
        wait_for_poll(&sources, &liar.address.to_string(), Some("not that of a current approver"))
            .await;
        liar.set_text(&"x".repeat(17 << 20));
        wait_for_poll(&sources, &liar.address.to_string(), Some("too long")).await;
        assert!(matches!(node.modules.status("m"), Some(ModuleStatus::Denied { .. })));
    });
}
