//! A node that follows a chain, against a software TPM and bundles recorded on a real network
//! (lib/ledger/tests/ethereum).
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use basalt_trustd::admission::Approvals;
use basalt_trustd::admission::error::ApprovalError;
use basalt_trustd::admission::relays::Relays;
use basalt_trustd::images::fetch::Client;
use basalt_trustd::tpm::Tpm;
use common::{Swtpm, vault};
use ledger::{
    ChainReason, Decision, ImageStatement, LogEntry, NoteKey, Reason, Role, SigningKey, Status,
};
use measure::Pcr;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PATIENCE: Duration = Duration::from_secs(120);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// What was recorded; the network's beginning is moved so that it was just now. Nothing that is
/// signed knows the time.
struct Recording(Value);

impl Recording {
    fn read() -> Self {
        Self(
            serde_json::from_str(include_str!(
                "../../lib/ledger/tests/ethereum/devnet-minimal.json"
            ))
            .unwrap(),
        )
    }

    fn text(&self, name: &str) -> String {
        let bundles = self.0["bundles"].as_array().unwrap();
        bundles.iter().find(|recorded| recorded["name"] == name).unwrap()["bundle"].to_string()
    }

    fn digest(&self, n: usize) -> String {
        self.0["digests"][n].as_str().unwrap().replace("0x", "sha256:")
    }

    fn node(&self, relays: &[String], ago: u64) -> config::Node {
        config::parse("node.toml", &self.toml(relays, ago)).unwrap()
    }

