//! The root key under the seal of a software TPM: which boots can unseal it, and how it
//! is restored.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use basalt_trustd::audit::Audit;
use basalt_trustd::keys::derive::{Binding, RootKey};
use basalt_trustd::keys::error::{ProvisionError, VaultError};
use basalt_trustd::keys::node_secret;
use basalt_trustd::keys::root_key::RootKeyVault;
use basalt_trustd::owner_api::locked;
use basalt_trustd::owner_api::state::NodeState;
use basalt_trustd::tpm::{Tpm, TpmError};
use basalt_trustd::util::error_chain::error_chain;
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

/// Extends PCR 14 as init does when it boots this image, and writes the platform log to `dir`.
async fn boot_image(swtpm: &Swtpm, image: &str, dir: &Path) -> (Tpm, Pcr) {
    let event = Event::new(PLATFORM_PCR, "verity-root", image);
    let extend = format!("{PLATFORM_PCR}:sha256={}", measure::hex(&event.digest()));
    assert!(
        Command::new("tpm2_pcrextend")
            .args([&extend, "-T", &swtpm.tcti])
            .status()
            .unwrap()
            .success()
    );
    std::fs::write(dir.join("platform.log"), Record::new(0, &event).line()).unwrap();
    let mut pcr14 = Pcr::default();
    pcr14.extend(&event.digest());
    let tpm = swtpm.open().await;
    assert_eq!(tpm.read_pcr(PLATFORM_PCR).await.unwrap(), pcr14);
    (tpm, pcr14)
}

/// Returns a public key that is derived from the root key, to compare root keys by.
fn derived_key(root: &RootKey) -> Vec<u8> {
    root.derive_module_keys("m", &Binding::Approvers([1; 32]))
        .vrf_key(Suite::P256Tai)
        .public_key()
        .to_vec()
}

/// Returns why the node is locked.
async fn lock_reason(vault: &RootKeyVault) -> String {
    match vault.open().await {
        Err(VaultError::Locked(reason)) => error_chain(&reason),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the node has its root key"),
    }
}

fn policies(signer: &Signer, pcrs: &[Pcr]) -> Policies {
    Policies {
        signer: signer.public().hex(),
        policies: pcrs.iter().map(|pcr| signer.sign("test", pcr)).collect(),
    }
}

#[test]
fn only_boots_with_a_policy_of_the_signer_unseal_the_root_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let swtpm = Swtpm::start(path);
    run(async {
        let (tpm, first) = boot_image(&swtpm, "one", path).await;
        let vault_for = |tpm: &Tpm, pcr14| vault(tpm, pcr14, path, path, &Keys::default());
        let key = derived_key(&vault_for(&tpm, first).open().await.unwrap());
        assert_eq!(derived_key(&vault_for(&tpm, first).open().await.unwrap()), key);

        // The node boots another image of the same signer.
        swtpm.reset();
        let (tpm, second) = boot_image(&swtpm, "two", path).await;
        let updated = vault_for(&tpm, second);
        assert_eq!(derived_key(&updated.open().await.unwrap()), key);
        let shipped = path.join(SHIPPED);
        let ship = |text: &str| std::fs::write(&shipped, text).unwrap();
        ship(&policies(&signer(), &[first]).text());
        assert!(lock_reason(&updated).await.contains("no policy for PCR 14"));
        let other_signer = Signer::from_builder_key(&[8; 32]);
        ship(&policies(&other_signer, &[second]).text());
        assert!(
            lock_reason(&updated)
                .await
                .contains(&format!("signed by {}", other_signer.public().hex()))
        );
        // The other signer's policies name our signer.
        ship(
            &policies(&other_signer, &[second])
                .text()
                .replace(&other_signer.public().hex(), &signer().public().hex()),
        );
        assert!(lock_reason(&updated).await.contains("the signature is not the signer's"));
        ship("[");
        assert!(lock_reason(&updated).await.contains("not a list of policies"));
        std::fs::remove_file(&shipped).unwrap();
        assert!(lock_reason(&updated).await.contains("there are no policies"));
        // The owner sends the policy.
        assert_eq!(
            updated.accept_policies(policies(&signer(), &[second]).text().as_bytes()).unwrap(),
            [measure::hex(&second.0)]
        );
        assert_eq!(derived_key(&updated.open().await.unwrap()), key);
    });
}

