//! A node that follows a chain. A relay on this host serves bundles that `cargo xtask test chain`
//! recorded on a real network.
// Test helpers may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use api::owner::{DenialCode, Module, ModuleStatus, NodeStatus, Status as NodeState};
use basalt_ci::{Card, EVENT_TIMEOUT, append_statement, pause, poll_until};
use deployment::DesiredState;
use ledger::Status;
use serde_json::Value;

/// HTTP server that answers every request with one bundle.
struct Relay {
    port: u16,
    /// Bundle; an empty one makes every answer invalid.
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

fn node_status(card: &Card) -> NodeState {
    match card.client().status().unwrap() {
        NodeStatus::Unlocked(status) => *status,
        NodeStatus::Locked(status) => panic!("the node is locked: {}", status.locked),
    }
}

/// Builds the image for QEMU's board with the node.toml of a layer.
fn build(layer: &Path) -> PathBuf {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(std::env::var_os("BASALT_XTASK").unwrap())
        .args(["build", "disk-virt", "--machine", "virt", "--layer"])
        .arg(layer)
        .current_dir(repo)
        .output()
        .unwrap();
    let status = output.status;
    let output = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(status.success(), "{output}");
    let (_, dir) = output.trim_end().rsplit_once(" is in ").unwrap();
    PathBuf::from(dir).join("basalt-virt.img")
}

/// Returns a node.toml that follows the recorded chain through the relay on this port of the host.
fn node_toml(recording: &Value, relay_port: u16) -> String {
    // The genesis time is shifted so that the recording ends now. Nothing that is signed contains
    // the time.
    let bundles = recording["bundles"].as_array().unwrap();
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
                format!("relays = [\"http://10.0.2.2:{}/v1/bundle\"]\n", relay_port)
            }
            // Building and booting may take long.
            Some(("poll-s", _)) => "poll-s = 2\nmax-age-s = 86400\n".into(),
            _ => format!("{line}\n"),
        };
    }
    node
}

/// Approves an image in the log, uploads it, and sends a spec that runs it as the module `pause`.
fn approve_and_run(card: &Card, archive: &[u8], digest: &str) {
    let client = card.client();
    let log = client.ledger_log().unwrap();
    let longer = append_statement(&log, digest, Status::Approved, &card.dir).unwrap();
    client.push_log(longer).unwrap();
    let file = card.dir.join("image.tar");
    std::fs::write(&file, archive).unwrap();
    client.upload_image(&file).unwrap();
    let toml = format!(
        "memory-mib = 32\npids = 16\nstop-within-s = 1\n\
         [image]\ndigest = \"{digest}\"\n[health]\nstays-s = 0\n"
    );
    trustctl::module::send_spec(&client, &card.dir, "pause", DesiredState::Run, Some(&toml))
        .unwrap();
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
        "the module's bytes changed; record again with cargo xtask test chain"
    );
    let relay = Relay::start(bundle("approved"));

    let layer = tempfile::tempdir().unwrap();
    std::fs::create_dir(layer.path().join("configs")).unwrap();
    let node = node_toml(&recording, relay.port);
    std::fs::write(layer.path().join("configs/node.toml"), node).unwrap();
    let mut card = Card::flash_image(build(layer.path()), "virt", "chain").unwrap();
    card.external_network = true;

    let console = card.boot_to_ready().unwrap();
    approve_and_run(&card, &archive, &digest);
    let running = |m: &Module| matches!(m.status, ModuleStatus::Running { .. });
    card.wait_for_module("pause", EVENT_TIMEOUT, running).unwrap();
    let status = node_status(&card);
    let chain = status.ledger.log.usable().and_then(|log| log.chain.as_ref());
    assert!(chain.unwrap().head.as_ref().unwrap().block > 0, "{status:?}");
    // The log approves the shipped module, but the chain has no record of it.
    card.wait_for_module("demo", EVENT_TIMEOUT, |m| {
        m.ledger.denial().is_some_and(|code| code.as_str().starts_with("chain-"))
    })
    .unwrap();
    card.attest().unwrap();

    *relay.text.lock().unwrap() = bundle("attested");
    let denied = |m: &Module| m.ledger.denial() == Some(&DenialCode::ChainRevoked) && !running(m);
    card.wait_for_module("pause", EVENT_TIMEOUT, denied).unwrap();
    drop(console);

    // A node whose relay gives no bundle still has the revocation after a reboot.
    *relay.text.lock().unwrap() = String::new();
    let _console = card.boot_to_ready().unwrap();
    card.wait_for_module("pause", EVENT_TIMEOUT, denied).unwrap();
    poll_until(EVENT_TIMEOUT, "the problem of the relay", || {
        let status = node_status(&card);
        let relay = status.ledger.relays.values().next();
        let problem = relay.and_then(|relay| relay.problem.as_ref());
        let is_reported = problem.is_some_and(|problem| problem.contains("basalt-chain-v1"));
        if is_reported { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .unwrap();

    // A bundle of the owner is verified like one of a relay.
    let push = |name: &str, text: &str| {
        let file = card.dir.join(name);
        std::fs::write(&file, text).unwrap();
        card.client().push_bundle(&file)
    };
    push("revoked.json", &bundle("revoked")).unwrap();
    let error = format!("{:#}", push("approved.json", &bundle("approved")).unwrap_err());
    assert!(error.contains("older state") || error.contains("slot"), "{error}");
}