    /// The whole of node.toml; `ago`: how long ago the last bundle was made.
    fn toml(&self, relays: &[String], ago: u64) -> String {
        let recorded = self.0["bundles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|recorded| recorded["now"].as_u64().unwrap())
            .max()
            .unwrap();
        let mut chain = String::new();
        for line in self.0["settings"].as_str().unwrap().lines() {
            chain += &match line.split_once(" = ") {
                Some(("genesis-time", time)) => format!(
                    "genesis-time = {}\n",
                    time.parse::<u64>().unwrap() + now() - recorded - ago
                ),
                Some(("relays", _)) => {
                    format!("relays = {}\n", serde_json::to_string(relays).unwrap())
                }
                Some(("poll-s", _)) => "poll-s = 1\n".into(),
                _ => format!("{line}\n"),
            };
        }
        let approver = measure::hex(key().verifying_key().as_bytes());
        format!(
            "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:0\"\n[owner]\n[ledger]\nkind = \"ethereum\"\nname = \"t\"\nthreshold = 1\napprovers = [\"{approver}\"]\n{chain}"
        )
    }

    /// The log's approvers let all three run: what is left is up to the chain.
    fn log(&self) -> String {
        (0..3).map(|n| statement(n as u64 + 1, &self.digest(n))).collect()
    }
}

fn statement(seq: u64, digest: &str) -> String {
    let mut entry = LogEntry::new(ImageStatement {
        digest: digest.into(),
        exp: u64::MAX,
        iat: 0,
        seq,
        status: Status::Approved,
    });
    entry.sign("t", &key());
    entry.line() + "\n"
}

/// The file with the chain's state.
fn kept(data: &Path) -> PathBuf {
    let files = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = files
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("chain-"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

struct Place {
    dir: tempfile::TempDir,
    _swtpm: Swtpm,
    tpm: Tpm,
}

impl Place {
    async fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        for sub in ["etc", "data"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let tpm = swtpm.open().await;
        Self { dir, _swtpm: swtpm, tpm }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// As after a restart.
    async fn open(&self, node: &config::Node) -> Approvals {
        let root = vault(&self.tpm, Pcr::default(), &self.data(), self.dir.path(), &node.keys)
            .open()
            .await
            .unwrap();
        Approvals::open(
            node,
            &self.dir.path().join("etc"),
            &self.data(),
            0,
            self.tpm.clone(),
            Arc::new(root),
        )
        .await
        .unwrap()
    }

    async fn begin(&self, node: &config::Node, recording: &Recording) -> Approvals {
        let approvals = self.open(node).await;
        approvals.extend(&recording.log()).await.unwrap();
        // Only what is asked for is remembered.
        (0..3).for_each(|n| drop(approvals.decide(&recording.digest(n))));
        approvals
    }
}

fn denied(approvals: &Approvals, digest: &str) -> ChainReason {
    match approvals.decide(digest) {
        Decision::Deny(Reason::Chain { reason, .. }) => reason,
        other => panic!("{digest}: {other:?}"),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn both_must_allow_and_what_the_chain_said_outlives_a_restart() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let node = recording.node(&[], 60);
        let [good, gone, absent] = [0, 1, 2].map(|n| recording.digest(n));
        let approvals = place.begin(&node, &recording).await;
        assert_eq!(denied(&approvals, &good), ChainReason::NotFollowed);
        assert!(approvals.take(&recording.text("approved")).await.unwrap());
        assert!(!approvals.take(&recording.text("approved")).await.unwrap(), "nothing new");
        let Decision::Allow(evidence) = approvals.decide(&good) else { panic!("denied") };
        assert!(evidence.chain.unwrap().block > 0);
        assert!(matches!(denied(&approvals, &gone), ChainReason::Revoked { .. }));
        assert!(matches!(denied(&approvals, &absent), ChainReason::Absent { .. }));
        let stranger = format!("sha256:{}", "77".repeat(32));
        assert!(
            matches!(approvals.decide(&stranger), Decision::Deny(Reason::Unknown { .. })),
            "the chain alone is not enough"
        );

        // No relay is there after the restart; what was kept is fresh enough.
        let approvals = place.open(&node).await;
        assert!(matches!(approvals.decide(&good), Decision::Allow(_)));
        let before = place.dir.path().join("before");
        copy(&place.data(), &before);
        assert!(approvals.take(&recording.text("attested")).await.unwrap());
        assert!(matches!(denied(&approvals, &good), ChainReason::Revoked { .. }));
        assert!(matches!(denied(&place.open(&node).await, &good), ChainReason::Revoked { .. }));
        let after = place.dir.path().join("after");
        assert!(approvals.take(&recording.text("revoked")).await.unwrap());
        assert!(
            matches!(
                approvals.take(&recording.text("approved")).await,
                Err(ApprovalError::Chain(_))
            ),
            "heights do not go back"
        );
        copy(&place.data(), &after);

        // The whole partition as it was before the revocation; then only the chain's part of it;
        // then what somebody made himself.
        let put_back = |from: &Path| {
            std::fs::remove_dir_all(place.data()).unwrap();
            copy(from, &place.data());
        };
        put_back(&before);
        assert!(!matches!(place.open(&node).await.decide(&good), Decision::Allow(_)));
        put_back(&after);
        std::fs::remove_file(kept(&place.data())).unwrap();
        std::fs::copy(kept(&before), place.data().join(kept(&before).file_name().unwrap()))
            .unwrap();
        let unusable = place.open(&node).await;
        let ChainReason::Unusable(why) = denied(&unusable, &good) else { panic!("used") };
        assert!(why.contains("put back"), "{why}");
        // A longer log, or a bundle, does not make it good again.
        assert!(unusable.take(&recording.text("approved")).await.is_err());
        let more = statement(4, &format!("sha256:{}", "44".repeat(32)));
        unusable.extend(&(recording.log() + &more)).await.unwrap();
        assert!(matches!(denied(&place.open(&node).await, &good), ChainReason::Unusable(_)));
        std::fs::copy(kept(&after), place.data().join(kept(&after).file_name().unwrap())).unwrap();
        let again = place.open(&node).await;
        assert!(
            matches!(denied(&again, &good), ChainReason::Revoked { .. }),
            "it was not forgotten"
        );
        let own = std::fs::read_to_string(kept(&after)).unwrap().replace("revoked", "absent");
        std::fs::write(place.data().join(kept(&after).file_name().unwrap()), own).unwrap();
        assert!(matches!(denied(&place.open(&node).await, &good), ChainReason::Unusable(_)));
        // The owner says that he knows: from the checkpoint again.
        let approvals = place.open(&node).await;
        approvals.reset().await.unwrap();
        assert_eq!(denied(&approvals, &good), ChainReason::NotFollowed);
        approvals.take(&recording.text("revoked")).await.unwrap();
        assert!(matches!(denied(&place.open(&node).await, &good), ChainReason::Revoked { .. }));
    });
}

#[test]
fn a_kill_between_any_two_steps_of_keeping_leaves_one_state_whole() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let node = recording.node(&[], 60);
        let good = recording.digest(0);
        let approvals = place.begin(&node, &recording).await;
        approvals.take(&recording.text("approved")).await.unwrap();
        let first = kept(&place.data());
        let text = std::fs::read(&first).unwrap();
        approvals.take(&recording.text("revoked")).await.unwrap();
        assert!(!first.exists() && kept(&place.data()) != first, "one is kept");
        // After the mark, before the older one is gone.
        std::fs::write(&first, &text).unwrap();
        assert!(matches!(denied(&place.open(&node).await, &good), ChainReason::Revoked { .. }));
        // Before the mark: what is newer is not yet anything, half or whole.
        std::fs::write(place.data().join(format!("chain-{}.json", "ab".repeat(32))), b"half")
            .unwrap();
        assert!(matches!(denied(&place.open(&node).await, &good), ChainReason::Revoked { .. }));
    });
}