/// The TPM rejects the request, independent of any program on the node.
#[test]
fn the_tpm_itself_enforces_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = boot_image(&swtpm, "one", dir.path()).await;
        let (ours, other_signer) = (signer(), Signer::from_builder_key(&[8; 32]));
        let approved = |signer: &Signer, pcr14: Pcr| {
            policies(signer, &[pcr14]).find(&signer.public(), &pcr14).unwrap()
        };
        let sealed =
            tpm.seal(vec![5; 32], Some(ours.public().authorization_policy())).await.unwrap();
        assert_eq!(tpm.unseal(sealed.clone(), Some(approved(&ours, now))).await.unwrap(), [5; 32]);
        let (good, theirs) = (approved(&ours, now), approved(&other_signer, now));
        let mut forged = good.clone();
        forged.signature[63] ^= 1;
        let cases = [
            ("no policy", None),
            ("a policy of another signer", Some(theirs.clone())),
            (
                "a signature of another signer",
                Some(policy::AuthorizedPolicy { signature: theirs.signature, ..good.clone() }),
            ),
            ("a flipped bit", Some(forged)),
            ("a policy for another boot", Some(approved(&ours, Pcr([3; 32])))),
        ];
        for (case, policy) in cases {
            let error = tpm.unseal(sealed.clone(), policy).await.map(drop).unwrap_err();
            assert!(
                matches!(&error, TpmError::Operation { operation: "Unseal", .. }),
                "{case}: {error}"
            );
        }
        assert_eq!(
            tpm.unseal(sealed.clone(), Some(good.clone())).await.unwrap(),
            [5; 32],
            "rejected attempts cause no lockout"
        );
        // A further extend of the register invalidates the policy of this boot.
        let event = format!("{PLATFORM_PCR}:sha256={}", "11".repeat(32));
        assert!(
            Command::new("tpm2_pcrextend")
                .args([&event, "-T", &swtpm.tcti])
                .status()
                .unwrap()
                .success()
        );
        assert!(tpm.unseal(sealed, Some(good)).await.unwrap_err().is_rejection_of("Unseal"));
    });
}

#[test]
fn only_policies_of_the_signer_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = boot_image(&swtpm, "one", dir.path()).await;
        let vault = vault(&tpm, now, dir.path(), dir.path(), &Keys::default());
        let other_signer = Signer::from_builder_key(&[8; 32]);
        assert!(matches!(vault.accept_policies(b"{}"), Err(ProvisionError::Policy(_))));
        let text = policies(&other_signer, &[now]).text();
        assert!(matches!(vault.accept_policies(text.as_bytes()), Err(ProvisionError::Signer(_))));
        let pcrs: Vec<Pcr> = (0..130).map(|n| Pcr([n; 32])).collect();
        let send = |pcrs: &[Pcr]| {
            vault.accept_policies(policies(&signer(), pcrs).text().as_bytes()).unwrap()
        };
        assert_eq!(send(&pcrs[..2]).len(), 2);
        assert_eq!(send(&pcrs[1..3]).len(), 3, "no policy is stored twice");
        assert_eq!(send(&pcrs[3..103]).len(), 100, "the newest come first");
        assert_eq!(send(&pcrs[103..104])[0], measure::hex(&pcrs[103].0));
    });
}

