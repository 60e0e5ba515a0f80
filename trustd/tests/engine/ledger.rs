//! The ledger with witnesses that nobody here wrote, and with sources that lie.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basalt_trustd::admission::log_sources::Sources;
use basalt_trustd::images::fetch::Client;
use basalt_trustd::modules::State;
use ledger::{NoteKey, SigningKey, Status};
use trustctl::{keys, witness};

use crate::images::{Built, image};
use crate::node::{Node, run, service, statement, wait};

/// sigsum-witness on a port of its own.
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
    /// For the log whose public key, as OpenSSH writes it, is in a file.
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

fn module(image: &Built) -> String {
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

/// A log's key and three witnesses of it.
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

    /// What node.toml says of them.
    fn settings(&self, threshold: usize, more: &str) -> String {
        let witnesses: Vec<String> =
            self.witnesses.iter().map(|w| format!("{:?}", w.vkey)).collect();
        format!(
            "[ledger.checkpoints]\nlog = \"{}\"\nwitnesses = [{}]\nthreshold = {threshold}\n{more}\n",
            self.vkey,
            witnesses.join(", ")
        )
    }

    /// The log as some of the witnesses cosign it; and who of them did not.
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
        (cosigned.log, cosigned.failed.iter().map(|(_, why)| format!("{why:#}")).collect())
    }
}

