//! The TPM's thread and the audit log, against a software TPM.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use basalt_trustd::audit::{Audit, AuditError, EventKind};
use basalt_trustd::tpm::Tpm;
use common::{Swtpm, signer};
use measure::{
    AttestedStatement, Event, MODULES_PCR, PLATFORM_PCR, Pcr, Record, TpmKey, make_credential,
    replay, unhex, verify_quote,
};
use policy::Policies;
use serde_json::json;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn node_statement(nonce: String) -> AttestedStatement {
    AttestedStatement::Node { certificate: "ab".repeat(32), nonce }
}

/// Opens the audit log in `dir`, with an empty log of the platform.
async fn open_audit(tpm: &Tpm, dir: &Path) -> Result<Audit, AuditError> {
    let platform = dir.join("platform.log");
    if !platform.exists() {
        std::fs::write(&platform, "").unwrap();
    }
    Audit::open(tpm.clone(), &platform, dir, dir).await
}

#[test]
fn any_number_of_random_bytes_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        for n in [1, 31, 32, 33, 1000] {
            assert_eq!(tpm.get_random(n).await.unwrap().len(), n);
        }
        assert_ne!(tpm.get_random(32).await.unwrap(), tpm.get_random(32).await.unwrap());
    });
}

#[test]
fn a_quote_verifies_and_its_logs_replay_to_the_registers() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let audit = open_audit(&tpm, dir.path()).await.unwrap();
        audit.record(EventKind::ModuleStarted, &json!({ "module": "a" })).await.unwrap();
        let statement = node_statement(measure::hex(b"12345678"));
        let evidence = audit.collect_evidence(&statement).await.unwrap();
        assert_eq!(AttestedStatement::parse(&evidence.statement), Ok(statement.clone()));
        let mut pcrs: BTreeMap<u32, Pcr> = replay(evidence.modules_log.iter()).unwrap();
        pcrs.entry(PLATFORM_PCR).or_default();
        let bytes = |text: &str| unhex(text).unwrap();
        let verify = |nonce: &[u8], pcrs: &BTreeMap<u32, Pcr>| {
            verify_quote(
                &TpmKey::attestation(&bytes(&evidence.key)).unwrap(),
                &bytes(&evidence.attest),
                &bytes(&evidence.signature),
                nonce,
                pcrs,
            )
        };
        let qualifying = statement.qualifying_data();
        verify(&qualifying, &pcrs).unwrap();
        assert!(verify(b"12345678", &pcrs).is_err());
        assert!(
            verify(&node_statement(measure::hex(b"87654321")).qualifying_data(), &pcrs).is_err()
        );
        pcrs.insert(MODULES_PCR, Pcr::default());
        assert!(verify(&qualifying, &pcrs).is_err());
        // The attestation key is derived from a fixed template, so it stays the same.
        assert_eq!(audit.collect_evidence(&statement).await.unwrap().key, evidence.key);
    });
}

