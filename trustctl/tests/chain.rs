//! The commands and the relay of a chain, with nodes whose answers are scripted. The tests with
//! real nodes run with `cargo xtask test chain`.
#![cfg(feature = "chain")]
// Helpers of tests may unwrap, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod scripted_node;

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ledger::ethereum::ApprovalLevel;
use ledger::ethereum::types::Hex;
use serde_json::{Value, json};
use trustctl::chain::{
    BUNDLE_PATH, BeaconNode, ExecutionNode, Receipt, Registry, Relay, Signer, pin, serve,
    wait_until_final,
};

use crate::scripted_node::{ScriptedNode, hash, regular_answer, result};

#[test]
fn gives_an_external_signer_the_whole_transaction() {
    let node = ScriptedNode::start(|method, _| regular_answer(method));
    let execution = ExecutionNode::new(&node.url);
    let signer = Signer::Rpc { signer: ExecutionNode::new(&node.url), from: Hex([9; 20]) };
    let registry = Registry { node: &execution, address: Hex([3; 20]) };
    let receipt = registry.approve(&signer, &hash(1), ApprovalLevel::Proof, 4_000_000_000).unwrap();
    assert_eq!((receipt.block, receipt.changed, receipt.transaction), (10, false, hash(7)));
    let sent = &node.requests("eth_sendTransaction")[0][0];
    assert_eq!(sent["from"], json!(Hex([9; 20])));
    assert_eq!(
        (&sent["to"], &sent["value"], &sent["chainId"]),
        (&json!(Hex([3; 20])), &json!("0x0"), &json!("0x7e7e"))
    );
    // Twice the base fee, and the priority fee, which is at most 100 gwei whatever a node suggests.
    assert_eq!(
        (&sent["maxPriorityFeePerGas"], &sent["maxFeePerGas"]),
        (&json!("0x174876e800"), &json!("0x174876e8c8"))
    );
    let data = sent["data"].as_str().unwrap();
    assert_eq!(data.len(), 2 + 8 + 4 * 64);
    let gas = |sent: &Value| u64::from_str_radix(&sent["gas"].as_str().unwrap()[2..], 16).unwrap();
    // One and a half of the estimate, and a record: another vote can be included before this one.
    assert_eq!(gas(sent), 0x11170 * 3 / 2 + 300_000);
    // For a deployment the bytes of the contract do not add gas for other votes.
    let deployed = Registry::deploy(&execution, &signer, &[Hex([9; 20])], 1, 1);
    assert!(deployed.is_err(), "the receipt has no address");
    assert_eq!(gas(&node.requests("eth_sendTransaction")[1][0]), 0x11170 * 3 / 2 + 100_000);
    let (data, deadline) = data.split_at(data.len() - 64);
    assert!(data.ends_with(&format!("{:064x}{:064x}", 2, 4_000_000_000u64)), "{data}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let deadline = u64::from_str_radix(deadline, 16).unwrap();
    assert!((now + 3540..=now + 3600).contains(&deadline), "{deadline}");
}

#[test]
fn waits_for_the_transaction_and_not_for_the_first_block_number() {
    // The transaction is in block 10, which is abandoned, and then in block 12.
    let step = Arc::new(Mutex::new(0));
    let at = step.clone();
    let node = ScriptedNode::start(move |method, params| {
        let mut step = at.lock().unwrap();
        match (method, params[0].as_str()) {
            ("eth_getTransactionReceipt", _) => {
                *step += 1;
                let included = |block: &str| {
                    let one = "0x1";
                    json!({ "blockNumber": block, "status": one, "gasUsed": one, "logs": [] })
                };
                let block = match *step {
                    1 => included("0xa"),
                    2 => Value::Null,
                    _ => included("0xc"),
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
    let sent = Receipt { transaction: hash(7), block: 10, gas: 1, contract: None, changed: true };
    let mut reports = Vec::new();
    let last = wait_until_final(
        &ExecutionNode::new(&node.url),
        sent,
        Duration::from_secs(60),
        |progress| reports.push((progress.block, progress.finalized)),
    )
    .unwrap();
    assert_eq!((last.block, last.changed), (12, false));
    assert_eq!(reports, [(10, 0), (10, 11), (12, 11), (12, 12)]);

    let failed = ScriptedNode::start(|method, _| match method {
        "eth_getTransactionReceipt" => result(json!({ "blockNumber": "0xc", "status": "0x0" })),
        _ => regular_answer(method),
    });
    let error =
        wait_until_final(&ExecutionNode::new(&failed.url), sent, Duration::from_secs(60), |_| ())
            .unwrap_err()
            .to_string();
    assert!(error.contains("failed in block 12"), "{error}");
}

#[test]
fn reports_answers_without_a_result_and_hides_keys_in_urls() {
    for (status, answer, expected) in [
        (200, json!({ "error": "unauthorized" }), "unauthorized"),
        (401, json!({ "message": "no" }), "401"),
        (200, json!({ "id": 1 }), "without a result"),
        (200, json!({ "error": { "message": "reverted", "data": "0x1234" } }), "0x1234"),
        (500, json!({ "result": "0x1" }), "500"),
    ] {
        let node = ScriptedNode::start(move |_, _| (status, answer.clone()));
        let error = ExecutionNode::new(&format!("{}/v3/KEY?key=KEY", node.url))
            .call("eth_chainId", json!([]))
            .unwrap_err();
        assert!(!format!("{error:#}").contains("KEY"), "{error:#}");
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
    }
    let other = ScriptedNode::start(|method, _| {
        if method == "eth_getCode" { result(json!("0x6001")) } else { regular_answer(method) }
    });
    let execution = ExecutionNode::new(&other.url);
    let registry = Registry { node: &execution, address: Hex([3; 20]) };
    let signer = Signer::from_hex(&"1".repeat(64)).unwrap();
    assert!(
        registry.revoke(&signer, &hash(1)).unwrap_err().to_string().contains("is not the registry")
    );
    assert!(other.requests("eth_sendRawTransaction").is_empty());
}

fn spec(slots: &str) -> (u16, Value) {
    let spec = json!({
        "SLOTS_PER_EPOCH": slots, "EPOCHS_PER_SYNC_COMMITTEE_PERIOD": "8",
        "SYNC_COMMITTEE_SIZE": "32", "SECONDS_PER_SLOT": "12",
    });
    (200, json!({ "data": spec }))
}

#[test]
fn a_relay_hides_its_nodes_and_rejects_malformed_requests() {
    let node = ScriptedNode::start(|path, _| {
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
    let (status, text) = get(&format!("{BUNDLE_PATH}?period=1"));
    assert!(
        status == 502 && !text.contains("KEY-OF-AN-ACCOUNT") && !text.contains("127.0.0.1"),
        "{status} {text}"
    );
    assert_eq!(get(BUNDLE_PATH).0, 400);
    assert_eq!(get(&format!("{BUNDLE_PATH}?period=x")).0, 400);
    assert_eq!(get("/").0, 404);
    // Longer than the bytes that a server reads ahead and a socket buffers. On one connection, which
    // stays open.
    let body = vec![b' '; 900_000];
    let mut client = std::net::TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    for _ in 0..3 {
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(head.as_bytes()).unwrap();
        client.write_all(&body).unwrap();
        let mut answer = [0; 1024];
        let length = client.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 404 "));
    }
}

#[test]
fn rejects_a_network_of_unknown_sizes() {
    let execution = ScriptedNode::start(|method, _| regular_answer(method));
    let beacon = ScriptedNode::start(|path, _| match path {
        "/eth/v1/beacon/genesis" => {
            (200, json!({ "data": { "genesis_validators_root": hash(1), "genesis_time": "1" } }))
        }
        "/eth/v1/beacon/states/head/finality_checkpoints" => {
            (200, json!({ "data": { "finalized": { "root": hash(2) } } }))
        }
        "/eth/v1/config/spec" => spec("16"),
        _ => (200, json!({ "data": {} })),
    });
    let error =
        pin(&BeaconNode::new(&beacon.url), &ExecutionNode::new(&execution.url), Hex([3; 20]), &[])
            .unwrap_err()
            .to_string();
    assert!(error.contains("neither the sizes"), "{error}");
}

#[test]
fn votes_of_one_day_have_one_expiry_which_the_command_prints_for_others() {
    let node = ScriptedNode::start(|method, _| regular_answer(method));
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
    let (status, _, error) = run(&approve);
    assert!(status == 1 && error.contains("trustctl key new chain"), "{error}");
    assert_eq!(run(&["key", "new", "chain"]).0, 0);
    let (status, output, _) = run(&approve);
    assert_eq!(status, 0, "{output}");
    let until: u64 = output
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
    assert_eq!(node.requests("eth_sendRawTransaction").len(), 2);
    // A malformed digest or address, and a missing option, are wrong usage: nothing is sent.
    assert_eq!(run(&["chain", "revoke", "sha256:12", "--contract", &contract]).0, 2);
    assert_eq!(run(&["chain", "revoke", &digest, "--contract", "0x12"]).0, 2);
    assert_eq!(run(&["relay", "--contract", &contract]).0, 2);
}
