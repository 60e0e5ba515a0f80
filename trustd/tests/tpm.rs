//! The TPM's thread, the sealed root key and the audit log, against a software TPM.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;

use basalt_trustd::audit::{Audit, AuditError};
use basalt_trustd::tpm::Tpm;
use common::{Swtpm, signer, vault};
use measure::{
    AttestedStatement, Event, MODULES_PCR, PLATFORM_PCR, Pcr, Record, TpmKey, replay, unhex,
    verify_quote,
};
use policy::Policies;
use serde_json::json;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn node_statement(nonce: String) -> AttestedStatement {
    AttestedStatement::Node { certificate: "ab".repeat(32), nonce }
}

async fn audit(tpm: &Tpm, dir: &std::path::Path) -> Result<Audit, AuditError> {
    let platform = dir.join("platform.log");
    if !platform.exists() {
        std::fs::write(&platform, "").unwrap();
    }
    Audit::open(tpm.clone(), &platform, dir, dir).await
}

#[test]
fn random_bytes_come_in_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        for n in [1, 31, 32, 33, 1000] {
            assert_eq!(tpm.random(n).await.unwrap().len(), n);
        }
        assert_ne!(tpm.random(32).await.unwrap(), tpm.random(32).await.unwrap());
    });
}

#[test]
fn a_quote_verifies_and_its_logs_replay() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let audit = audit(&tpm, dir.path()).await.unwrap();
        audit.record("module-started", &json!({ "module": "a" })).await.unwrap();
        let statement = node_statement(measure::hex(b"12345678"));
        let evidence = audit.evidence(&statement).await.unwrap();
        assert_eq!(AttestedStatement::read(&evidence.statement), Ok(statement.clone()));
        let mut pcrs: BTreeMap<u32, Pcr> = replay(evidence.modules_log.iter()).unwrap();
        pcrs.entry(PLATFORM_PCR).or_default();
        let bytes = |text: &str| unhex(text).unwrap();
        let check = |nonce: &[u8], pcrs: &BTreeMap<u32, Pcr>| {
            verify_quote(
                &TpmKey::attestation(&bytes(&evidence.key)).unwrap(),
                &bytes(&evidence.attest),
                &bytes(&evidence.signature),
                nonce,
                pcrs,
            )
        };
        let qualifying = statement.qualifying_data();
        check(&qualifying, &pcrs).unwrap();
        assert!(check(b"12345678", &pcrs).is_err());
        assert!(
            check(&node_statement(measure::hex(b"87654321")).qualifying_data(), &pcrs).is_err()
        );
        pcrs.insert(MODULES_PCR, Pcr::default());
        assert!(check(&qualifying, &pcrs).is_err());
        // The key stays the same: it is derived, not stored.
        assert_eq!(audit.evidence(&statement).await.unwrap().key, evidence.key);
    });
}

#[test]
fn many_quotes_leave_nothing_behind_in_the_tpm() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let audit = audit(&tpm, dir.path()).await.unwrap();
        // BASALT_QUOTES=70000 is a year's worth at one in some seven minutes.
        let (ours, pcr14) = (signer().public(), Pcr::default());
        let approved =
            Policies { signer: ours.hex(), policies: vec![signer().sign("test", &pcr14)] }
                .find(&ours, &pcr14)
                .unwrap();
        let quotes = std::env::var("BASALT_QUOTES").map_or(100, |n| n.parse::<u64>().unwrap());
        for n in 0..quotes {
            audit.evidence(&node_statement(measure::hex(&n.to_be_bytes()))).await.unwrap();
            if n % 10 == 0 {
                let sealed = tpm.seal(vec![1; 32], Some(ours.authorises())).await.unwrap();
                assert_eq!(tpm.unseal(sealed, Some(approved.clone())).await.unwrap(), [1; 32]);
                tpm.endorsement().await.unwrap();
                assert!(tpm.activate(vec![0; 68], vec![0; 68]).await.is_err());
            }
        }
        for kind in ["handles-transient", "handles-loaded-session", "handles-saved-session"] {
            let listed = std::process::Command::new("tpm2_getcap")
                .args([kind, "-T", &swtpm.tcti])
                .output()
                .unwrap();
            assert!(listed.status.success() && listed.stdout.is_empty(), "{kind}: {listed:?}");
        }
    });
}

