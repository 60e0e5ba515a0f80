//! What nodes of a chain say when things go wrong. Against real ones: `cargo xtask test chain`.
#![cfg(feature = "chain")]
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ledger::ethereum::types::Hex;
use ledger::ethereum::{Approval, Hash};
use serde_json::{Value, json};
use trustctl::chain::registry::{self, wait_final};
use trustctl::chain::serve::{PATH, serve};
use trustctl::chain::{Beacon, Execution, Registry, Relay, Signer, pin};

type Answers = Arc<dyn Fn(&str, &Value) -> (u16, Value) + Send + Sync>;

/// A node that answers by a script: JSON-RPC by its method, anything else by its path. What it was
/// asked.
struct Scripted {
    url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Scripted {
    fn start(answers: impl Fn(&str, &Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answers, heard): (Answers, _) = (Arc::new(answers), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                reader.read_line(&mut line).unwrap();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                loop {
                    let mut header = String::new();
                    reader.read_line(&mut header).unwrap();
                    if let Some((name, value)) = header.split_once(':')
                        && name.eq_ignore_ascii_case("content-length")
                    {
                        length = value.trim().parse().unwrap();
                    }
                    if header.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let what = body["method"].as_str().map_or(path, str::to_owned);
                heard.lock().unwrap().push((what.clone(), body["params"].clone()));
                let (status, value) = answers(&what, &body["params"]);
                let text = value.to_string();
                let mut stream = stream;
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
            }
        });
        Self { url, asked }
    }

    fn asked(&self, what: &str) -> Vec<Value> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(name, _)| name == what)
            .map(|(_, params)| params.clone())
            .collect()
    }
}

fn result(value: Value) -> (u16, Value) {
    (200, json!({ "jsonrpc": "2.0", "id": 1, "result": value }))
}

fn hash(n: u8) -> Hash {
    Hash::new([n; 32])
}

fn code() -> Value {
    let kept: Value = serde_json::from_str(include_str!("../../contracts/registry.json")).unwrap();
    kept["code"].clone()
}

/// A node at which everything is in block 10 at once.
fn usual(method: &str) -> (u16, Value) {
    result(match method {
        "eth_getCode" => code(),
        "eth_call" => json!("0x"),
        "eth_estimateGas" => json!("0x11170"),
        "eth_chainId" => json!("0x7e7e"),
        "eth_getBlockByNumber" => {
            json!({ "number": "0xa", "baseFeePerGas": "0x64", "timestamp": "0x1" })
        }
        "eth_maxPriorityFeePerGas" => json!("0xffffffffffff"),
        "eth_getTransactionCount" => json!("0x3"),
        "eth_sendTransaction" | "eth_sendRawTransaction" => json!(hash(7)),
        "eth_getTransactionReceipt" => {
            json!({ "blockNumber": "0xa", "status": "0x1", "gasUsed": "0x1234", "logs": [] })
        }
        _ => Value::Null,
    })
}

#[test]
fn a_signer_of_somebody_elses_is_told_the_whole_transaction() {
    let node = Scripted::start(|method, _| usual(method));
    let execution = Execution::new(&node.url);
    let signer = Signer::Rpc { signer: Execution::new(&node.url), from: Hex([9; 20]) };
    let registry = Registry { node: &execution, address: Hex([3; 20]) };
    let mined = registry.approve(&signer, &hash(1), Approval::Proof, 4_000_000_000).unwrap();
    assert_eq!((mined.block, mined.changed, mined.hash), (10, false, hash(7)));
    let sent = &node.asked("eth_sendTransaction")[0][0];
    assert_eq!(sent["from"], json!(Hex([9; 20])));
    assert_eq!(
        (&sent["to"], &sent["value"], &sent["chainId"]),
        (&json!(Hex([3; 20])), &json!("0x0"), &json!("0x7e7e"))
    );
    // Twice the base fee and the tip, of which no node may ask more than 100 gwei.
    assert_eq!(
        (&sent["maxPriorityFeePerGas"], &sent["maxFeePerGas"]),
        (&json!("0x174876e800"), &json!("0x174876e8c8"))
    );
    let data = sent["data"].as_str().unwrap();
    assert_eq!(data.len(), 2 + 8 + 3 * 64);
    let gas = |sent: &Value| u64::from_str_radix(&sent["gas"].as_str().unwrap()[2..], 16).unwrap();
    // Half more than was estimated, and room for a record: others may vote in between.
    assert_eq!(gas(sent), 0x11170 * 3 / 2 + 250_000);
    // A contract's bytes are no votes: who deploys it need not have ten times what it costs.
    let deployed = Registry::deploy(&execution, &signer, &[Hex([9; 20])], 1, 1);
    assert!(deployed.is_err(), "this node gives no address");
    assert_eq!(gas(&node.asked("eth_sendTransaction")[1][0]), 0x11170 * 3 / 2 + 100_000);
    assert!(data.ends_with(&format!("{:064x}{:064x}", 2, 4_000_000_000u64)), "{data}");
}