#[test]
fn the_root_key_moves_to_another_signer_in_a_boot_that_both_signed_for() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = boot_image(&swtpm, "one", dir.path()).await;
        let vault = vault(&tpm, now, dir.path(), dir.path(), &Keys::default());
        let other_signer = Signer::from_builder_key(&[8; 32]);
        let text = policies(&other_signer, &[now]).text();
        // The key is sealed to one signer, and the updated image names another.
        vault.open().await.unwrap();
        let other = config::Boot { signer: other_signer.public().hex(), ..boot() };
        let updated = RootKeyVault::new(
            tpm.clone(),
            now,
            &other,
            &Keys::default(),
            dir.path(),
            &dir.path().join(SHIPPED),
        )
        .unwrap();
        let key = derived_key(&updated.open().await.unwrap());
        assert!(matches!(updated.accept_policies(text.as_bytes()), Err(ProvisionError::Signer(_))));
        // Once both signers signed for one boot, the new signer alone authorises later boots.
        std::fs::write(dir.path().join(SHIPPED), &text).unwrap();
        vault.accept_policies(policies(&signer(), &[now]).text().as_bytes()).unwrap();
        assert_eq!(derived_key(&updated.open().await.unwrap()), key);
        assert_eq!(updated.signer().unwrap(), other_signer.public());
        assert_eq!(derived_key(&updated.open().await.unwrap()), key);
    });
}

#[test]
fn the_holder_of_the_recovery_key_restores_the_root_key_to_another_tpm() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path();
    let (swtpm, other) = (Swtpm::start(path), Swtpm::start(other_dir.path()));
    let recovery = RecoveryKey::from_bytes([4; 32]);
    let keys = Keys { recovery: Some(recovery.public().unwrap().to_string()), ..Keys::default() };
    run(async {
        let (tpm, now) = boot_image(&swtpm, "one", path).await;
        let first = vault(&tpm, now, path, path, &keys);
        let key = derived_key(&first.open().await.unwrap());
        let escrow = first.escrow().unwrap().unwrap();
        let root = escrow.open(&recovery).unwrap();
        assert_eq!(derived_key(&RootKey::from_bytes(&root)), key);
        assert!(matches!(first.restore(&root).await, Err(ProvisionError::AlreadyPresent)));
        // A lost escrow is made again, and is not changed after that.
        std::fs::remove_file(path.join("root.escrow")).unwrap();
        first.open().await.unwrap();
        assert_eq!(first.escrow().unwrap().unwrap().open(&recovery).unwrap(), root);
        let (escrow, _) = (first.escrow().unwrap(), first.open().await.unwrap());
        assert_eq!(first.escrow().unwrap(), escrow);

        // The card is moved to another board.
        let (tpm, now) = boot_image(&other, "one", path).await;
        let second = vault(&tpm, now, path, path, &keys);
        let reason = lock_reason(&second).await;
        assert!(
            reason.contains("if the TPM was exchanged or cleared")
                && reason.contains("trustctl recovery restore")
                && reason.contains("sealed under the storage key"),
            "{reason}"
        );
        assert!(matches!(second.restore(&[1; 31]).await, Err(ProvisionError::KeyLength(31))));
        let without = vault(&tpm, now, path, path, &Keys::default());
        assert!(
            matches!(without.restore(&root).await, Err(ProvisionError::NoRecoveryKey)),
            "the measured settings name no recovery key"
        );
        // A boot without a policy cannot have the key, so it cannot restore it either.
        std::fs::remove_file(path.join(SHIPPED)).unwrap();
        assert!(second.restore(&root).await.unwrap_err().to_string().contains("no policy of"));
        let second = vault(&tpm, now, path, path, &keys);
        second.restore(&root).await.unwrap();
        assert_eq!(derived_key(&second.open().await.unwrap()), key);
    });
}