/// A kill between any two steps of intent → extend → log → clear.
#[test]
fn a_kill_at_any_step_loses_nothing() {
    for step in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        run(async {
            let tpm = swtpm.open().await;
            audit(&tpm, dir.path()).await.unwrap().record("one", &json!({})).await.unwrap();
            let event = Event::new(MODULES_PCR, "two", "{}");
            let line = Record::new(2, &event).line();
            let log = dir.path().join("modules.log");
            std::fs::write(dir.path().join("intent"), &line).unwrap();
            if step >= 1 {
                tpm.extend(MODULES_PCR, event.digest()).await.unwrap();
            }
            if step >= 2 {
                std::fs::write(&log, std::fs::read_to_string(&log).unwrap() + &line).unwrap();
            }
            if step >= 3 {
                std::fs::remove_file(dir.path().join("intent")).unwrap();
            }
            let again = audit(&tpm, dir.path()).await.unwrap();
            let kinds: Vec<String> =
                again.records().await.into_iter().map(|r| r.content.kind).collect();
            let expected: &[&str] =
                if step == 0 { &["tpm-clock", "one"] } else { &["tpm-clock", "one", "two"] };
            assert_eq!(kinds, expected, "step {step}");
            assert!(!dir.path().join("intent").exists());
            again.record("three", &json!({})).await.unwrap();
            audit(&tpm, dir.path()).await.unwrap();
        });
    }
}

#[test]
fn an_extend_that_is_not_ours_is_never_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        audit(&tpm, dir.path()).await.unwrap().record("one", &json!({})).await.unwrap();
        // With an intent that does not explain it.
        std::fs::write(
            dir.path().join("intent"),
            Record::new(2, &Event::new(MODULES_PCR, "two", "{}")).line(),
        )
        .unwrap();
        tpm.extend(MODULES_PCR, [9; 32]).await.unwrap();
        assert!(matches!(
            audit(&tpm, dir.path()).await,
            Err(AuditError::Foreign { pcr: MODULES_PCR, .. })
        ));
    });
}

/// Whoever can pull the reset line can extend the registers anew with what they had.
#[test]
fn a_tpm_that_began_anew_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let before = audit(&tpm, dir.path()).await.unwrap();
        before.record("one", &json!({})).await.unwrap();
        swtpm.reset();
        assert!(before.record("two", &json!({})).await.is_err(), "the register is not what it was");
        assert!(before.evidence(&node_statement("00".repeat(8))).await.is_err());
        let records = before.records().await;
        for record in &records {
            tpm.extend(MODULES_PCR, record.event().digest()).await.unwrap();
        }
        assert_eq!(
            tpm.read(MODULES_PCR).await.unwrap(),
            replay(records.iter()).unwrap()[&MODULES_PCR],
            "it looks the same"
        );
        assert!(matches!(
            before.evidence(&node_statement("00".repeat(8))).await,
            Err(AuditError::Reset { .. })
        ));
        assert!(
            matches!(before.record("two", &json!({})).await, Err(AuditError::Reset { .. })),
            "from then on for good"
        );
        assert!(matches!(audit(&tpm, dir.path()).await, Err(AuditError::Reset { .. })));
    });
}

#[test]
fn an_altered_log_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        audit(&tpm, dir.path())
            .await
            .unwrap()
            .record("one", &json!({ "module": "a" }))
            .await
            .unwrap();
        let log = dir.path().join("modules.log");
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, text.replace("\\\"a\\\"", "\\\"b\\\"")).unwrap();
        assert!(matches!(audit(&tpm, dir.path()).await, Err(AuditError::Log { .. })));
        std::fs::write(&log, "").unwrap();
        assert!(matches!(audit(&tpm, dir.path()).await, Err(AuditError::Foreign { .. })));
    });
}