#[test]
#[cfg(feature = "engine-tests")] // without it a program has no such steps: cargo xtask test engine
fn a_kill_at_any_step_of_keeping_loses_nothing_that_counted() {
    use std::os::unix::process::ExitStatusExt as _;
    const STEPS: [(&str, bool); 3] =
        [("chain-written", false), ("marked", true), ("chain-marked", true)];
    for (step, counts) in STEPS {
        let recording = Recording::read();
        let (good, toml) = (recording.digest(0), recording.toml(&[], 60));
        let node: config::Node = config::parse("node.toml", &toml).unwrap();
        let Place { dir, _swtpm: swtpm, tpm } = run(async {
            let place = Place::make().await;
            place.begin(&node, &recording).await.take(&recording.text("approved")).await.unwrap();
            place
        });
        drop(tpm);
        std::fs::write(dir.path().join("node.toml"), &toml).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "process"])
            .env("BASALT_FAILPOINT", step)
            .env("BASALT_PLACE", dir.path())
            .env("BASALT_TPM", &swtpm.tcti)
            .output()
            .unwrap();
        // What steps::step does; an assertion that failed is something else.
        assert_eq!(
            child.status.signal(),
            Some(6),
            "{step}: {}",
            String::from_utf8_lossy(&child.stdout)
        );
        run(async {
            let tpm = swtpm.open().await;
            let place = Place { dir, _swtpm: swtpm, tpm };
            let approvals = place.open(&node).await;
            match approvals.decide(&good) {
                Decision::Allow(_) => assert!(!counts, "{step}: what was marked is lost"),
                _ => assert!(
                    counts && matches!(denied(&approvals, &good), ChainReason::Revoked { .. }),
                    "{step}"
                ),
            }
            // It goes on from there, and one state is left.
            approvals.take(&recording.text("revoked")).await.unwrap();
            assert!(
                matches!(denied(&place.open(&node).await, &good), ChainReason::Revoked { .. }),
                "{step}"
            );
            kept(&place.data());
        });
    }
}

#[test]
#[cfg(feature = "engine-tests")]
#[ignore = "the process that the test above ends"]
fn process() {
    let dir = PathBuf::from(std::env::var_os("BASALT_PLACE").unwrap());
    let node: config::Node =
        config::parse("node.toml", &std::fs::read_to_string(dir.join("node.toml")).unwrap())
            .unwrap();
    run(async {
        let tpm = Tpm::open(&std::env::var("BASALT_TPM").unwrap()).await.unwrap();
        let root =
            vault(&tpm, Pcr::default(), &dir.join("data"), &dir, &node.keys).open().await.unwrap();
        let approvals =
            Approvals::open(&node, &dir.join("etc"), &dir.join("data"), 0, tpm, Arc::new(root))
                .await
                .unwrap();
        approvals.take(&Recording::read().text("revoked")).await.unwrap();
    });
}

/// A checkpoint of the log, which one witness saw so long ago.
fn witnessed(log: &str, ago: u64) -> (config::Checkpoints, String) {
    let (key, witness) = (SigningKey::from_bytes(&[6; 32]), SigningKey::from_bytes(&[7; 32]));
    let of =
        |name: &str, role, key: &SigningKey| NoteKey::new(name, role, key.verifying_key()).unwrap();
    let (log_key, witness_key) = (of("t", Role::Log, &key), of("w", Role::Witness, &witness));
    let leaves = trustctl::statement::leaves(log, "t").unwrap();
    let cosigned = trustctl::witness::cosign(log, &leaves, "t", &key, &[], &[]).unwrap().log;
    let body = cosigned.rsplit_once("\n\n").unwrap().0;
    let body = format!("{}\n", &body[body.rfind("\n\n").map_or(0, |at| at + 2)..]);
    let time = now() - ago;
    let signature = ed25519_dalek::Signer::sign(
        &witness,
        format!("cosignature/v1\ntime {time}\n{body}").as_bytes(),
    );
    let blob = [witness_key.id().as_slice(), &time.to_be_bytes(), &signature.to_bytes()].concat();
    let line = format!(
        "\u{2014} w {}\n",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, blob)
    );
    let checkpoints = config::Checkpoints {
        log: log_key.to_string(),
        witnesses: vec![witness_key.to_string()],
        threshold: 1,
        max_age_s: 60,
        stale_grace_s: 86_400,
    };
    (checkpoints, cosigned + &line)
}