#[test]
fn many_operations_leave_no_handles_in_the_tpm() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let audit = open_audit(&tpm, dir.path()).await.unwrap();
        // BASALT_QUOTES=70000 is one quote every seven and a half minutes for a year.
        let (ours, pcr14) = (signer().public(), Pcr::default());
        let approved =
            Policies { signer: ours.hex(), policies: vec![signer().sign("test", &pcr14)] }
                .find(&ours, &pcr14)
                .unwrap();
        let quotes = std::env::var("BASALT_QUOTES").map_or(100, |n| n.parse::<u64>().unwrap());
        for n in 0..quotes {
            audit.collect_evidence(&node_statement(measure::hex(&n.to_be_bytes()))).await.unwrap();
            if n % 10 == 0 {
                let sealed =
                    tpm.seal(vec![1; 32], Some(ours.authorization_policy())).await.unwrap();
                assert_eq!(tpm.unseal(sealed, Some(approved.clone())).await.unwrap(), [1; 32]);
                tpm.read_endorsement().await.unwrap();
                assert!(tpm.activate_credential(vec![0; 68], vec![0; 68]).await.is_err());
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

/// Simulates a kill between any two steps of intent → extend → log → clear.
#[test]
fn a_kill_at_any_step_leaves_log_and_register_consistent() {
    for step in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        run(async {
            let tpm = swtpm.open().await;
            open_audit(&tpm, dir.path())
                .await
                .unwrap()
                .record(EventKind::ModuleStarted, &json!({}))
                .await
                .unwrap();
            let event = Event::new(MODULES_PCR, EventKind::ModuleStopped.as_str(), "{}");
            let line = Record::new(2, &event).line();
            let log = dir.path().join("modules.log");
            std::fs::write(dir.path().join("intent"), &line).unwrap();
            if step >= 1 {
                tpm.extend_pcr(MODULES_PCR, event.digest()).await.unwrap();
            }
            if step >= 2 {
                std::fs::write(&log, std::fs::read_to_string(&log).unwrap() + &line).unwrap();
            }
            if step >= 3 {
                std::fs::remove_file(dir.path().join("intent")).unwrap();
            }
            let reopened = open_audit(&tpm, dir.path()).await.unwrap();
            let kinds: Vec<String> =
                reopened.records().await.into_iter().map(|r| r.content.kind).collect();
            let mut expected = vec!["tpm-clock", "module-started"];
            if step > 0 {
                expected.push("module-stopped");
            }
            assert_eq!(kinds, expected, "step {step}");
            assert!(!dir.path().join("intent").exists());
            reopened.record(EventKind::ModuleExited, &json!({})).await.unwrap();
            open_audit(&tpm, dir.path()).await.unwrap();
        });
    }
}

#[test]
fn a_foreign_extend_is_never_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        open_audit(&tpm, dir.path())
            .await
            .unwrap()
            .record(EventKind::ModuleStarted, &json!({}))
            .await
            .unwrap();
        // The intent does not explain the extend.
        std::fs::write(
            dir.path().join("intent"),
            Record::new(2, &Event::new(MODULES_PCR, EventKind::ModuleStopped.as_str(), "{}"))
                .line(),
        )
        .unwrap();
        tpm.extend_pcr(MODULES_PCR, [9; 32]).await.unwrap();
        assert!(matches!(
            open_audit(&tpm, dir.path()).await,
            Err(AuditError::RegisterMismatch { pcr: MODULES_PCR, .. })
        ));
    });
}

/// An attacker with access to the reset line can reset the TPM and replay the old extends.
#[test]
fn a_reset_of_the_tpm_ends_all_recording() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let before = open_audit(&tpm, dir.path()).await.unwrap();
        before.record(EventKind::ModuleStarted, &json!({})).await.unwrap();
        swtpm.reset();
        assert!(
            before.record(EventKind::ModuleStopped, &json!({})).await.is_err(),
            "the register has another value"
        );
        assert!(before.collect_evidence(&node_statement("00".repeat(8))).await.is_err());
        let records = before.records().await;
        for record in &records {
            tpm.extend_pcr(MODULES_PCR, record.event().digest()).await.unwrap();
        }
        assert_eq!(
            tpm.read_pcr(MODULES_PCR).await.unwrap(),
            replay(records.iter()).unwrap()[&MODULES_PCR],
            "the register has its old value again"
        );
        assert!(matches!(
            before.collect_evidence(&node_statement("00".repeat(8))).await,
            Err(AuditError::TpmReset { .. })
        ));
        assert!(
            matches!(
                before.record(EventKind::ModuleStopped, &json!({})).await,
                Err(AuditError::TpmReset { .. })
            ),
            "the error is permanent"
        );
        assert!(matches!(open_audit(&tpm, dir.path()).await, Err(AuditError::TpmReset { .. })));
    });
}

#[test]
fn an_altered_log_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        open_audit(&tpm, dir.path())
            .await
            .unwrap()
            .record(EventKind::ModuleStarted, &json!({ "module": "a" }))
            .await
            .unwrap();
        let log = dir.path().join("modules.log");
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, text.replace("\\\"a\\\"", "\\\"b\\\"")).unwrap();
        assert!(matches!(open_audit(&tpm, dir.path()).await, Err(AuditError::Log { .. })));
        std::fs::write(&log, "").unwrap();
        assert!(matches!(
            open_audit(&tpm, dir.path()).await,
            Err(AuditError::RegisterMismatch { .. })
        ));
    });
}

async fn attestation_key(tpm: &Tpm) -> TpmKey {
    TpmKey::attestation(&tpm.quote([1; 32]).await.unwrap().key).unwrap()
}

async fn endorsement_key(tpm: &Tpm) -> TpmKey {
    TpmKey::endorsement(&tpm.read_endorsement().await.unwrap().public_area).unwrap()
}