/// How far the ledger was seen is kept against every way of putting an older state back.
#[test]
fn the_ledgers_mark_never_goes_back() {
    use basalt_trustd::admission::Approvals;
    use ledger::{Decision, ImageStatement, LogEntry, SigningKey, Status};
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let (etc, data) = (dir.path().join("etc"), dir.path().join("data"));
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::create_dir_all(&data).unwrap();
    let key = SigningKey::from_bytes(&[5; 32]);
    let node: config::Node = config::parse(
        "node.toml",
        &format!(
            "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:0\"\n[owner]\n[ledger]\nkind = \"log\"\nname = \"t\"\nthreshold = 1\napprovers = [\"{}\"]\n",
            measure::hex(key.verifying_key().as_bytes())
        ),
    )
    .unwrap();
    let digest = format!("sha256:{}", "ab".repeat(32));
    let line = |seq, status| {
        let mut entry = LogEntry::new(ImageStatement {
            digest: digest.clone(),
            exp: u64::MAX,
            iat: 0,
            seq,
            status,
        });
        entry.sign("t", &key);
        entry.line() + "\n"
    };
    let (approved, revoked) = (line(1, Status::Approved), line(2, Status::Revoked));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    run(async {
        let tpm = swtpm.open().await;
        let open = async || {
            let root = std::sync::Arc::new(
                vault(&tpm, Pcr::default(), &data, dir.path(), &node.keys).open().await.unwrap(),
            );
            Approvals::open(&node, &etc, &data, 0, tpm.clone(), root).await.unwrap()
        };
        let denied = |approvals: &Approvals, says: &str| {
            let Decision::Deny(reason) = approvals.decide(&digest) else {
                panic!("allowed; expected: {says}")
            };
            assert!(reason.to_string().contains(says), "{reason}");
        };
        let approvals = open().await;
        approvals.extend(&approved).await.unwrap();
        assert!(matches!(approvals.decide(&digest), Decision::Allow(_)));
        let old = dir.path().join("old");
        copy(&data, &old);
        approvals.extend(&(approved.clone() + &revoked)).await.unwrap();
        denied(&open().await, "revoked");
        let new = dir.path().join("new");
        copy(&data, &new);

        // What cannot be kept takes effect only as far as it is bad news; the same once more keeps
        // it.
        let other = format!("sha256:{}", "cd".repeat(32));
        let mut third = LogEntry::new(ImageStatement {
            digest: other.clone(),
            exp: u64::MAX,
            iat: 0,
            seq: 3,
            status: Status::Approved,
        });
        third.sign("t", &key);
        let longer = approved.clone() + &revoked + &third.line() + "\n";
        let full = open().await;
        std::fs::create_dir(data.join("ledger.new")).unwrap();
        assert!(full.extend(&longer).await.is_err());
        assert!(matches!(full.decide(&other), Decision::Deny(_)), "not before it is kept");
        assert!(full.extend(&longer).await.is_err(), "nor said to be kept");
        std::fs::remove_dir(data.join("ledger.new")).unwrap();
        assert_eq!(full.extend(&longer).await.unwrap(), (3, true));
        assert_eq!(full.extend(&longer).await.unwrap(), (3, false));
        assert!(
            matches!(full.decide(&other), Decision::Allow(_))
                && matches!(open().await.decide(&other), Decision::Allow(_))
        );
        copy(&data, &new);

        // The whole partition as it was before the revocation.
        copy(&old, &data);
        let rolled_back = open().await;
        denied(&rolled_back, "an older state was put back");
        denied(&rolled_back, "trustctl log reset");
        assert!(rolled_back.extend(&approved).await.is_err());
        // The mark taken away, damaged, or with another number in it.
        let mark = data.join("ledger.seen");
        std::fs::remove_file(&mark).unwrap();
        denied(&open().await, "it is not there");
        std::fs::write(&mark, "junk").unwrap();
        denied(&open().await, "damaged");
        let text = std::fs::read_to_string(new.join("ledger.seen")).unwrap();
        std::fs::write(&mark, text.replace("\"seq\":3", "\"seq\":1")).unwrap();
        denied(&open().await, "did not write it");
        // As it should be, it is used again; and a kill between file and counter is finished.
        copy(&new, &data);
        denied(&open().await, "revoked");
        assert_eq!(tpm.counter().await.unwrap().unwrap() + 1, tpm.increment().await.unwrap());
        denied(&open().await, "an older state was put back");
        open().await.reset().await.unwrap();
        denied(&open().await, "revoked");
    });
    // Another TPM.
    let other_dir = tempfile::tempdir().unwrap();
    let other = Swtpm::start(other_dir.path());
    run(async {
        let tpm = other.open().await;
        std::fs::remove_file(data.join("root.sealed")).unwrap();
        let root = std::sync::Arc::new(
            vault(&tpm, Pcr::default(), &data, dir.path(), &node.keys).open().await.unwrap(),
        );
        let approvals = Approvals::open(&node, &etc, &data, 0, tpm, root).await.unwrap();
        let Decision::Deny(reason) = approvals.decide(&digest) else { panic!("allowed") };
        assert!(reason.to_string().contains("is it another one"), "{reason}");
    });
}

