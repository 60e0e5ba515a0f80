//! The root key under the seal of a software TPM: which boots have it, and the way back.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use basalt_trustd::audit::Audit;
use basalt_trustd::keys::derive::{Binding, RootKey};
use basalt_trustd::keys::root_key::{Refusal, Vault, VaultError};
use basalt_trustd::owner_api::common::Base;
use basalt_trustd::owner_api::locked;
use basalt_trustd::tpm::{Tpm, TpmError};
use common::{SHIPPED, Swtpm, boot, signer, vault};
use config::Keys;
use http_body_util::BodyExt as _;
use measure::{Event, PLATFORM_PCR, Pcr, Record};
use policy::{Policies, RecoveryKey, Signer};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use vrf::Suite;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// As init would have measured this image; writes its log beside.
async fn booted(swtpm: &Swtpm, image: &str, dir: &Path) -> (Tpm, Pcr) {
    let event = Event::new(PLATFORM_PCR, "verity-root", image);
    let extended = format!("{PLATFORM_PCR}:sha256={}", measure::hex(&event.digest()));
    assert!(
        Command::new("tpm2_pcrextend")
            .args([&extended, "-T", &swtpm.tcti])
            .status()
            .unwrap()
            .success()
    );
    std::fs::write(dir.join("platform.log"), Record::new(0, &event).line()).unwrap();
    let mut pcr14 = Pcr::default();
    pcr14.extend(&event.digest());
    let tpm = swtpm.open().await;
    assert_eq!(tpm.read(PLATFORM_PCR).await.unwrap(), pcr14);
    (tpm, pcr14)
}

fn of(root: &RootKey) -> Vec<u8> {
    root.module("m", &Binding::Approvers([1; 32])).vrf(Suite::P256Tai).public_key().to_vec()
}

async fn locked_because(vault: &Vault) -> String {
    match vault.open().await {
        Err(VaultError::Locked(why)) => why.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it has its root key"),
    }
}

fn policies(signer: &Signer, pcrs: &[Pcr]) -> Policies {
    Policies {
        signer: signer.public().hex(),
        policies: pcrs.iter().map(|pcr| signer.sign("test", pcr)).collect(),
    }
}

#[test]
fn an_update_of_the_same_signer_unseals_and_no_other_boot_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let swtpm = Swtpm::start(path);
    run(async {
        let (tpm, first) = booted(&swtpm, "one", path).await;
        let vault_for = |tpm: &Tpm, pcr14| vault(tpm, pcr14, path, path, &Keys::default());
        let key = of(&vault_for(&tpm, first).open().await.unwrap());
        assert_eq!(of(&vault_for(&tpm, first).open().await.unwrap()), key);

        // Another boot: the same signer, another image.
        swtpm.reset();
        let (tpm, second) = booted(&swtpm, "two", path).await;
        let updated = vault_for(&tpm, second);
        assert_eq!(of(&updated.open().await.unwrap()), key);
        let shipped = path.join(SHIPPED);
        let with = |text: &str| std::fs::write(&shipped, text).unwrap();
        with(&policies(&signer(), &[first]).text());
        assert!(locked_because(&updated).await.contains("none is for this boot's PCR 14"));
        let stranger = Signer::of_builder(&[8; 32]);
        with(&policies(&stranger, &[second]).text());
        assert!(
            locked_because(&updated)
                .await
                .contains(&format!("signed by {}", stranger.public().hex()))
        );
        // What he signed, under our name.
        with(
            &policies(&stranger, &[second])
                .text()
                .replace(&stranger.public().hex(), &signer().public().hex()),
        );
        assert!(locked_because(&updated).await.contains("its signature is not the signer's"));
        with("[");
        assert!(locked_because(&updated).await.contains("not a list of policies"));
        std::fs::remove_file(&shipped).unwrap();
        assert!(locked_because(&updated).await.contains("there are none"));
        // Sent beforehand, or now.
        assert_eq!(
            updated.accept(policies(&signer(), &[second]).text().as_bytes()).unwrap(),
            [measure::hex(&second.0)]
        );
        assert_eq!(of(&updated.open().await.unwrap()), key);
    });
}

