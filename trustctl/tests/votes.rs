//! Open votes of a registry: listing and withdrawing them, with a node whose answers are scripted.
#![cfg(feature = "chain")]
// Helpers of tests may unwrap, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod scripted_node;

use std::time::{SystemTime, UNIX_EPOCH};

use ledger::ethereum::keccak256;
use ledger::ethereum::types::Hex;
use serde_json::{Value, json};
use trustctl::chain::{ExecutionNode, Proposal, Registry, VOTE_LIFETIME_SECONDS};

use crate::scripted_node::{ScriptedNode, hash, regular_answer, result};

const DAY: u64 = 86_400;
/// Hash of the set of the one approver 0x0505…, with both quorums 1; computed with ethers.js.
const SET: &str = "9079e1224757bd659c08215a3a6ef70d1abfb3852222148347908767a1b602ee";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn topic(event: &str) -> String {
    format!("0x{}", measure::hex(&keccak256(event.as_bytes())))
}

fn selector(signature: &str) -> String {
    topic(signature)[..10].to_owned()
}

fn number(n: u64) -> String {
    format!("{n:064x}")
}

fn address(n: u8) -> String {
    format!("{}{}", "00".repeat(12), format!("{n:02x}").repeat(20))
}

/// Returns an array of the ABI whose elements are these words.
fn array(elements: &[Vec<String>]) -> Value {
    let words: String = elements.concat().concat();
    json!(format!("0x{}{}{words}", number(32), number(elements.len() as u64)))
}

fn vote(approver: u8, status: u64, not_after: u64, time: u64, set: &str) -> Vec<String> {
    let set = if set.is_empty() { number(0) } else { set.to_owned() };
    vec![address(approver), number(status), number(not_after), number(time), set]
}

/// Answers of a registry with votes about the image 1 and about the approvers, and none about the
/// image 2, about which there was a vote too.
fn registry_answer(method: &str, params: &Value, now: u64) -> (u16, Value) {
    let data = params[0]["data"].as_str().unwrap_or_default();
    match method {
        "eth_getLogs" => {
            let voted = topic("Voted(bytes32,address,uint8,uint64,uint16,uint16)");
            let set = topic("VotedForApprovers(address,address[],uint16,uint16,uint16,uint16)");
            let data = [160, 1, 1, 1, 2, 1].map(number).concat() + &address(5);
            result(json!([
                { "topics": [voted, hash(1), hash(9)], "data": "0x" },
                { "topics": [voted, hash(2), hash(9)], "data": "0x" },
                { "topics": [set, hash(9)], "data": format!("0x{data}") },
            ]))
        }
        "eth_call" if data.starts_with(&selector("approvers()")) => {
            result(array(&[vec![address(7)], vec![address(8)], vec![address(9)]]))
        }
        "eth_call" if data.starts_with(&selector("quorum()")) => {
            result(json!(format!("0x{}", number(2))))
        }
        "eth_call" if data.starts_with(&selector("revocationQuorum()")) => {
            result(json!(format!("0x{}", number(1))))
        }
        "eth_call" if data.starts_with(&selector("openVotes(bytes32)")) => {
            let none = vote(9, 0, 0, 0, "");
            result(match &data[10..] {
                image if image == "01".repeat(32) => array(&[
                    vote(7, 2, 4_000_000_000, now - 3 * DAY - 1000, ""),
                    vote(8, 3, 0, now - 100, ""),
                    none,
                ]),
                image if image == "02".repeat(32) => array(&[none]),
                approvers if approvers == number(0) => {
                    array(&[vote(8, 4, 0, now - 29 * DAY - 1000, SET), none])
                }
                other => panic!("votes about {other}"),
            })
        }
        _ => regular_answer(method),
    }
}

/// Runs `trustctl chain` and returns its status, output and errors.
fn trustctl(node: &ScriptedNode, folder: &std::path::Path, args: &[&str]) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_trustctl"))
        .env("BASALT_CONFIG", folder)
        .env("BASALT_EXECUTION", &node.url)
        .env("BASALT_CONTRACT", format!("0x{}", "03".repeat(20)))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn open_votes_are_listed_with_their_age() {
    let now = now();
    let node = ScriptedNode::start(move |method, params| registry_answer(method, params, now));
    let folder = tempfile::tempdir().unwrap();
    let (status, text, error) = trustctl(&node, folder.path(), &["chain", "votes"]);
    assert_eq!(status, 0, "{error}");
    let image = format!("sha256:{}", "01".repeat(32));
    let address = |n: &str| format!("0x{}", n.repeat(20));
    let expected = [
        format!(
            "approvers: {}; an approval would need 1, a revocation 1\n  1 of 2 votes:\n  {}  \
             29 days ago, closes in 23 hours\n",
            address("05"),
            address("08")
        ),
        format!(
            "{image}: approve as proof until 4000000000\n  1 of 2 votes:\n  {}  3 days ago, \
             closes in 26 days\n",
            address("07")
        ),
        format!("{image}: revoke\n  1 of 1 votes:\n  {}  ", address("08")),
    ];
    for part in expected {
        assert!(text.contains(&part), "expected\n{part}found\n{text}");
    }
    assert!(!text.contains("0202"), "{text}");

    let (_, text, _) = trustctl(&node, folder.path(), &["--json", "chain", "votes", &image]);
    let value: Value = serde_json::from_str(&text).unwrap();
    let votes = value["votes"].as_array().unwrap();
    assert_eq!(votes.len(), 2, "{text}");
    assert_eq!(
        (&votes[0]["vote"], &votes[0]["approval"], &votes[0]["not_after"]),
        (&json!("approve"), &json!("proof"), &json!(4_000_000_000u64))
    );
    assert_eq!(votes[0]["closes"], json!(now - 3 * DAY - 1000 + VOTE_LIFETIME_SECONDS));
    // With digests, the events are not searched.
    assert_eq!(node.requests("eth_getLogs").len(), 1);
}

