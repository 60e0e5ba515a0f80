//! Polling of log sources, against a software TPM and servers with and without ranges.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basalt_trustd::admission::Admission;
use basalt_trustd::admission::log_sources::LogPoller;
use basalt_trustd::images::fetch::RegistryClient;
use basalt_trustd::tpm::Tpm;
use common::{Swtpm, vault};
use ledger::{Decision, ImageStatement, LogEntry, SigningKey, Status};
use measure::Pcr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn digest(seq: u64) -> String {
    format!("sha256:{seq:064x}")
}

/// Returns lines of the log, each signed by these approvers.
fn lines(seqs: std::ops::RangeInclusive<u64>, signers: &[u8]) -> String {
    let line = |seq| {
        let status = Status::Approved;
        let statement = ImageStatement { digest: digest(seq), exp: u64::MAX, iat: 0, seq, status };
        let mut entry = LogEntry::new(statement);
        signers.iter().for_each(|n| entry.sign("t", &key(*n)));
        entry.line() + "\n"
    };
    seqs.map(line).collect()
}

/// What a server does with a request for a range.
#[derive(Clone, Copy, PartialEq)]
enum Ranges {
    /// Sends the range.
    Sent,
    /// Sends everything.
    Ignored,
    /// Claims to send another range than the requested one.
    Wrong,
    /// Answers that there is no such range.
    Refused,
}

struct State {
    text: String,
    ranges: Ranges,
    requests: usize,
    /// Length of all bodies.
    sent: usize,
}

/// A server of a log.
struct Server {
    url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    async fn start(text: &str, ranges: Ranges) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ledger", listener.local_addr().unwrap());
        let state = State { text: text.to_owned(), ranges, requests: 0, sent: 0 };
        let state = Arc::new(Mutex::new(state));
        let served = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, served.clone()));
            }
        });
        Self { url, state }
    }

    fn set(&self, text: &str) {
        self.state.lock().unwrap().text = text.to_owned();
    }

    /// Returns the number of requests and of bytes since the last call.
    fn take_counts(&self) -> (usize, usize) {
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.requests), std::mem::take(&mut state.sent))
    }
}

async fn serve(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = [0; 4096];
    let length = client.read(&mut head).await.unwrap_or_default();
    let head = String::from_utf8_lossy(&head[..length]).to_lowercase();
    let start = head.split_once("range: bytes=").and_then(|(_, rest)| {
        let end = rest.find('-')?;
        rest[..end].parse::<usize>().ok()
    });
    let (status, body, range) = {
        let mut state = state.lock().unwrap();
        state.requests += 1;
        let (text, len) = (state.text.clone(), state.text.len());
        let answer = match (start, state.ranges) {
            (Some(start), Ranges::Sent) if start < len => {
                ("206 Partial Content", text[start..].to_owned(), format!("{start}-{}", len - 1))
            }
            (Some(start), Ranges::Wrong) if start < len => {
                ("206 Partial Content", text, format!("0-{}", len - 1))
            }
            (Some(_), Ranges::Sent | Ranges::Refused) => {
                ("416 Range Not Satisfiable", String::new(), "*".into())
            }
            _ => ("200 OK", text, String::new()),
        };
        state.sent += answer.1.len();
        answer
    };
    let range = if range.is_empty() {
        range
    } else {
        format!("content-range: bytes {range}/{}\r\n", body.len())
    };
    let head = format!("HTTP/1.1 {status}\r\n{range}content-length: {}\r\n\r\n", body.len());
    let _ = client.write_all(head.as_bytes()).await;
    let _ = client.write_all(body.as_bytes()).await;
}

