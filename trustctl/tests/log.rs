//! The approver's commands for a log in a file.
#![cfg(feature = "cli")]
// Helpers of tests may unwrap, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use ledger::{Decision, HighWaterMark, Log, LogError, Reason, TrustPolicy};

const DIGEST: &str = "sha256:0707070707070707070707070707070707070707070707070707070707070707";

/// Runs `trustctl` for the log `log.jsonl` in `folder`, with the keys of an approver.
fn trustctl(folder: &Path, approver: &str, args: &[&str]) -> Result<String, String> {
    let log = folder.join("log.jsonl");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trustctl"));
    command.env("BASALT_CONFIG", folder.join(approver)).args(args);
    if args[0] != "key" {
        command.arg("--log").arg(log);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn a_withdrawn_signature_cannot_complete_an_approval() {
    let folder = tempfile::tempdir().unwrap();
    let run = |approver: &str, args: &[&str]| trustctl(folder.path(), approver, args);
    let read = || std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    for approver in ["ana", "ben"] {
        run(approver, &["key", "new", "approver"]).unwrap();
    }
    let keys = ["ana", "ben"].map(|approver| {
        let path = folder.path().join(approver).join("approver.key");
        trustctl::keys::public_hex(&trustctl::keys::load_approver(&path).unwrap())
    });
    let policy = TrustPolicy::new("home", &keys, 2).unwrap();
    run("ana", &["approve", DIGEST]).unwrap();
    // Ben keeps a copy with ana's signature, and does not sign yet.
    let copy = read();
    let error = run("ben", &["log", "withdraw"]).unwrap_err();
    assert!(error.contains("nothing to withdraw"), "{error}");
    run("ana", &["log", "withdraw"]).unwrap();
    let replay = |text: &str, seen: &HighWaterMark| Log::replay(&policy, text, seen);
    let log = replay(&read(), &HighWaterMark::default()).unwrap();
    let decision = log.decide(DIGEST, u64::MAX / 2, 0);
    assert!(matches!(decision, Decision::Deny(Reason::Unknown { .. })), "{decision:?}");
    let shown = run("ana", &["log", "show"]).unwrap();
    assert!(shown.contains("withdrawn"), "{shown}");
    let error = run("ana", &["log", "withdraw"]).unwrap_err();
    assert!(error.contains("final"), "{error}");

    std::fs::write(folder.path().join("log.jsonl"), copy).unwrap();
    run("ben", &["log", "sign"]).unwrap();
    assert!(replay(&read(), &HighWaterMark::default()).is_ok(), "the copy is complete");
    let seen = log.high_water_mark();
    assert_eq!(replay(&read(), &seen).unwrap_err(), LogError::Forked { seq: 1 });
}