#[test]
fn a_grace_hides_nothing_that_has_none() {
    run(async {
        // The log is too old, which has its grace; the chain revokes.
        let (place, recording) = (Place::make().await, Recording::read());
        let mut node = recording.node(&[], 60);
        let (checkpoints, log) = witnessed(&recording.log(), 3600);
        node.ledger.checkpoints = Some(checkpoints);
        let good = recording.digest(0);
        let approvals = place.open(&node).await;
        approvals.extend(&log).await.unwrap();
        drop(approvals.decide(&good));
        approvals.take(&recording.text("approved")).await.unwrap();
        let Decision::Deny(reason @ Reason::Stale { .. }) = approvals.decide(&good) else {
            panic!("{:?}", approvals.decide(&good))
        };
        assert!(approvals.grace(&reason) > Duration::ZERO);
        approvals.take(&recording.text("attested")).await.unwrap();
        assert!(matches!(denied(&approvals, &good), ChainReason::Revoked { .. }));

        // What is kept of the chain is too old, which has its grace; what could not be kept
        // revokes.
        let place = Place::make().await;
        let mut node = recording.node(&[], 4000);
        let chain = node.ledger.chain.as_mut().unwrap();
        (chain.max_age_s, chain.stale_grace_s) = (3600, 86_400);
        let approvals = place.begin(&node, &recording).await;
        approvals.take(&recording.text("approved")).await.unwrap();
        assert!(matches!(denied(&approvals, &good), ChainReason::Stale { .. }));
        std::fs::create_dir(place.data().join("ledger.new")).unwrap();
        approvals.take(&recording.text("attested")).await.unwrap_err();
        assert!(matches!(denied(&approvals, &good), ChainReason::Revoked { .. }));

        // Of an index that is revoked a part was not asked for yet.
        let reason = |reason| Reason::Chain { digest: good.clone(), reason };
        let (revoked, not_asked) =
            (reason(ChainReason::Revoked { seq: 1, block: 1 }), reason(ChainReason::NotAsked));
        let both = approvals.sterner(Decision::Deny(revoked.clone()), not_asked.clone());
        assert_eq!(both, Decision::Deny(revoked.clone()));
        assert_eq!(
            approvals.sterner(Decision::Deny(not_asked), revoked.clone()),
            Decision::Deny(revoked)
        );
    });
}

#[test]
fn bad_news_counts_even_if_it_cannot_be_kept() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let node = recording.node(&[], 60);
        let good = recording.digest(0);
        let approvals = place.begin(&node, &recording).await;
        // A folder where the mark is written: as full as a disk can be.
        let full = place.data().join("ledger.new");
        std::fs::create_dir(&full).unwrap();
        assert!(approvals.take(&recording.text("approved")).await.is_err());
        assert_eq!(
            denied(&approvals, &good),
            ChainReason::NotFollowed,
            "good news waits until it is kept"
        );
        std::fs::remove_dir(&full).unwrap();
        assert!(approvals.take(&recording.text("approved")).await.unwrap());
        assert!(matches!(approvals.decide(&good), Decision::Allow(_)));
        std::fs::create_dir(&full).unwrap();
        assert!(approvals.take(&recording.text("attested")).await.is_err());
        assert!(matches!(denied(&approvals, &good), ChainReason::Revoked { .. }));
        // The state of before is still the one that is marked.
        assert!(matches!(place.open(&node).await.decide(&good), Decision::Allow(_)));
    });
}

