//! Rejection of altered evidence, and third-party tools that verify the same evidence.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use api::Evidence;
use basalt_trustd::audit::{Audit, EventKind};
use measure::{
    AttestedStatement, Board, BootComponents, Event, MODULES_PCR, Measurements, PLATFORM_PCR,
    Record, boot_events, hex, unhex,
};
use serde_json::json;
use trustctl::appraisal::SavedEvidence;
use trustctl::evidence::{self, EvidenceError, VerifiedEvidence};

use crate::common::Swtpm;
use crate::node::{programs, run};

const NONCE: [u8; 20] = [0xa5; 20];

#[track_caller]
pub(crate) fn require_success(output: Output) -> Output {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a program of tpm2-tools on a software TPM.
pub(crate) fn run_tool(swtpm: &Swtpm, program: &str, args: &[&str]) -> Output {
    require_success(Command::new(program).args(args).args(["-T", &swtpm.tcti]).output().unwrap())
}

/// Measures a boot as init does: extends PCR 14 and 15 and writes the log.
fn measure_boot(swtpm: &Swtpm, dir: &Path) -> (Vec<Event>, Measurements) {
    let events = boot_events(&BootComponents {
        variant: "prod",
        machine: "virt",
        command_line: "console=ttyAMA0",
        device_tree: [1; 32],
        boot_partition: [6; 32],
        node_settings: measure::empty_settings_digest(),
        verity_root: "00ff",
        init: [2; 32],
        trustd: [3; 32],
        engine: [4; 32],
        configuration: [5; 32],
    });
    let mut log = String::new();
    for (n, event) in events.iter().enumerate() {
        let value = format!("{}:sha256={}", event.pcr, hex(&event.digest()));
        run_tool(swtpm, "tpm2_pcrextend", &[&value]);
        log += &Record::new(n as u64, event).line();
    }
    std::fs::write(dir.join("platform.log"), log).unwrap();
    let boards = vec![Board::predict("virt", &events)];
    (
        events,
        Measurements {
            machine: "virt".into(),
            variant: "prod".into(),
            version: "0".into(),
            boards,
        },
    )
}

/// A booted node without an engine, its evidence, and the measurements that match it.
struct Attested {
    dir: tempfile::TempDir,
    _swtpm: Swtpm,
    events: Vec<Event>,
    expected: Measurements,
    evidence: Evidence,
}

impl Attested {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        let (events, expected) = measure_boot(&swtpm, dir.path());
        let log = dir.path().join("platform.log");
        let evidence = run(async {
            let tpm = swtpm.open().await;
            let audit = Audit::open(tpm, &log, dir.path(), dir.path()).await.unwrap();
            let event = json!({ "module": "a" });
            audit.record(EventKind::ModuleStarted, &event).await.unwrap();
            let (certificate, nonce) = ("ab".repeat(32), hex(&NONCE));
            let statement = AttestedStatement::Node { certificate, nonce };
            audit.collect_evidence(&statement).await.unwrap()
        });
        Self { dir, _swtpm: swtpm, events, expected, evidence }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Returns the code of the error for changed evidence.
    #[track_caller]
    fn rejection(&self, change: impl Fn(&mut Evidence)) -> &'static str {
        let mut evidence = self.evidence.clone();
        change(&mut evidence);
        let result = evidence::verify(&evidence, &NONCE, Some(&self.expected));
        result.err().expect("changed evidence was accepted").code()
    }
}

#[test]
fn every_difference_is_reported_and_third_party_tools_agree() {
    let attested = Attested::start();
    let Attested { evidence, expected, .. } = &attested;
    let verified = evidence::verify(evidence, &NONCE, Some(expected)).unwrap();
    assert_eq!(verified.board.as_deref(), Some("virt"));
    let error = evidence::verify(evidence, &[1; 20], None).err().unwrap();
    assert_eq!(error.code(), "nonce");
    report_each_changed_event(&attested);
    reject_changed_evidence(&attested);
    check_with_tpm2_tools(&attested, &verified);
    replay_with_shell_tools(&attested, &verified);
}

/// Compares the evidence with measurements in which one event differs.
fn report_each_changed_event(attested: &Attested) {
    let Attested { evidence, events, expected, .. } = attested;
    let predict = |events: &[Event]| Measurements {
        boards: vec![Board::predict("virt", events)],
        ..expected.clone()
    };
    for (n, event) in events.iter().enumerate() {
        let mut other = events.clone();
        other[n] = Event::new(event.pcr, &event.kind, "something else");
        let result = evidence::verify(evidence, &NONCE, Some(&predict(&other)));
        let Err(EvidenceError::Boot(mismatch)) = result else {
            panic!("the changed event {} was accepted", event.kind)
        };
        assert_eq!((mismatch.event, &mismatch.kind), (n as u64, &event.kind));
        assert_eq!(
            (mismatch.expected.as_deref(), mismatch.found.as_deref()),
            (Some("something else"), Some(&*event.data))
        );
        assert!(!mismatch.likely_cause.is_empty());
        assert!(EvidenceError::Boot(mismatch).to_string().contains("likely"));
    }
    let result = evidence::verify(evidence, &NONCE, Some(&predict(&events[..11])));
    let Err(EvidenceError::Boot(mismatch)) = result else {
        panic!("an additional event was accepted")
    };
    assert!(mismatch.event == 11 && mismatch.expected.is_none(), "{mismatch:?}");
}