#[test]
fn events_are_searched_for_as_long_as_a_vote_is_open() {
    // Block 30,000 is the newest, a block comes every 200 s, and the node searches 3,000 blocks at
    // once.
    let node = ScriptedNode::start(|method, params| match method {
        "eth_getBlockByNumber" => {
            let tag = params[0].as_str().unwrap();
            let number = u64::from_str_radix(tag.trim_start_matches("0x"), 16).unwrap_or(30_000);
            let time = format!("{:#x}", 200 * number);
            result(json!({ "number": format!("{number:#x}"), "timestamp": time }))
        }
        "eth_getLogs" => {
            let block = |name: &str| {
                let text = params[0][name].as_str().unwrap();
                u64::from_str_radix(&text[2..], 16).unwrap()
            };
            match block("toBlock") - block("fromBlock") {
                0..3000 => result(json!([])),
                _ => (200, json!({ "error": { "message": "too many blocks" } })),
            }
        }
        _ => regular_answer(method),
    });
    let execution = ExecutionNode::new(&node.url);
    let registry = Registry { node: &execution, address: Hex([3; 20]) };
    assert!(registry.recent_votes().unwrap().digests.is_empty());
    let searched: Vec<_> = node
        .requests("eth_getLogs")
        .iter()
        .map(|params| {
            let block = |name: &str| {
                u64::from_str_radix(&params[0][name].as_str().unwrap()[2..], 16).unwrap()
            };
            (block("fromBlock"), block("toBlock"))
        })
        .collect();
    assert_eq!(searched[..2], [(20_001, 30_000), (27_501, 30_000)]);
    assert!(searched[1..].windows(2).all(|pair| pair[0].0 == pair[1].1 + 1), "{searched:?}");
    // 30 days are 12,960 blocks.
    let first = searched.last().unwrap().0;
    assert!((30_000 - 12_960 - 2500..30_000 - 12_960).contains(&first), "{searched:?}");
}

#[test]
fn malformed_votes_of_a_node_are_rejected() {
    for answer in [
        json!("0x"),
        json!("0x12"),
        json!(null),
        array(&[vec![number(1)]]),
        array(&[vote(7, 5, 0, 0, "")]),
        array(&[vote(7, 1, 0, 0, "").into_iter().map(|_| "ff".repeat(32)).collect()]),
    ] {
        let shown = answer.to_string();
        let node = ScriptedNode::start(move |_, _| result(answer.clone()));
        let execution = ExecutionNode::new(&node.url);
        let registry = Registry { node: &execution, address: Hex([3; 20]) };
        assert!(registry.open_votes(None).is_err(), "{shown}");
    }
    let good = array(&[vote(7, 3, 0, 5, "")]);
    let node = ScriptedNode::start(move |_, _| result(good.clone()));
    let execution = ExecutionNode::new(&node.url);
    let registry = Registry { node: &execution, address: Hex([3; 20]) };
    let votes = registry.open_votes(Some(&hash(1))).unwrap();
    assert_eq!((votes[0].proposal, votes[0].time), (Proposal::Revoke, 5));
}

#[test]
fn a_vote_is_withdrawn_by_the_digest_or_for_the_approvers() {
    let node = ScriptedNode::start(|method, _| regular_answer(method));
    let folder = tempfile::tempdir().unwrap();
    let from = format!("0x{}", "09".repeat(20));
    let digest = format!("sha256:{}", "cd".repeat(32));
    let withdraw = |args: &[&str]| {
        let signer = ["--signer", &node.url, "--from", &from, "--no-wait"];
        trustctl(&node, folder.path(), &[&["chain", "withdraw"], &signer[..], args].concat())
    };
    for args in [&[digest.as_str()][..], &["--approvers"]] {
        let (status, text, error) = withdraw(args);
        assert!(status == 0 && text.contains("the vote is withdrawn"), "{text}{error}");
    }
    let sent = node.requests("eth_sendTransaction");
    let data: Vec<_> = sent.iter().map(|params| params[0]["data"].as_str().unwrap()).collect();
    let call = |subject: &str| selector("withdraw(bytes32)") + subject;
    assert_eq!(data, [call(&"cd".repeat(32)), call(&number(0))]);
    // Neither, or both, is wrong usage.
    assert_eq!(withdraw(&[]).0, 2);
    assert_eq!(withdraw(&[&digest, "--approvers"]).0, 2);

    let error_data = selector("NoOpenVote(address)");
    let node = ScriptedNode::start(move |method, _| match method {
        "eth_call" => {
            (200, json!({ "error": { "message": "execution reverted", "data": error_data } }))
        }
        _ => regular_answer(method),
    });
    let args = ["chain", "withdraw", "--signer", &node.url, "--from", &from, &digest];
    let (status, _, error) = trustctl(&node, folder.path(), &args);
    assert!(status == 1 && error.contains("no open vote"), "{error}");
    assert!(node.requests("eth_sendTransaction").is_empty());
}