/// A node with one source.
struct Node {
    admission: Arc<Admission>,
    poller: LogPoller,
    _swtpm: Swtpm,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn new(server: &Server, log: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["etc", "data"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let swtpm = Swtpm::start(dir.path());
        let tpm = swtpm.open().await;
        let approvers =
            [1, 2].map(|n| format!("{:?}", measure::hex(key(n).verifying_key().as_bytes())));
        let text = format!(
            "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:0\"\n\
             [owner]\n[ledger]\nkind = \"log\"\nname = \"t\"\nthreshold = 1\n\
             approvers = [{}]\nsources = [\"{}\"]\n",
            approvers.join(", "),
            server.url
        );
        let node = config::parse("node.toml", &text).unwrap();
        let admission = Arc::new(open(&node, dir.path(), &tpm).await);
        if !log.is_empty() {
            admission.extend_log(log).await.unwrap();
        }
        let client = RegistryClient::new(&[], Duration::from_secs(10)).unwrap();
        let poller = LogPoller::new(&node, Path::new("/nonexistent"), client).unwrap();
        Self { admission, poller, _swtpm: swtpm, _dir: dir }
    }

    async fn poll(&self) -> bool {
        self.poller.poll_all(&self.admission).await
    }

    fn checked_entries(&self) -> u64 {
        self.poller.checked_entries().values().sum()
    }

    fn problem(&self) -> String {
        let status = self.poller.statuses().into_values().next();
        status.and_then(|status| status.problem).unwrap_or_default()
    }

    fn allows(&self, seq: u64) -> bool {
        matches!(self.admission.decide(&digest(seq)), Decision::Allow(_))
    }
}

async fn open(node: &config::Node, dir: &Path, tpm: &Tpm) -> Admission {
    let data = dir.join("data");
    let vault = vault(tpm, Pcr::default(), &data, dir, &node.keys);
    let root_key = Arc::new(vault.open().await.unwrap());
    Admission::open(node, &dir.join("etc"), &data, 0, tpm.clone(), root_key).await.unwrap()
}

/// Returns a line by a key that is not an approver's.
fn bad_line(seq: u64) -> String {
    lines(seq..=seq, &[9])
}

#[test]
fn a_bad_line_after_a_good_log_costs_one_verification_and_not_one_at_every_poll() {
    run(async {
        for ranges in [Ranges::Ignored, Ranges::Sent, Ranges::Wrong, Ranges::Refused] {
            let known = lines(1..=200, &[1]);
            let server = Server::start(&(known.clone() + &bad_line(201)), ranges).await;
            let node = Node::new(&server, &known).await;
            for _ in 0..10 {
                assert!(!node.poll().await);
                assert!(node.problem().contains("line 201 is not a valid"), "{}", node.problem());
            }
            assert_eq!(node.checked_entries(), 1);
            // The source is repaired.
            server.set(&(known.clone() + &lines(201..=201, &[1])));
            assert!(node.poll().await);
            assert!(!node.poll().await);
            assert_eq!((node.checked_entries(), node.problem().as_str()), (2, ""));
            assert!(node.allows(201));
        }
    });
}

#[test]
fn only_what_is_new_is_fetched_from_a_server_with_ranges() {
    run(async {
        let known = lines(1..=300, &[1]);
        let server = Server::start(&known, Ranges::Sent).await;
        let node = Node::new(&server, &known).await;
        let line = known.len() / 300;
        assert!(!node.poll().await);
        let (requests, sent) = server.take_counts();
        assert!(requests == 1 && sent < 2 * line, "{requests} requests, {sent} bytes");
        let longer = known.clone() + &lines(301..=302, &[1]);
        server.set(&longer);
        assert!(node.poll().await && node.allows(302));
        let (requests, sent) = server.take_counts();
        assert!(requests == 1 && sent < 4 * line, "{requests} requests, {sent} bytes");
        // An earlier entry got another signature, so that the part begins within a line.
        let signed = lines(1..=1, &[1, 2]) + &longer[known.find('\n').unwrap() + 1..];
        let longest = signed + &lines(303..=303, &[1]);
        server.set(&longest);
        assert!(node.poll().await && node.allows(303), "{}", node.problem());
        assert_eq!(server.take_counts().0, 2);
        // The source goes back to an older state.
        server.set(&lines(1..=10, &[1]));
        assert!(!node.poll().await);
        assert!(node.problem().contains("it is behind: its log ends at entry"));
    });
}

#[test]
fn a_source_that_sends_other_refused_text_each_time_has_to_wait() {
    run(async {
        let server = Server::start("", Ranges::Ignored).await;
        let node = Node::new(&server, "").await;
        // Approvers signed the lines, but they never are a whole log.
        let good = lines(1..=1200, &[1]);
        let mut polls = 0;
        while !node.problem().contains("it is asked again in") {
            server.set(&(good.clone() + &bad_line(1201 + polls)));
            assert!(!node.poll().await);
            polls += 1;
            assert!(polls < 10, "the budget is never used up");
        }
        assert_eq!(node.checked_entries(), 1201 * polls);
        server.take_counts();
        server.set(&good);
        assert!(!node.poll().await);
        assert_eq!(server.take_counts(), (0, 0), "the source is not asked");
        // The owner's log is taken meanwhile.
        assert_eq!(node.admission.extend_log(&good).await.unwrap(), (1200, true));
    });
}

#[test]
fn the_gates_thread_decides_while_a_long_log_is_verified() {
    run(async {
        let server = Server::start("", Ranges::Ignored).await;
        let node = Node::new(&server, &lines(1..=1, &[1])).await;
        server.set(&lines(1..=4000, &[1, 2]));
        let admission = node.admission.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        // Decides on the thread of the runtime, as the gate does, and takes the longest pause.
        let deciding = tokio::spawn(async move {
            let (mut longest, mut decisions, mut stopped) = (Duration::ZERO, 0, stopped);
            loop {
                let began = std::time::Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _ = admission.decide(&digest(1));
                longest = longest.max(began.elapsed());
                decisions += 1;
                if stopped.try_recv().is_ok() {
                    return (longest, decisions);
                }
            }
        });
        let began = std::time::Instant::now();
        assert!(node.poll().await);
        let verified_in = began.elapsed();
        stop.send(()).unwrap();
        let (longest, decisions) = deciding.await.unwrap();
        assert!(decisions > 10, "{decisions} decisions in {verified_in:?}");
        assert!(longest < verified_in / 2, "a pause of {longest:?} in {verified_in:?}");
    });
}