#[test]
fn what_is_in_an_approved_index_may_be_revoked_by_itself() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let approvals = place.begin(&recording.node(&[], 60), &recording).await;
        // In neither; then in the chain alone.
        let stranger = format!("sha256:{}", "66".repeat(32));
        approvals.take(&recording.text("approved")).await.unwrap();
        assert!(matches!(
            approvals.forbids(&stranger),
            Some(Reason::Chain { reason: ChainReason::NotAsked, .. })
        ));
        assert!(
            approvals.forbids(&recording.digest(0)).is_none()
                && approvals.forbids(&recording.digest(2)).is_none()
        );
        let revoked = approvals.forbids(&recording.digest(1)).unwrap();
        assert!(matches!(revoked, Reason::Chain { reason: ChainReason::Revoked { .. }, .. }));
        // Relays that stop telling of it do not keep it from being revoked: what is known of it is
        // too old.
        let place = Place::make().await;
        let mut node = recording.node(&[], 4000);
        node.ledger.chain.as_mut().unwrap().max_age_s = 3600;
        let approvals = place.begin(&node, &recording).await;
        approvals.take(&recording.text("approved")).await.unwrap();
        let stale = approvals.forbids(&recording.digest(2)).unwrap();
        assert!(
            matches!(stale, Reason::Chain { reason: ChainReason::Stale { .. }, .. }),
            "{stale}"
        );
    });
}

#[test]
fn too_old_is_denied_after_its_grace() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let mut node = recording.node(&[], 4000);
        node.ledger.chain.as_mut().unwrap().max_age_s = 3600;
        let approvals = place.begin(&node, &recording).await;
        approvals.take(&recording.text("approved")).await.unwrap();
        let Decision::Deny(reason) = approvals.decide(&recording.digest(0)) else {
            panic!("allowed")
        };
        assert!(
            matches!(&reason, Reason::Chain { reason: ChainReason::Stale { .. }, .. }),
            "{reason}"
        );
        assert_eq!(approvals.grace(&reason), Duration::ZERO);
        node.ledger.chain.as_mut().unwrap().stale_grace_s = 7200;
        let again = place.open(&node).await;
        assert_eq!(again.grace(&reason), Duration::MAX);
        // Right after a restart the relays are waited for: what was kept may be older than what was
        // known.
        node.ledger.chain.as_mut().unwrap().stale_grace_s = 0;
        let again = place.open(&node).await;
        assert!((Duration::from_secs(60)..Duration::MAX).contains(&again.grace(&reason)));
        again.take(&recording.text("approved")).await.unwrap();
        assert_eq!(again.grace(&reason), Duration::ZERO);
    });
}

/// What a relay does.
#[derive(Clone)]
enum Manner {
    Gives(String),
    /// Says that more will come than comes.
    Breaks(String),
    Silent,
    /// A byte now and then: each within what it may take.
    Trickles,
    Refuses,
}

/// A relay that answers in its own manner; what it was asked for.
async fn relay(manner: Manner) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (manner, heard) = (manner.clone(), heard.clone());
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let length = client.read(&mut head).await.unwrap_or_default();
                heard.lock().unwrap().push(
                    String::from_utf8_lossy(&head[..length])
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
                let (status, body, more) = match manner {
                    Manner::Gives(text) => ("200 OK", text, 0),
                    Manner::Breaks(text) => ("200 OK", text[..text.len() / 2].to_owned(), 1000),
                    Manner::Silent => return tokio::time::sleep(PATIENCE).await,
                    Manner::Trickles => {
                        let _ = client
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
                            .await;
                        while client.write_all(b" ").await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(500)).await;
                        }
                        return;
                    }
                    Manner::Refuses => ("502 Bad Gateway", String::new(), 0),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len() + more
                );
                let _ = client.write_all(head.as_bytes()).await;
                let _ = client.write_all(body.as_bytes()).await;
            });
        }
    });
    (format!("http://{address}/v1/bundle"), asked)
}