#[test]
fn final_is_the_transaction_and_not_the_number_of_a_block() {
    // It is in block 10, which is given up; then it comes into block 12.
    let step = Arc::new(Mutex::new(0));
    let at = step.clone();
    let node = Scripted::start(move |method, params| {
        let mut step = at.lock().unwrap();
        match (method, params[0].as_str()) {
            ("eth_getTransactionReceipt", _) => {
                *step += 1;
                let block = match *step {
                    1 => {
                        json!({ "blockNumber": "0xa", "status": "0x1", "gasUsed": "0x1", "logs": [] })
                    }
                    2 => Value::Null,
                    _ => {
                        json!({ "blockNumber": "0xc", "status": "0x1", "gasUsed": "0x1", "logs": [] })
                    }
                };
                result(block)
            }
            ("eth_getBlockByNumber", Some("finalized")) if *step == 1 => {
                (200, json!({ "error": { "message": "nothing is final" } }))
            }
            ("eth_getBlockByNumber", Some("finalized")) => {
                result(json!({ "number": if *step < 4 { "0xb" } else { "0xc" } }))
            }
            _ => result(json!({ "number": "0xd" })),
        }
    });
    let mined = registry::Mined { hash: hash(7), block: 10, gas: 1, address: None, changed: true };
    let mut heard = Vec::new();
    let last = wait_final(&Execution::new(&node.url), mined, Duration::from_secs(60), |now| {
        heard.push((now.wanted, now.finalized))
    })
    .unwrap();
    assert_eq!((last.block, last.changed), (12, false));
    assert_eq!(heard, [(10, 0), (10, 11), (12, 11), (12, 12)]);

    let failed = Scripted::start(|method, _| match method {
        "eth_getTransactionReceipt" => result(json!({ "blockNumber": "0xc", "status": "0x0" })),
        _ => usual(method),
    });
    let error = wait_final(&Execution::new(&failed.url), mined, Duration::from_secs(60), |_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("failed in block 12"), "{error}");
}

#[test]
fn an_answer_that_is_none_is_an_error_and_says_which() {
    for (status, answer, says) in [
        (200, json!({ "error": "unauthorized" }), "unauthorized"),
        (401, json!({ "message": "no" }), "401"),
        (200, json!({ "id": 1 }), "without a result"),
        (200, json!({ "error": { "message": "reverted", "data": "0x1234" } }), "0x1234"),
        (500, json!({ "result": "0x1" }), "500"),
    ] {
        let node = Scripted::start(move |_, _| (status, answer.clone()));
        let error = Execution::new(&format!("{}/v3/KEY?key=KEY", node.url))
            .call("eth_chainId", json!([]))
            .unwrap_err();
        assert!(!format!("{error:#}").contains("KEY"), "{error:#}");
        let error = error.to_string();
        assert!(error.contains(says), "{error}");
    }
    let other = Scripted::start(|method, _| {
        if method == "eth_getCode" { result(json!("0x6001")) } else { usual(method) }
    });
    let execution = Execution::new(&other.url);
    let registry = Registry { node: &execution, address: Hex([3; 20]) };
    let signer = Signer::from_hex(&"1".repeat(64)).unwrap();
    assert!(
        registry.revoke(&signer, &hash(1)).unwrap_err().to_string().contains("is not the registry")
    );
    assert!(other.asked("eth_sendRawTransaction").is_empty());
}

