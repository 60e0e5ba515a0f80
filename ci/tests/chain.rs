//! A node that follows a chain, with what was recorded on a real network (`cargo xtask test
//! chain`), given by a relay on this machine.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use basalt_ci::{Card, SOON, pause, with_statement};
use ledger::Status;
use serde_json::{Value, json};

/// Gives one bundle to whoever asks.
struct Relay {
    port: u16,
    text: Arc<Mutex<String>>,
}

impl Relay {
    fn start(text: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay =
            Self { port: listener.local_addr().unwrap().port(), text: Arc::new(Mutex::new(text)) };
        let text = relay.text.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(mut client), body) = (client, text.lock().unwrap().clone()) else {
                    continue;
                };
                let _ = client.read(&mut [0; 4096]);
                // An empty one is a relay that is gone.
                let _ = write!(
                    client,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        relay
    }
}

/// The image for QEMU's board with a node.toml of its own.
fn build(layer: &Path) -> PathBuf {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(std::env::var_os("BASALT_XTASK").unwrap())
        .args(["build", "disk-virt", "--machine", "virt", "--layer"])
        .arg(layer)
        .current_dir(repo)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(output.status.success(), "{said}");
    let (_, dir) = said.trim_end().rsplit_once(" is in ").unwrap();
    PathBuf::from(dir).join("basalt-virt.img")
}

#[test]
fn a_node_runs_what_the_chain_approves_and_stops_what_it_revokes() {
    let recording: Value =
        serde_json::from_str(include_str!("../../lib/ledger/tests/ethereum/devnet-minimal.json"))
            .unwrap();
    let bundles = recording["bundles"].as_array().unwrap();
    let bundle = |name: &str| {
        bundles.iter().find(|recorded| recorded["name"] == name).unwrap()["bundle"].to_string()
    };
    let (archive, digest) = pause::image();
    assert_eq!(
        recording["digests"][3],
        digest.replace("sha256:", "0x"),
        "the module's bytes changed: record anew with cargo xtask test chain"
    );
    let relay = Relay::start(bundle("approved"));

    // The network began so that the recording was made just now: nothing that is signed knows the
    // time.
    let last = bundles.iter().map(|recorded| recorded["now"].as_u64().unwrap()).max().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut node = std::fs::read_to_string(repo.join("configs/node.toml"))
        .unwrap()
        .replace("kind = \"log\"", "kind = \"ethereum\"");
    for line in recording["settings"].as_str().unwrap().lines() {
        node += &match line.split_once(" = ") {
            Some(("genesis-time", time)) => {
                format!("genesis-time = {}\n", time.parse::<u64>().unwrap() + now - last)
            }
            Some(("relays", _)) => {
                format!("relays = [\"http://10.0.2.2:{}/v1/bundle\"]\n", relay.port)
            }
            // Building and booting may take their time.
            Some(("poll-s", _)) => "poll-s = 2\nmax-age-s = 86400\n".into(),
            _ => format!("{line}\n"),
        };
    }
    let layer = tempfile::tempdir().unwrap();
    std::fs::create_dir(layer.path().join("configs")).unwrap();
    std::fs::write(layer.path().join("configs/node.toml"), node).unwrap();
    let mut card = Card::flash_image(build(layer.path()), "virt", "chain").unwrap();
    card.outside = true;

    let console = card.boot_to_ready().unwrap();
    let client = card.client();
    let log = client.get("/v1/ledger").unwrap()["log"].as_str().unwrap().to_owned();
    let longer = with_statement(&log, &digest, Status::Approved, &card.dir).unwrap();
    client.put("/v1/ledger", &json!({ "log": longer })).unwrap();
    let file = card.dir.join("image.tar");
    std::fs::write(&file, &archive).unwrap();
    trustctl::module::push(&client, &file).unwrap();
    let toml = format!(
        "memory-mib = 32\npids = 16\nstop-within-s = 1\n[image]\ndigest = \"{digest}\"\n[health]\nstays-s = 0\n"
    );
    trustctl::module::send(&client, &card.dir, "waits", wish::Aim::Run, &toml).unwrap();
    card.wait_for_module("waits", SOON, |m| m["status"]["state"] == "running").unwrap();
    let status = client.get("/v1/status").unwrap();
    assert!(status["ledger"]["chain"]["block"].as_u64().unwrap() > 0, "{status}");
    // The shipped module is approved in the log, and nobody asked the chain's approvers.
    card.wait_for_module("demo", SOON, |m| {
        m["ledger"]["code"].as_str().is_some_and(|code| code.starts_with("chain-"))
    })
    .unwrap();
    card.attest().unwrap();

    *relay.text.lock().unwrap() = bundle("attested");
    let denied =
        |m: &Value| m["ledger"]["code"] == "chain-revoked" && m["status"]["state"] != "running";
    card.wait_for_module("waits", SOON, denied).unwrap();
    drop(console);

    // Whoever keeps it from its relays does not have it forget.
    *relay.text.lock().unwrap() = String::new();
    let _console = card.boot_to_ready().unwrap();
    card.wait_for_module("waits", SOON, denied).unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        let status = card.client().get("/v1/status").unwrap();
        let heard =
            status["ledger"]["relays"].as_object().and_then(|relays| relays.values().next());
        if heard
            .and_then(|heard| heard["problem"].as_str())
            .is_some_and(|problem| problem.contains("basalt-chain-v1"))
        {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(200));
    }

    // What its owner brings is looked at like what a relay gives.
    let push = |name: &str, text: &str| {
        let file = card.dir.join(name);
        std::fs::write(&file, text).unwrap();
        card.client().upload("/v1/chain", &file)
    };
    push("revoked.json", &bundle("revoked")).unwrap();
    let refused = format!("{:#}", push("approved.json", &bundle("approved")).unwrap_err());
    assert!(
        refused.contains("never goes back")
            || refused.contains("behind")
            || refused.contains("slot"),
        "{refused}"
    );
}