#[test]
fn only_the_tpm_with_both_keys_activates_a_credential() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (swtpm, other) = (Swtpm::start(dir.path()), Swtpm::start(other_dir.path()));
    run(async {
        let (tpm, other_tpm) = (swtpm.open().await, other.open().await);
        let (ak, other_ak) = (attestation_key(&tpm).await, attestation_key(&other_tpm).await);
        let (ek, other_ek) = (endorsement_key(&tpm).await, endorsement_key(&other_tpm).await);
        assert!(
            tpm.read_endorsement().await.unwrap().certificate.is_none(),
            "a software TPM has no certificate"
        );
        let secret = [42; 32];
        for n in 1..20u8 {
            let made = make_credential(&ek, &ak.name(), &secret, &[n; 32]).unwrap();
            assert_eq!(
                tpm.activate_credential(made.blob.clone(), made.seed.clone()).await.unwrap(),
                secret
            );
            assert!(
                other_tpm.activate_credential(made.blob, made.seed).await.is_err(),
                "another TPM"
            );
        }
        for (ek, name) in [(&ek, other_ak.name()), (&other_ek, ak.name()), (&ek, ek.name())] {
            let made = make_credential(ek, &name, &secret, &[1; 32]).unwrap();
            assert!(tpm.activate_credential(made.blob, made.seed).await.is_err(), "another key");
        }
        let made = make_credential(&ek, &ak.name(), &secret, &[1; 32]).unwrap();
        for bit in (0..made.blob.len() * 8).step_by(7) {
            let mut blob = made.blob.clone();
            blob[bit / 8] ^= 1 << (bit % 8);
            assert!(tpm.activate_credential(blob, made.seed.clone()).await.is_err(), "bit {bit}");
        }
        assert!(tpm.activate_credential(Vec::new(), Vec::new()).await.is_err());
        assert!(tpm.activate_credential(vec![0; 5000], vec![0; 5000]).await.is_err());
        // No handles are left in the TPM, which has room for a few only.
        for _ in 0..10 {
            tpm.quote([1; 32]).await.unwrap();
        }
    });
}

/// Runs Debian's tpm2_makecredential without a TPM (-T none). It takes the public area, the name
/// and the secret, and writes TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
#[test]
fn a_credential_of_tpm2_tools_is_activated() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let (ak, ek) = (attestation_key(&tpm).await, endorsement_key(&tpm).await);
        let secret = [42; 32];
        let file = |name: &str| dir.path().join(name);
        let area = ek.public_area();
        std::fs::write(file("ek.pub"), [&(area.len() as u16).to_be_bytes(), area].concat())
            .unwrap();
        std::fs::write(file("secret"), secret).unwrap();
        let made = std::process::Command::new("tpm2_makecredential")
            .args(["-T", "none", "-u"])
            .arg(file("ek.pub"))
            .arg("-s")
            .arg(file("secret"))
            .args(["-n", &measure::hex(&ak.name()), "-o"])
            .arg(file("credential"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // The file has a magic number and a version of four bytes each, then the two structures.
        let bytes = std::fs::read(file("credential")).unwrap();
        let read_sized = |at: usize| {
            let n = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            (bytes[at + 2..at + 2 + n].to_vec(), at + 2 + n)
        };
        let (blob, next) = read_sized(8);
        let (seed, end) = read_sized(next);
        assert_eq!(end, bytes.len());
        assert_eq!(tpm.activate_credential(blob, seed).await.unwrap(), secret);
    });
}

#[test]
fn keys_of_another_form_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let tpm = swtpm.open().await;
        let (quote, endorsement) =
            (tpm.quote([1; 32]).await.unwrap(), tpm.read_endorsement().await.unwrap());
        let (ak, ek) = (quote.key, endorsement.public_area);
        assert!(TpmKey::attestation(&ak).is_ok() && TpmKey::endorsement(&ek).is_ok());
        assert!(TpmKey::attestation(&ek).is_err() && TpmKey::endorsement(&ak).is_err());
        for (area, read) in
            [(&ak, TpmKey::attestation as fn(&[u8]) -> _), (&ek, TpmKey::endorsement)]
        {
            for end in 0..area.len() {
                assert!(read(&area[..end]).is_err());
            }
            assert!(read(&[&area[..], &[0]].concat()).is_err());
            // Attributes, algorithms, sizes and policy are fixed, and a point with another bit is
            // not on the curve.
            for bit in 0..area.len() * 8 {
                let mut other = area.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&other).is_err(), "bit {bit}");
            }
        }
    });
}