fn spec(slots: &str) -> (u16, Value) {
    let spec = json!({ "SLOTS_PER_EPOCH": slots, "EPOCHS_PER_SYNC_COMMITTEE_PERIOD": "8", "SYNC_COMMITTEE_SIZE": "32", "SECONDS_PER_SLOT": "12" });
    (200, json!({ "data": spec }))
}

#[test]
fn a_relay_tells_strangers_nothing_of_its_nodes_and_takes_no_nonsense() {
    let node = Scripted::start(|path, _| {
        if path.ends_with("/config/spec") { spec("8") } else { (404, json!({ "message": "no" })) }
    });
    let secret = format!("{}/KEY-OF-AN-ACCOUNT", node.url);
    let relay = Relay::new(&secret, &secret, Hex([3; 20]), 0).unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(serve(Arc::new(relay), listener));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let get = |path: &str| {
        let mut answer = agent.get(format!("{url}{path}")).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let (status, text) = get(&format!("{PATH}?period=1"));
    assert!(
        status == 502 && !text.contains("KEY-OF-AN-ACCOUNT") && !text.contains("127.0.0.1"),
        "{status} {text}"
    );
    assert_eq!(get(PATH).0, 400);
    assert_eq!(get(&format!("{PATH}?period=x")).0, 400);
    assert_eq!(get("/").0, 404);
    assert_eq!(agent.post(format!("{url}{PATH}?period=1")).send_empty().unwrap().status(), 404);
}

#[test]
fn a_network_of_other_sizes_is_not_pinned() {
    let execution = Scripted::start(|method, _| usual(method));
    let beacon = Scripted::start(|path, _| match path {
        "/eth/v1/beacon/genesis" => {
            (200, json!({ "data": { "genesis_validators_root": hash(1), "genesis_time": "1" } }))
        }
        "/eth/v1/beacon/states/head/finality_checkpoints" => {
            (200, json!({ "data": { "finalized": { "root": hash(2) } } }))
        }
        "/eth/v1/config/spec" => spec("16"),
        _ => (200, json!({ "data": {} })),
    });
    let error = pin(&Beacon::new(&beacon.url), &Execution::new(&execution.url), Hex([3; 20]), &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("neither the sizes"), "{error}");
}

#[test]
fn who_votes_on_the_same_day_votes_for_the_same_and_the_others_are_told_how() {
    let node = Scripted::start(|method, _| usual(method));
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_trustctl"))
            .env("BASALT_CONFIG", dir.path())
            .env("BASALT_EXECUTION", &node.url)
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let digest = format!("sha256:{}", "cd".repeat(32));
    let contract = format!("0x{}", "03".repeat(20));
    let approve =
        ["chain", "approve", &digest, "--contract", &contract, "--days", "10", "--no-wait"];
    let (status, _, said) = run(&approve);
    assert!(status == 1 && said.contains("trustctl key new chain"), "{said}");
    assert_eq!(run(&["key", "new", "chain"]).0, 0);
    let (status, said, _) = run(&approve);
    assert_eq!(status, 0, "{said}");
    let until: u64 = said
        .lines()
        .find_map(|line| line.split_once("--until "))
        .unwrap()
        .1
        .trim()
        .parse()
        .unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(
        until.is_multiple_of(86_400) && (now + 10 * 86_400..=now + 12 * 86_400).contains(&until),
        "{until}"
    );
    let (_, again, _) = run(&[
        "--json",
        "chain",
        "approve",
        &digest,
        "--contract",
        &contract,
        "--until",
        "4000000000",
    ]);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["changed"], &again["final"]), (&json!(false), &json!(true)));
    assert_eq!(node.asked("eth_sendRawTransaction").len(), 2);
    // What is no address or no digest is wrong usage; what is in the way of sending is not sent.
    assert_eq!(run(&["chain", "revoke", "sha256:12", "--contract", &contract]).0, 2);
    assert_eq!(run(&["chain", "revoke", &digest, "--contract", "0x12"]).0, 2);
    assert_eq!(run(&["relay", "--contract", &contract]).0, 2);
}