/// It is the TPM that refuses, whatever a program on the node believes.
#[test]
fn the_tpm_itself_asks_for_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = booted(&swtpm, "one", dir.path()).await;
        let (ours, stranger) = (signer(), Signer::of_builder(&[8; 32]));
        let approved = |signer: &Signer, pcr14: Pcr| {
            policies(signer, &[pcr14]).find(&signer.public(), &pcr14).unwrap()
        };
        let sealed = tpm.seal(vec![5; 32], Some(ours.public().authorises())).await.unwrap();
        assert_eq!(tpm.unseal(sealed.clone(), Some(approved(&ours, now))).await.unwrap(), [5; 32]);
        let (good, theirs) = (approved(&ours, now), approved(&stranger, now));
        let mut forged = good.clone();
        forged.signature[63] ^= 1;
        let cases = [
            ("no policy", None),
            ("a stranger's", Some(theirs.clone())),
            (
                "a stranger's signature",
                Some(policy::Approved { signature: theirs.signature, ..good.clone() }),
            ),
            ("a flipped bit", Some(forged)),
            ("of another boot", Some(approved(&ours, Pcr([3; 32])))),
        ];
        for (what, policy) in cases {
            let refused = tpm.unseal(sealed.clone(), policy).await.map(drop).unwrap_err();
            assert!(
                matches!(&refused, TpmError::Refused { what: "Unseal", .. }),
                "{what}: {refused}"
            );
        }
        assert_eq!(
            tpm.unseal(sealed.clone(), Some(good.clone())).await.unwrap(),
            [5; 32],
            "nothing is locked out by that"
        );
        // The register goes on: this boot's policy is over.
        let event = format!("{PLATFORM_PCR}:sha256={}", "11".repeat(32));
        assert!(
            Command::new("tpm2_pcrextend")
                .args([&event, "-T", &swtpm.tcti])
                .status()
                .unwrap()
                .success()
        );
        assert!(tpm.unseal(sealed, Some(good)).await.unwrap_err().is_of("Unseal"));
    });
}

#[test]
fn policies_are_kept_if_they_are_the_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = booted(&swtpm, "one", dir.path()).await;
        let vault = vault(&tpm, now, dir.path(), dir.path(), &Keys::default());
        let stranger = Signer::of_builder(&[8; 32]);
        assert!(matches!(vault.accept(b"{}"), Err(Refusal::Form(_))));
        let text = policies(&stranger, &[now]).text();
        assert!(matches!(vault.accept(text.as_bytes()), Err(Refusal::Signer(_))));
        let pcrs: Vec<Pcr> = (0..130).map(|n| Pcr([n; 32])).collect();
        let send =
            |pcrs: &[Pcr]| vault.accept(policies(&signer(), pcrs).text().as_bytes()).unwrap();
        assert_eq!(send(&pcrs[..2]).len(), 2);
        assert_eq!(send(&pcrs[1..3]).len(), 3, "none is there twice");
        assert_eq!(send(&pcrs[3..103]).len(), 100, "the newest come first");
        assert_eq!(send(&pcrs[103..104])[0], measure::hex(&pcrs[103].0));
        // Where the key is sealed for one signer, another of the image's does not count.
        vault.open().await.unwrap();
        let other = config::Boot { signer: stranger.public().hex(), ..boot() };
        let updated = Vault::new(
            tpm.clone(),
            now,
            &other,
            &Keys::default(),
            dir.path(),
            &dir.path().join(SHIPPED),
        )
        .unwrap();
        let key = of(&updated.open().await.unwrap());
        assert!(matches!(updated.accept(text.as_bytes()), Err(Refusal::Signer(_))));
        // Once both have signed for one boot, the next ones are the new one's affair.
        std::fs::write(dir.path().join(SHIPPED), &text).unwrap();
        vault.accept(policies(&signer(), &[now]).text().as_bytes()).unwrap();
        assert_eq!(of(&updated.open().await.unwrap()), key);
        assert_eq!(updated.signer().unwrap(), stranger.public());
        assert_eq!(of(&updated.open().await.unwrap()), key);
    });
}

#[test]
fn the_holder_of_the_recovery_key_brings_a_root_key_to_another_tpm_and_nobody_else_does() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path();
    let (swtpm, other) = (Swtpm::start(path), Swtpm::start(other_dir.path()));
    let recovery = RecoveryKey::from_bytes([4; 32]);
    let keys = Keys { recovery: Some(recovery.public().unwrap().to_string()), ..Keys::default() };
    run(async {
        let (tpm, now) = booted(&swtpm, "one", path).await;
        let first = vault(&tpm, now, path, path, &keys);
        let key = of(&first.open().await.unwrap());
        let escrow = first.escrow().unwrap().unwrap();
        let root = escrow.open(&recovery).unwrap();
        assert_eq!(of(&RootKey::from_bytes(&root)), key);
        assert!(matches!(first.restore(&root).await, Err(Refusal::There)));
        // One that got lost is made again, and stays from then on.
        std::fs::remove_file(path.join("root.escrow")).unwrap();
        first.open().await.unwrap();
        assert_eq!(first.escrow().unwrap().unwrap().open(&recovery).unwrap(), root);
        let (kept, _) = (first.escrow().unwrap(), first.open().await.unwrap());
        assert_eq!(first.escrow().unwrap(), kept);

        // The card in another board.
        let (tpm, now) = booted(&other, "one", path).await;
        let second = vault(&tpm, now, path, path, &keys);
        let why = locked_because(&second).await;
        assert!(
            why.contains("was the TPM exchanged or cleared?")
                && why.contains("trustctl recovery restore"),
            "{why}"
        );
        assert!(matches!(second.restore(&[1; 31]).await, Err(Refusal::Length(31))));
        let without = vault(&tpm, now, path, path, &Keys::default());
        assert!(
            matches!(without.restore(&root).await, Err(Refusal::NoRecovery)),
            "the measured settings do not name a recovery key"
        );
        // Not for a boot that has no policy: it could not have the key either.
        std::fs::remove_file(path.join(SHIPPED)).unwrap();
        assert!(second.restore(&root).await.unwrap_err().to_string().contains("no policy of"));
        let second = vault(&tpm, now, path, path, &keys);
        second.restore(&root).await.unwrap();
        assert_eq!(of(&second.open().await.unwrap()), key);

        // A new card waits for the key if it is told to; otherwise it begins anew.
        let fresh = tempfile::tempdir().unwrap();
        let waiting = vault(&tpm, now, fresh.path(), path, &Keys { restore: true, ..keys.clone() });
        assert!(locked_because(&waiting).await.contains("keys.restore"));
        waiting.restore(&root).await.unwrap();
        assert_eq!(of(&waiting.open().await.unwrap()), key);
        // A file that is no sealed key is like none, but not made anew by itself.
        std::fs::write(fresh.path().join("root.sealed"), "junk").unwrap();
        assert!(locked_because(&waiting).await.contains("damaged"));
        waiting.restore(&root).await.unwrap();
        assert_eq!(of(&waiting.open().await.unwrap()), key);
        let fresh = tempfile::tempdir().unwrap();
        let begun = of(&vault(&tpm, now, fresh.path(), path, &keys).open().await.unwrap());
        assert_ne!(begun, key);
    });
}

