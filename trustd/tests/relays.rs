//! Polling of relays, against a software TPM and relays that lie, are behind, or do not answer.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/chain_fixture.rs"]
mod chain_fixture;
mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basalt_trustd::admission::relays::RelayPoller;
use basalt_trustd::images::fetch::RegistryClient;
use chain_fixture::{Fixture, Recording, denial, run};
use ledger::ChainReason;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Time after which a test fails.
const TIMEOUT: Duration = Duration::from_secs(120);
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Behaviour of a relay.
#[derive(Clone)]
enum Behavior {
    /// Answers with this text.
    Answer(String),
    /// Announces more bytes than it sends: half of the text.
    CutOff(String),
    /// Accepts connections and never answers.
    Silence,
    /// Sends a byte every half second, which no stall timeout notices.
    Trickle,
    /// Answers with an error.
    Failure,
}

/// A relay, and the request lines that it received.
struct FakeRelay {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeRelay {
    async fn start(behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/bundle", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let received = requests.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, behavior.clone(), received.clone()));
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn was_asked_for(&self, text: &str) -> bool {
        self.requests().iter().any(|line| line.contains(text))
    }
}

async fn serve(mut client: TcpStream, behavior: Behavior, received: Arc<Mutex<Vec<String>>>) {
    let mut head = [0; 4096];
    let length = client.read(&mut head).await.unwrap_or_default();
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    received.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
    let (status, body, missing) = match behavior {
        Behavior::Answer(text) => ("200 OK", text, 0),
        Behavior::CutOff(text) => ("200 OK", text[..text.len() / 2].to_owned(), 1000),
        Behavior::Silence => return tokio::time::sleep(TIMEOUT).await,
        Behavior::Trickle => {
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
            while client.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            return;
        }
        Behavior::Failure => ("502 Bad Gateway", String::new(), 0),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len() + missing
    );
    let _ = client.write_all(head.as_bytes()).await;
    let _ = client.write_all(body.as_bytes()).await;
}

fn poller(node: &config::Node, stall_timeout: Duration) -> Arc<RelayPoller> {
    Arc::new(RelayPoller::new(node, RegistryClient::new(&[], stall_timeout).unwrap()).unwrap())
}

/// Waits until `is_done`; fails with `state` after the timeout.
async fn wait_until(is_done: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_done() {
        assert!(Instant::now() < deadline, "{}", state());
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Waits until the last poll of a relay failed with a problem that contains `expected`. `None`
/// waits for a success.
async fn wait_for_status(poller: &RelayPoller, relay: &str, expected: Option<&str>) {
    let problem = || poller.statuses().get(relay).map(|status| status.problem.clone());
    let is_expected = || match (problem(), expected) {
        (Some(None), None) => true,
        (Some(Some(problem)), Some(expected)) => problem.contains(expected),
        _ => false,
    };
    wait_until(is_expected, || format!("{relay}: {:?}, expected {expected:?}", problem())).await;
}

#[test]
fn every_bad_relay_is_reported_and_the_others_are_polled() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let good = recording.digest(0);
        let newest = recording.bundle("revoked");
        // This bundle claims that the image is still approved.
        let mut lie: Value = serde_json::from_str(&newest).unwrap();
        let approved: Value = serde_json::from_str(&recording.bundle("approved")).unwrap();
        lie["final"]["records"] = approved["final"]["records"].clone();
        let bad = [
            (Behavior::Answer(lie.to_string()), "proof of the record"),
            (Behavior::Silence, "stalled"),
            (Behavior::CutOff(newest.clone()), ""),
            (Behavior::Failure, "502"),
            (Behavior::Answer("{}".into()), "basalt-chain-v1"),
            (Behavior::Answer(" ".repeat(5 << 20)), ""),
        ];
        let mut expected: Vec<(String, Option<&str>)> = Vec::new();
        for (behavior, problem) in &bad {
            expected.push((FakeRelay::start(behavior.clone()).await.url, Some(problem)));
        }
        let honest = FakeRelay::start(Behavior::Answer(newest.clone())).await;
        let stale = FakeRelay::start(Behavior::Answer(recording.bundle("approved"))).await;
        let file = fixture.dir.path().join("bundle.json");
        std::fs::write(&file, &newest).unwrap();
        expected.extend([
            (honest.url.clone(), None),
            (stale.url.clone(), Some("it is behind")),
            (format!("file:{}", file.display()), None),
            ("file:/nowhere".into(), Some("cannot be read")),
        ]);
        let relays: Vec<String> = expected.iter().map(|(relay, _)| relay.clone()).collect();
        let node = recording.node(&relays, 60);
        let admission = Arc::new(fixture.open_with_log(&node, &recording).await);
        denial(&admission, &good);
        let poller = poller(&node, Duration::from_secs(2));
        let polling = tokio::spawn(poller.clone().poll_forever(admission.clone(), || ()));
        // The stale relay counts as behind only after the honest one answered.
        wait_for_status(&poller, &honest.url, None).await;
        for (relay, problem) in &expected {
            wait_for_status(&poller, relay, *problem).await;
        }
        assert!(matches!(denial(&admission, &good), ChainReason::Revoked { .. }));
        let first = honest.requests().into_iter().next().unwrap();
        let digest = good.replace("sha256:", "digest=0x");
        assert!(first.contains("checkpoint=0x") && first.contains(&digest), "{first}");
        // After the first bundle the node asks from its own period on.
        wait_until(|| honest.was_asked_for("period="), || format!("{:?}", honest.requests())).await;
        polling.abort();
    });
}

#[test]
fn a_slow_relay_does_not_delay_the_others() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let slow = FakeRelay::start(Behavior::Trickle).await;
        let honest = FakeRelay::start(Behavior::Answer(recording.bundle("approved"))).await;
        let node = recording.node(&[slow.url.clone(), honest.url.clone()], 60);
        let admission = Arc::new(fixture.open_with_log(&node, &recording).await);
        let polling = tokio::spawn(poller(&node, TIMEOUT).poll_forever(admission, || ()));
        wait_until(|| honest.requests().len() > 3, || format!("{:?}", honest.requests())).await;
        assert_eq!(slow.requests().len(), 1, "the slow relay is still sending its first answer");
        polling.abort();
    });
}

#[test]
fn all_relays_are_polled_immediately_for_a_new_image() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let answer = Behavior::Answer(recording.bundle("approved"));
        let (one, other) = (FakeRelay::start(answer.clone()).await, FakeRelay::start(answer).await);
        let mut node = recording.node(&[one.url.clone(), other.url.clone()], 60);
        node.ledger.chain.as_mut().unwrap().poll_s = 3600;
        let admission = Arc::new(fixture.open_with_log(&node, &recording).await);
        let poller = poller(&node, TIMEOUT);
        let polling = tokio::spawn(poller.clone().poll_forever(admission.clone(), || ()));
        wait_for_status(&poller, &one.url, None).await;
        wait_for_status(&poller, &other.url, None).await;
        let new = format!("sha256:{}", "77".repeat(32));
        assert!(admission.find_member_denial(&new).is_some());
        let record = new.replace("sha256:", "0x");
        wait_until(
            || one.was_asked_for(&record) && other.was_asked_for(&record),
            || format!("{:?}, {:?}", one.requests(), other.requests()),
        )
        .await;
        polling.abort();
    });
}