#[test]
fn a_lying_stale_silent_or_broken_relay_is_named_and_the_others_are_asked() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let good = recording.digest(0);
        let newest = recording.text("revoked");
        // It says that the image is still approved.
        let mut lie: Value = serde_json::from_str(&newest).unwrap();
        let approved: Value = serde_json::from_str(&recording.text("approved")).unwrap();
        lie["final"]["records"] = approved["final"]["records"].clone();
        let file = place.dir.path().join("bundle.json");
        std::fs::write(&file, &newest).unwrap();
        let manners = [
            (Manner::Gives(lie.to_string()), "proof of the record"),
            (Manner::Silent, "says nothing"),
            (Manner::Breaks(newest.clone()), ""),
            (Manner::Refuses, "502"),
            (Manner::Gives("{}".into()), "basalt-chain-v1"),
            (Manner::Gives(" ".repeat(5 << 20)), ""),
        ];
        let mut urls = Vec::new();
        for (manner, _) in &manners {
            urls.push(relay(manner.clone()).await.0);
        }
        let (honest, asked) = relay(Manner::Gives(newest.clone())).await;
        let (stale, _) = relay(Manner::Gives(recording.text("approved"))).await;
        let relays = [
            urls.clone(),
            vec![
                honest.clone(),
                stale.clone(),
                format!("file:{}", file.display()),
                "file:/nowhere".into(),
            ],
        ]
        .concat();
        let node = recording.node(&relays, 60);
        let approvals = Arc::new(place.begin(&node, &recording).await);
        denied(&approvals, &good);
        let relays = Arc::new(
            Relays::new(&node, Client::new(&[], Duration::from_secs(2)).unwrap()).unwrap(),
        );
        let keeping = tokio::spawn(relays.clone().keep(approvals.clone(), || ()));
        let heard = async |source: &str, says: Option<&str>| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let found = relays.heard().get(source).map(|heard| heard.problem.clone());
                match (&found, says) {
                    (Some(None), None) => return,
                    (Some(Some(problem)), Some(says)) if problem.contains(says) => return,
                    _ => {
                        assert!(Instant::now() < deadline, "{source}: {found:?}, expected {says:?}")
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        heard(&honest, None).await;
        for (url, (_, says)) in urls.iter().zip(&manners) {
            heard(url, Some(says)).await;
        }
        heard(&stale, Some("it is behind")).await;
        heard(&format!("file:{}", file.display()), None).await;
        heard("file:/nowhere", Some("cannot be read")).await;
        assert!(matches!(denied(&approvals, &good), ChainReason::Revoked { .. }));
        let first = asked.lock().unwrap().first().cloned().unwrap();
        assert!(
            first.contains("checkpoint=0x")
                && first.contains(&good.replace("sha256:", "digest=0x")),
            "{first}"
        );
        // Once it is under way it asks from its period on, and at once for what nobody asked for.
        let deadline = Instant::now() + PATIENCE;
        while !asked.lock().unwrap().iter().any(|line| line.contains("period=")) {
            assert!(Instant::now() < deadline, "{:?}", asked.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        keeping.abort();
    });
}

#[test]
fn a_relay_that_trickles_holds_up_no_other() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let (slow, of_slow) = relay(Manner::Trickles).await;
        let (honest, of_honest) = relay(Manner::Gives(recording.text("approved"))).await;
        let node = recording.node(&[slow, honest], 60);
        let approvals = Arc::new(place.begin(&node, &recording).await);
        let relays = Arc::new(Relays::new(&node, Client::new(&[], PATIENCE).unwrap()).unwrap());
        let keeping = tokio::spawn(relays.keep(approvals.clone(), || ()));
        let until = async |what: &str, done: &dyn Fn() -> bool| {
            let deadline = Instant::now() + PATIENCE;
            while !done() {
                assert!(Instant::now() < deadline, "{what}: {:?}", of_honest.lock().unwrap());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until("again and again", &|| of_honest.lock().unwrap().len() > 3).await;
        assert_eq!(of_slow.lock().unwrap().len(), 1, "it is still at its first answer");
        keeping.abort();
    });
}

#[test]
fn all_relays_are_asked_at_once_for_what_nobody_asked_for_before() {
    run(async {
        let (place, recording) = (Place::make().await, Recording::read());
        let (one, of_one) = relay(Manner::Gives(recording.text("approved"))).await;
        let (other, of_other) = relay(Manner::Gives(recording.text("approved"))).await;
        let mut node = recording.node(&[one, other], 60);
        node.ledger.chain.as_mut().unwrap().poll_s = 3600;
        let approvals = Arc::new(place.begin(&node, &recording).await);
        let relays = Arc::new(Relays::new(&node, Client::new(&[], PATIENCE).unwrap()).unwrap());
        let keeping = tokio::spawn(relays.clone().keep(approvals.clone(), || ()));
        let until = async |done: &dyn Fn() -> bool| {
            let deadline = Instant::now() + PATIENCE;
            while !done() {
                assert!(
                    Instant::now() < deadline,
                    "{:?}, {:?}",
                    of_one.lock().unwrap(),
                    of_other.lock().unwrap()
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until(&|| relays.heard().values().filter(|heard| heard.problem.is_none()).count() == 2)
            .await;
        let stranger = format!("sha256:{}", "77".repeat(32));
        assert!(approvals.forbids(&stranger).is_some());
        let wanted = stranger.replace("sha256:", "0x");
        let asked = |of: &Arc<std::sync::Mutex<Vec<String>>>| {
            of.lock().unwrap().iter().any(|line| line.contains(&wanted))
        };
        until(&|| asked(&of_one) && asked(&of_other)).await;
        keeping.abort();
    });
}