/// Changes every part of the evidence.
fn reject_changed_evidence(attested: &Attested) {
    let text = attested.evidence.statement.clone();
    let statement = |text: String| attested.rejection(|e| e.statement.clone_from(&text));
    assert_eq!(statement(text.replace("abab", "abac")), "quote");
    assert_eq!(statement(text.replace(',', ", ")), "malformed");
    assert_eq!(attested.rejection(|e| e.key = "no hex".into()), "malformed");
    assert_eq!(attested.rejection(|e| e.modules_log.truncate(1)), "quote");
    assert_eq!(attested.rejection(|e| drop(e.modules_log.remove(0))), "log");
    assert_eq!(attested.rejection(|e| e.platform_log.swap(2, 3)), "log");
    let changed = |e: &mut Evidence| e.platform_log[3].content.data = "other".into();
    assert_eq!(attested.rejection(changed), "log");
    assert_eq!(attested.rejection(|e| e.modules_log[1].pcr = 14), "quote");
    assert_eq!(attested.rejection(|e| e.modules_log[1].pcr = 16), "quote");
    let members: [fn(&mut Evidence) -> &mut String; 3] =
        [|e| &mut e.attest, |e| &mut e.signature, |e| &mut e.key];
    for member in members {
        let bytes = unhex(member(&mut attested.evidence.clone())).unwrap();
        for at in (0..bytes.len()).step_by(3) {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let code = attested.rejection(|e| *member(e) = hex(&other));
            assert!(matches!(code, "quote" | "key"), "byte {at}: {code}");
        }
    }
    // A file in which a member is missing.
    let mut saved = json!({ "evidence": attested.evidence });
    saved["evidence"].as_object_mut().unwrap().remove("key");
    let error = SavedEvidence::parse(&saved.to_string()).unwrap_err();
    assert_eq!(error.downcast::<EvidenceError>().unwrap().code(), "malformed");
}

/// tpm2_checkquote accepts the quote for the same registers and rejects it for others.
fn check_with_tpm2_tools(attested: &Attested, verified: &VerifiedEvidence) {
    let bytes = |hex: &str| unhex(hex).unwrap();
    let key = bytes(&attested.evidence.key);
    let key = attested.file("ak.pub", &[&(key.len() as u16).to_be_bytes(), &key[..]].concat());
    let attest = attested.file("attest", &bytes(&attested.evidence.attest));
    let signature = bytes(&attested.evidence.signature);
    // TPMT_SIGNATURE: ECDSA, SHA-256, then r and s, each after its length.
    let signature = attested.file(
        "signature",
        &[&[0, 0x18, 0, 0x0b, 0, 32], &signature[..32], &[0, 32], &signature[32..]].concat(),
    );
    let check = |modules: [u8; 32]| {
        let registers = [verified.pcrs[&PLATFORM_PCR].0, modules].concat();
        let registers = attested.file("pcrs", &registers);
        let mut command = Command::new("tpm2_checkquote");
        for (option, file) in
            [("-u", &key), ("-m", &attest), ("-s", &signature), ("-f", &registers)]
        {
            command.arg(option).arg(file);
        }
        let qualifying_data = hex(&verified.statement.qualifying_data());
        command.args(["-l", "sha256:14,15", "-g", "sha256", "-q", &qualifying_data]);
        command.output().unwrap()
    };
    require_success(check(verified.pcrs[&MODULES_PCR].0));
    assert!(!check([0; 32]).status.success());
}

/// The commands of docs/attestation.md replay the logs to the same registers, with jq and sha256sum
/// only.
fn replay_with_shell_tools(attested: &Attested, verified: &VerifiedEvidence) {
    attested.file("evidence.json", &serde_json::to_vec(&attested.evidence).unwrap());
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attestation.md");
    let document = std::fs::read_to_string(document).unwrap();
    let script = document
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("docs/attestation.md has no commands");
    let programs = programs();
    let replayed = Command::new("bash")
        .args(["-euc", script])
        .current_dir(attested.dir.path())
        .env("PATH", format!("{}:/usr/bin", programs.join("usr/bin").display()))
        .env("LD_LIBRARY_PATH", programs.join("usr/lib/x86_64-linux-gnu"))
        .output()
        .unwrap();
    let output = String::from_utf8(require_success(replayed).stdout).unwrap();
    for (pcr, value) in &verified.pcrs {
        assert!(output.contains(&format!("PCR {pcr} = {}\n", hex(&value.0))), "{output}");
    }
}