#[test]
fn a_secret_of_the_tpm_lasts_and_begins_anew_with_another() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (swtpm, other) = (Swtpm::start(dir.path()), Swtpm::start(other_dir.path()));
    let path = dir.path().join("node.sealed");
    run(async {
        let secret = async |tpm: &Tpm| {
            of(&basalt_trustd::keys::root_key::of_this_tpm(tpm, &path).await.unwrap())
        };
        let (tpm, other) = (swtpm.open().await, other.open().await);
        let first = secret(&tpm).await;
        assert_eq!(secret(&tpm).await, first);
        let second = secret(&other).await;
        assert_ne!(second, first);
        assert_eq!(secret(&other).await, second);
    });
}

/// A node without its root key still says what it is, takes what may help, and does nothing else.
#[test]
fn a_locked_node_serves_attestation_and_the_way_back_only() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = booted(&swtpm, "one", dir.path()).await;
        let audit = Arc::new(
            Audit::open(tpm.clone(), &dir.path().join("platform.log"), dir.path(), dir.path())
                .await
                .unwrap(),
        );
        let (keys, certificate) = (Keys::default(), "ab".repeat(32));
        let vault = vault(&tpm, now, dir.path(), dir.path(), &keys);
        std::fs::remove_file(dir.path().join(SHIPPED)).unwrap();
        let why = locked_because(&vault).await;
        let opened = tokio::sync::Notify::new();
        let base = Arc::new(Base {
            boot: boot(),
            machine: "virt".into(),
            audit,
            vault,
            init: dir.path().join("init"),
            certificate,
            opened,
        });
        let router = locked::router(base.clone(), &why);
        let ask = async |method: &str, path: &str, body: Value| {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", "application/json");
            let response = router
                .clone()
                .oneshot(request.body(Body::from(body.to_string())).unwrap())
                .await
                .unwrap();
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice::<Value>(&bytes).unwrap())
        };
        let (status, said) = ask("GET", "/v1/status", json!(null)).await;
        assert!(
            status == 200 && said["locked"] == why.as_str() && said["machine"] == "virt",
            "{said}"
        );
        assert_eq!(ask("POST", "/v1/quote", json!({ "nonce": "00".repeat(8) })).await.0, 200);
        for (method, path) in [
            ("GET", "/v1/modules"),
            ("PUT", "/v1/modules/a"),
            ("PUT", "/v1/images"),
            ("POST", "/v1/ledger/reset"),
            ("GET", "/"),
        ] {
            let (status, said) = ask(method, path, json!({})).await;
            assert!(
                status == 503
                    && said["error"]["code"] == "locked"
                    && said["error"]["message"] == why.as_str(),
                "{path}: {said}"
            );
        }
        let (_, wanted) = ask("GET", "/v1/policies", json!(null)).await;
        assert_eq!(
            wanted,
            json!({ "signer": signer().public().hex(), "pcr14": measure::hex(&now.0) })
        );
        assert_eq!(ask("PUT", "/v1/recovery", json!({ "root": "00".repeat(32) })).await.0, 409);
        let (status, said) = ask("PUT", "/v1/policies", json!(policies(&signer(), &[now]))).await;
        assert!(status == 200 && said["this_boot"] == true, "{said}");
        base.opened.notified().await;
        base.vault.open().await.unwrap();
    });
}