/// Serves a text, whatever is asked for.
struct Server {
    address: SocketAddr,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Server {
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

    fn says(&self, text: &str) {
        *self.text.lock().unwrap() = text.as_bytes().to_vec();
    }
}

fn keep(node: &Node, boot: PathBuf) -> Arc<Sources> {
    let client = Client::new(&[], Duration::from_secs(3)).unwrap();
    let sources = Arc::new(Sources::new(&node.config, &boot, client).unwrap());
    let modules = node.modules.clone();
    tokio::spawn(sources.clone().keep(node.approvals.clone(), move || modules.wake()));
    sources
}

async fn heard(sources: &Sources, source: &str, says: Option<&str>) {
    let deadline = std::time::Instant::now() + crate::node::PATIENCE;
    loop {
        let found = sources
            .heard()
            .into_iter()
            .find(|(name, _)| name.contains(source))
            .map(|(_, heard)| heard.problem);
        match (&found, says) {
            (Some(None), None) => return,
            (Some(Some(problem)), Some(says)) if problem.contains(says) => return,
            _ => assert!(
                std::time::Instant::now() < deadline,
                "{source}: {found:?}, expected {says:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn nothing_counts_that_too_few_witnesses_saw() {
    run(async {
        let witnessed = Witnessed::start();
        let node = Node::with("witnessed", &witnessed.settings(2, "")).await;
        let built = image("good");
        node.push(&built.archive()).await.unwrap();
        node.apply("m", &module(&built));
        assert!(node.refused("m").await.contains("no checkpoint"));
        let approved = statement(&node.key, &built.digest, Status::Approved, 1);
        let refused = async |text: &str, says: &str| {
            let error = node.approvals.extend(text).await.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(&approved, "no checkpoint").await;
        refused(&witnessed.cosign(&approved, &[]).await.0, "0 of the node's witnesses").await;
        let (one, _) = witnessed.cosign(&approved, &[0]).await;
        refused(&one, "1 of the node's witnesses").await;
        // A second one, asked later: the first one's cosignature is kept.
        let (two, failed) = witnessed.cosign(&one, &[1]).await;
        assert!(failed.is_empty(), "{failed:?}");
        node.approvals.extend(&two).await.unwrap();
        node.modules.wake();
        node.running("m").await;

        // Another log of the same length: no witness signs it, and this node does not take it
        // either.
        let fork =
            statement(&node.key, &format!("sha256:{}", "ab".repeat(32)), Status::Approved, 1);
        let (forked, failed) = witnessed.cosign(&fork, &[0, 1, 2]).await;
        assert_eq!(failed.len(), 2, "the third has seen none yet: {failed:?}");
        assert!(failed.iter().all(|why| why.contains("forked")), "{failed:?}");
        refused(&forked, "forked").await;
        let longer = fork + &statement(&node.key, &built.digest, Status::Approved, 2);
        assert_eq!(witnessed.cosign(&longer, &[0, 1]).await.1.len(), 2);

        // A revocation, cosigned by two who have seen the first statement.
        let revoked = approved + &statement(&node.key, &built.digest, Status::Revoked, 2);
        let (revoked, failed) = witnessed.cosign(&revoked, &[0, 1]).await;
        assert!(failed.is_empty(), "{failed:?}");
        node.approvals.extend(&revoked).await.unwrap();
        node.modules.wake();
        assert!(node.refused("m").await.contains("revoked"));
    });
}

#[test]
fn a_ledger_that_nobody_vouches_for_any_more_stops_what_runs() {
    run(async {
        let witnessed = Witnessed::start();
        let node =
            Node::with("stale", &witnessed.settings(2, "max-age-s = 40\nstale-grace-s = 1")).await;
        let built = image("good");
        node.push(&built.archive()).await.unwrap();
        let approved = statement(&node.key, &built.digest, Status::Approved, 1);
        let (first, _) = witnessed.cosign(&approved, &[0, 1]).await;
        node.approvals.extend(&first).await.unwrap();
        node.apply("m", &module(&built));
        node.running("m").await;
        node.event(|e| e.contains("module-stopped") && e.contains("stale")).await;
        assert!(node.refused("m").await.contains("too old"));
        // Seen once more by the witnesses, without a new statement.
        let (fresh, _) = witnessed.cosign(&first, &[1, 2]).await;
        assert_eq!(node.approvals.extend(&fresh).await.unwrap(), (1, true));
        // The older cosignatures of the same log do not make it older again.
        assert_eq!(node.approvals.extend(&first).await.unwrap(), (1, false));
        node.modules.wake();
        node.running("m").await;
    });
}

#[test]
fn sources_are_asked_and_none_is_trusted() {
    run(async {
        let (liar, behind, good) =
            (Server::start("junk\n").await, Server::start("").await, Server::start("").await);
        let sources = format!(
            "sources = [\"http://{}/ledger\", \"http://127.0.0.1:1/none\", \"http://{}/l\", \"http://{}/l\"]\npoll-s = 1\n",
            liar.address, behind.address, good.address
        );
        let node = Node::with("sources", &sources).await;
        let built = image("good");
        node.push(&built.archive()).await.unwrap();
        node.apply("m", &module(&built));
        node.refused("m").await;
        let approved = statement(&node.key, &built.digest, Status::Approved, 1);
        // From the boot partition.
        let boot = node.dir.path().join("boot.jsonl");
        std::fs::write(&boot, &approved).unwrap();
        let sources = keep(&node, boot.clone());
        node.running("m").await;
        heard(&sources, "boot.jsonl", None).await;
        heard(&sources, &liar.address.to_string(), Some("not a statement")).await;
        heard(&sources, "127.0.0.1:1/", Some("cannot be reached")).await;
        heard(&sources, &behind.address.to_string(), Some("it is behind")).await;
        // Over HTTP, while the boot partition still has the old one.
        let revoked = approved.clone() + &statement(&node.key, &built.digest, Status::Revoked, 2);
        good.says(&revoked);
        assert!(node.refused("m").await.contains("revoked"));
        heard(&sources, "boot.jsonl", Some("it is behind")).await;
        heard(&sources, &good.address.to_string(), None).await;
        // A pipe holds nobody up.
        let pipe = node.dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let piped = keep(&node, pipe);
        heard(&piped, "pipe", Some("not a file")).await;
        // One that signs for nobody does not bring it back.
        let stranger = SigningKey::from_bytes(&[77; 32]);
        liar.says(&(revoked + &statement(&stranger, &built.digest, Status::Approved, 3)));
        heard(&sources, &liar.address.to_string(), Some("not one of an approver")).await;
        liar.says(&"x".repeat(17 << 20));
        heard(&sources, &liar.address.to_string(), Some("more than")).await;
        assert!(matches!(node.modules.state("m"), Some(State::Refused { .. })));
    });
}