/// Only the TPM that has both keys reads a credential; Debian's tpm2_makecredential makes one that
/// it reads too.
#[test]
fn a_credential_is_read_by_the_one_tpm_that_has_both_keys() {
    use measure::make_credential;
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (swtpm, other) = (Swtpm::start(dir.path()), Swtpm::start(other_dir.path()));
    run(async {
        let (tpm, stranger) = (swtpm.open().await, other.open().await);
        let attestation =
            async |tpm: &Tpm| TpmKey::attestation(&tpm.quote([1; 32]).await.unwrap().key).unwrap();
        let endorsement =
            async |tpm: &Tpm| TpmKey::endorsement(&tpm.endorsement().await.unwrap().area).unwrap();
        let (ours, theirs) = (attestation(&tpm).await, attestation(&stranger).await);
        let (ek, their_ek) = (endorsement(&tpm).await, endorsement(&stranger).await);
        assert!(
            tpm.endorsement().await.unwrap().certificate.is_none(),
            "a TPM without a manufacturer"
        );
        let secret = [42; 32];
        for n in 1..20u8 {
            let made = make_credential(&ek, &ours.name(), &secret, &[n; 32]).unwrap();
            assert_eq!(tpm.activate(made.blob.clone(), made.seed.clone()).await.unwrap(), secret);
            assert!(stranger.activate(made.blob, made.seed).await.is_err(), "another TPM");
        }
        for (ek, name) in [(&ek, theirs.name()), (&their_ek, ours.name()), (&ek, ek.name())] {
            let made = make_credential(ek, &name, &secret, &[1; 32]).unwrap();
            assert!(tpm.activate(made.blob, made.seed).await.is_err(), "another key");
        }
        let made = make_credential(&ek, &ours.name(), &secret, &[1; 32]).unwrap();
        for bit in (0..made.blob.len() * 8).step_by(7) {
            let mut blob = made.blob.clone();
            blob[bit / 8] ^= 1 << (bit % 8);
            assert!(tpm.activate(blob, made.seed.clone()).await.is_err(), "bit {bit}");
        }
        assert!(tpm.activate(Vec::new(), Vec::new()).await.is_err());
        assert!(tpm.activate(vec![0; 5000], vec![0; 5000]).await.is_err());

        // tpm2_makecredential without a TPM (-T none): public area, name and secret in;
        // TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET out.
        let file = |name: &str| dir.path().join(name);
        let area = ek.area();
        std::fs::write(file("ek.pub"), [&(area.len() as u16).to_be_bytes(), area].concat())
            .unwrap();
        std::fs::write(file("secret"), secret).unwrap();
        let made = std::process::Command::new("tpm2_makecredential")
            .args(["-T", "none", "-u"])
            .arg(file("ek.pub"))
            .arg("-s")
            .arg(file("secret"))
            .args(["-n", &measure::hex(&ours.name()), "-o"])
            .arg(file("credential"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // Their file: a magic number and a version of four bytes each, then the two structures.
        let bytes = std::fs::read(file("credential")).unwrap();
        let sized = |at: usize| {
            let n = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            (bytes[at + 2..at + 2 + n].to_vec(), at + 2 + n)
        };
        let (blob, next) = sized(8);
        let (seed, end) = sized(next);
        assert_eq!(end, bytes.len());
        assert_eq!(tpm.activate(blob, seed).await.unwrap(), secret);
        // Nothing is left in the TPM.
        for _ in 0..10 {
            tpm.quote([1; 32]).await.unwrap();
        }
    });
}

#[test]
fn a_key_that_a_node_does_not_have_is_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let (quote, endorsement) =
            (tpm.quote([1; 32]).await.unwrap(), tpm.endorsement().await.unwrap());
        let (ak, ek) = (quote.key, endorsement.area);
        assert!(TpmKey::attestation(&ak).is_ok() && TpmKey::endorsement(&ek).is_ok());
        assert!(TpmKey::attestation(&ek).is_err() && TpmKey::endorsement(&ak).is_err());
        for (area, read) in
            [(&ak, TpmKey::attestation as fn(&[u8]) -> _), (&ek, TpmKey::endorsement)]
        {
            for end in 0..area.len() {
                assert!(read(&area[..end]).is_err());
            }
            assert!(read(&[&area[..], &[0]].concat()).is_err());
            // Attributes, algorithms, sizes, policy: all but the point is fixed, and a point with
            // another bit is none of the curve's.
            for bit in 0..area.len() * 8 {
                let mut other = area.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&other).is_err(), "bit {bit}");
            }
        }
    });
}