#[test]
fn a_new_card_waits_for_the_root_key_or_generates_one() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path();
    let (swtpm, other) = (Swtpm::start(path), Swtpm::start(other_dir.path()));
    let recovery = RecoveryKey::from_bytes([4; 32]);
    let keys = Keys { recovery: Some(recovery.public().unwrap().to_string()), ..Keys::default() };
    run(async {
        let (tpm, now) = boot_image(&swtpm, "one", path).await;
        let first = vault(&tpm, now, path, path, &keys);
        let key = derived_key(&first.open().await.unwrap());
        let root = first.escrow().unwrap().unwrap().open(&recovery).unwrap();
        let (tpm, now) = boot_image(&other, "one", path).await;

        let fresh = tempfile::tempdir().unwrap();
        let waiting = vault(&tpm, now, fresh.path(), path, &Keys { restore: true, ..keys.clone() });
        assert!(lock_reason(&waiting).await.contains("keys.restore"));
        waiting.restore(&root).await.unwrap();
        assert_eq!(derived_key(&waiting.open().await.unwrap()), key);
        // A damaged file locks the node until the key is restored; no new key is generated.
        std::fs::write(fresh.path().join("root.sealed"), "junk").unwrap();
        assert!(lock_reason(&waiting).await.contains("damaged"));
        waiting.restore(&root).await.unwrap();
        assert_eq!(derived_key(&waiting.open().await.unwrap()), key);
        let fresh = tempfile::tempdir().unwrap();
        let generated =
            derived_key(&vault(&tpm, now, fresh.path(), path, &keys).open().await.unwrap());
        assert_ne!(generated, key);
    });
}

#[test]
fn the_secret_of_the_node_is_stable_and_replaced_on_another_tpm() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (swtpm, other) = (Swtpm::start(dir.path()), Swtpm::start(other_dir.path()));
    let path = dir.path().join("node.sealed");
    run(async {
        let secret = async |tpm: &Tpm| derived_key(&node_secret::open(tpm, &path).await.unwrap());
        let (tpm, other) = (swtpm.open().await, other.open().await);
        let first = secret(&tpm).await;
        assert_eq!(secret(&tpm).await, first);
        let second = secret(&other).await;
        assert_ne!(second, first);
        assert_eq!(secret(&other).await, second);
    });
}

/// Sends a request to the router and returns the status and the answer.
async fn send_request(router: Router, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request =
        Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn a_locked_node_serves_only_attestation_policies_and_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    run(async {
        let (tpm, now) = boot_image(&swtpm, "one", dir.path()).await;
        let audit = Arc::new(
            Audit::open(tpm.clone(), &dir.path().join("platform.log"), dir.path(), dir.path())
                .await
                .unwrap(),
        );
        let (keys, certificate) = (Keys::default(), "ab".repeat(32));
        let vault = vault(&tpm, now, dir.path(), dir.path(), &keys);
        std::fs::remove_file(dir.path().join(SHIPPED)).unwrap();
        let reason = lock_reason(&vault).await;
        let state = Arc::new(NodeState {
            boot: boot(),
            machine: "virt".into(),
            audit,
            vault,
            init_socket: dir.path().join("init"),
            certificate,
            unlock: tokio::sync::Notify::new(),
        });
        let router = locked::router(state.clone(), &reason);
        let call = async |method: &str, path: &str, body: Value| {
            send_request(router.clone(), method, path, body).await
        };
        let (status, answer) = call("GET", "/v1/status", json!(null)).await;
        assert!(
            status == 200 && answer["locked"] == reason.as_str() && answer["machine"] == "virt",
            "{answer}"
        );
        assert_eq!(call("POST", "/v1/quote", json!({ "nonce": "00".repeat(8) })).await.0, 200);
        for (method, path) in [
            ("GET", "/v1/modules"),
            ("PUT", "/v1/modules/a"),
            ("PUT", "/v1/images"),
            ("POST", "/v1/ledger/reset"),
            ("GET", "/"),
        ] {
            let (status, answer) = call(method, path, json!({})).await;
            assert!(
                status == 503
                    && answer["error"]["code"] == "locked"
                    && answer["error"]["message"] == reason.as_str(),
                "{path}: {answer}"
            );
        }
        let (_, requirement) = call("GET", "/v1/policies", json!(null)).await;
        assert_eq!(
            requirement,
            json!({ "signer": signer().public().hex(), "pcr14": measure::hex(&now.0) })
        );
        assert_eq!(call("PUT", "/v1/recovery", json!({ "root": "00".repeat(32) })).await.0, 409);
        let (status, answer) =
            call("PUT", "/v1/policies", json!(policies(&signer(), &[now]))).await;
        assert!(status == 200 && answer["this_boot"] == true, "{answer}");
        state.unlock.notified().await;
        state.vault.open().await.unwrap();
    });
}
