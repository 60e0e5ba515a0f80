//! A node that follows a chain: decisions, and the persisted state of the chain. The bundles were
//! recorded on a real network (lib/ledger/tests/ethereum).
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/chain_fixture.rs"]
mod chain_fixture;
mod common;
#[path = "common/hang.rs"]
mod hang;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::admission::{Admission, AdmissionError};
use chain_fixture::{Fixture, Recording, approval, denial, now, run};
use hang::Hang;
use ledger::{ChainReason, Decision, NoteKey, Reason, Role, SigningKey};

/// Returns the file with the chain's state, which must be the only one.
fn state_file(data: &Path) -> PathBuf {
    let files = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = files
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("chain-"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

fn data(fixture: &Fixture) -> PathBuf {
    fixture.dir.path().join("data")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn assert_revoked(admission: &Admission, digest: &str) {
    let reason = denial(admission, digest);
    assert!(matches!(reason, ChainReason::Revoked { .. }), "{reason}");
}

#[test]
fn an_image_needs_the_approval_of_the_log_and_of_the_chain() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let node = recording.node(&[], 60);
        let [good, revoked, absent] = [0, 1, 2].map(|n| recording.digest(n));
        let admission = fixture.open_with_log(&node, &recording).await;
        assert_eq!(denial(&admission, &good), ChainReason::NotFollowed);
        assert!(admission.apply_bundle(&recording.bundle("approved")).await.unwrap());
        let repeated = admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        assert!(!repeated, "the second bundle has nothing new");
        let Decision::Allow(approval) = admission.decide(&good) else { panic!("denied") };
        assert!(approval.chain.unwrap().block > 0);
        assert_revoked(&admission, &revoked);
        assert!(matches!(denial(&admission, &absent), ChainReason::Absent { .. }));
        let unknown = format!("sha256:{}", "77".repeat(32));
        assert!(
            matches!(admission.decide(&unknown), Decision::Deny(Reason::Unknown { .. })),
            "the chain alone is not enough"
        );
    });
}

#[test]
fn the_state_of_the_chain_outlives_a_restart() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let node = recording.node(&[], 60);
        let good = recording.digest(0);
        let admission = fixture.open_with_log(&node, &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();

        // No relay answers after the restart, and the persisted state is recent enough.
        let admission = fixture.open(&node).await;
        assert!(matches!(admission.decide(&good), Decision::Allow(_)));
        assert!(admission.apply_bundle(&recording.bundle("attested")).await.unwrap());
        assert_revoked(&admission, &good);
        assert_revoked(&fixture.open(&node).await, &good);
        assert!(admission.apply_bundle(&recording.bundle("revoked")).await.unwrap());
        assert!(
            matches!(
                admission.apply_bundle(&recording.bundle("approved")).await,
                Err(AdmissionError::Chain(_))
            ),
            "heights do not go back"
        );
    });
}

/// Restores older files, first the whole data partition and then only the state of the chain, and
/// forges a state.
#[test]
fn an_older_or_forged_state_of_the_chain_is_rejected() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let node = recording.node(&[], 60);
        let good = recording.digest(0);
        let admission = fixture.open_with_log(&node, &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        let (data, before) = (data(&fixture), fixture.dir.path().join("before"));
        copy(&data, &before);
        admission.apply_bundle(&recording.bundle("attested")).await.unwrap();
        admission.apply_bundle(&recording.bundle("revoked")).await.unwrap();
        let after = fixture.dir.path().join("after");
        copy(&data, &after);
        let restore = |from: &Path| {
            std::fs::remove_dir_all(&data).unwrap();
            copy(from, &data);
        };
        let path_in_data = |file: &Path| data.join(file.file_name().unwrap());

        restore(&before);
        assert!(!matches!(fixture.open(&node).await.decide(&good), Decision::Allow(_)));

        restore(&after);
        std::fs::remove_file(state_file(&data)).unwrap();
        let older = state_file(&before);
        std::fs::copy(&older, path_in_data(&older)).unwrap();
        let unusable = fixture.open(&node).await;
        let ChainReason::Unusable(problem) = denial(&unusable, &good) else { panic!("used") };
        assert!(problem.contains("an older state was restored"), "{problem}");
        // Neither a longer log nor a bundle makes the state usable again.
        assert!(unusable.apply_bundle(&recording.bundle("approved")).await.is_err());
        let more = approval(4, &format!("sha256:{}", "44".repeat(32)));
        unusable.extend_log(&(recording.log() + &more)).await.unwrap();
        assert!(matches!(denial(&fixture.open(&node).await, &good), ChainReason::Unusable(_)));

        // The right file is accepted again: the mark was not lost.
        let newest = state_file(&after);
        std::fs::copy(&newest, path_in_data(&newest)).unwrap();
        assert_revoked(&fixture.open(&node).await, &good);

        let forged = std::fs::read_to_string(&newest).unwrap().replace("revoked", "absent");
        std::fs::write(path_in_data(&newest), forged).unwrap();
        let admission = fixture.open(&node).await;
        assert!(matches!(denial(&admission, &good), ChainReason::Unusable(_)));
        // After a reset the node follows the chain from the checkpoint again.
        admission.reset().await.unwrap();
        assert_eq!(denial(&admission, &good), ChainReason::NotFollowed);
        admission.apply_bundle(&recording.bundle("revoked")).await.unwrap();
        assert_revoked(&fixture.open(&node).await, &good);
    });
}

#[test]
fn files_that_a_kill_leaves_behind_are_ignored() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let node = recording.node(&[], 60);
        let good = recording.digest(0);
        let admission = fixture.open_with_log(&node, &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        let first = state_file(&data(&fixture));
        let text = std::fs::read(&first).unwrap();
        admission.apply_bundle(&recording.bundle("revoked")).await.unwrap();
        assert!(
            !first.exists() && state_file(&data(&fixture)) != first,
            "the older file is removed"
        );
        // A kill after the mark was written leaves the older file.
        std::fs::write(&first, &text).unwrap();
        assert_revoked(&fixture.open(&node).await, &good);
        // A kill before the mark leaves a newer file, complete or not.
        std::fs::write(
            data(&fixture).join(format!("chain-{}.json", "ab".repeat(32))),
            b"incomplete",
        )
        .unwrap();
        assert_revoked(&fixture.open(&node).await, &good);
    });
}

#[test]
#[cfg(feature = "engine-tests")] // Fail points need it: cargo xtask test engine.
fn a_kill_at_any_fail_point_loses_no_marked_state() {
    use std::os::unix::process::ExitStatusExt as _;
    /// Each fail point, and whether the new state is marked there.
    const FAIL_POINTS: [(&str, bool); 3] =
        [("chain-written", false), ("marked", true), ("chain-marked", true)];
    for (point, is_marked) in FAIL_POINTS {
        let recording = Recording::read();
        let (good, toml) = (recording.digest(0), recording.node_toml(&[], 60));
        let node: config::Node = config::parse("node.toml", &toml).unwrap();
        let Fixture { dir, swtpm, tpm } = run(async {
            let fixture = Fixture::new().await;
            fixture
                .open_with_log(&node, &recording)
                .await
                .apply_bundle(&recording.bundle("approved"))
                .await
                .unwrap();
            fixture
        });
        drop(tpm);
        std::fs::write(dir.path().join("node.toml"), &toml).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_process"])
            .env("BASALT_FAILPOINT", point)
            .env("BASALT_TEST_DIR", dir.path())
            .env("BASALT_TPM", &swtpm.tcti)
            .output()
            .unwrap();
        // SIGABRT, which a fail point raises. A failed assertion ends the process otherwise.
        assert_eq!(
            child.status.signal(),
            Some(6),
            "{point}: {}",
            String::from_utf8_lossy(&child.stdout)
        );
        run(async {
            let tpm = swtpm.open().await;
            let fixture = Fixture { dir, swtpm, tpm };
            let admission = fixture.open(&node).await;
            match admission.decide(&good) {
                Decision::Allow(_) => assert!(!is_marked, "{point}: the marked state is lost"),
                _ => assert!(
                    is_marked && matches!(denial(&admission, &good), ChainReason::Revoked { .. }),
                    "{point}"
                ),
            }
            // The node continues from there, and one file is left.
            admission.apply_bundle(&recording.bundle("revoked")).await.unwrap();
            assert!(
                matches!(denial(&fixture.open(&node).await, &good), ChainReason::Revoked { .. }),
                "{point}"
            );
            state_file(&data(&fixture));
        });
    }
}

#[test]
#[cfg(feature = "engine-tests")]
#[ignore = "child process of the test above, which aborts it at a fail point"]
fn child_process() {
    use basalt_trustd::tpm::Tpm;
    let dir = PathBuf::from(std::env::var_os("BASALT_TEST_DIR").unwrap());
    let text = std::fs::read_to_string(dir.join("node.toml")).unwrap();
    let node: config::Node = config::parse("node.toml", &text).unwrap();
    run(async {
        let tpm = Tpm::open(&std::env::var("BASALT_TPM").unwrap()).await.unwrap();
        let admission = chain_fixture::open_admission(&tpm, &dir, &node).await;
        admission.apply_bundle(&Recording::read().bundle("revoked")).await.unwrap();
    });
}

/// Adds a checkpoint to the log that one witness cosigned `age` seconds ago. Returns the settings
/// that require it and the new log.
fn add_cosigned_checkpoint(log: &str, age: u64) -> (config::Checkpoints, String) {
    let (key, witness) = (SigningKey::from_bytes(&[6; 32]), SigningKey::from_bytes(&[7; 32]));
    let note_key =
        |name: &str, role, key: &SigningKey| NoteKey::new(name, role, key.verifying_key()).unwrap();
    let (log_key, witness_key) =
        (note_key("t", Role::Log, &key), note_key("w", Role::Witness, &witness));
    let leaves = trustctl::statement::leaves(log, "t").unwrap();
    let cosigned = trustctl::witness::cosign(log, &leaves, "t", &key, &[], &[]).unwrap().log;
    let body = cosigned.rsplit_once("\n\n").unwrap().0;
    let body = format!("{}\n", &body[body.rfind("\n\n").map_or(0, |at| at + 2)..]);
    let time = now() - age;
    let signature = ed25519_dalek::Signer::sign(
        &witness,
        format!("cosignature/v1\ntime {time}\n{body}").as_bytes(),
    );
    let blob = [witness_key.id().as_slice(), &time.to_be_bytes(), &signature.to_bytes()].concat();
    let line = format!(
        "\u{2014} w {}\n",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, blob)
    );
    let checkpoints = config::Checkpoints {
        log: log_key.to_string(),
        witnesses: vec![witness_key.to_string()],
        threshold: 1,
        max_age_s: 60,
        stale_grace_s: 86_400,
    };
    (checkpoints, cosigned + &line)
}

#[test]
fn a_denial_with_a_grace_period_masks_none_without() {
    run(async {
        // The log is too old, which has a grace period, and the chain revokes.
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let mut node = recording.node(&[], 60);
        let (checkpoints, log) = add_cosigned_checkpoint(&recording.log(), 3600);
        node.ledger.checkpoints = Some(checkpoints);
        let good = recording.digest(0);
        let admission = fixture.open(&node).await;
        admission.extend_log(&log).await.unwrap();
        drop(admission.decide(&good));
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        let Decision::Deny(reason @ Reason::Stale { .. }) = admission.decide(&good) else {
            panic!("{:?}", admission.decide(&good))
        };
        assert!(admission.grace_period(&reason) > Duration::ZERO);
        admission.apply_bundle(&recording.bundle("attested")).await.unwrap();
        assert_revoked(&admission, &good);

        // The persisted state of the chain is too old, which has a grace period, and newer state
        // that could not be persisted revokes.
        let fixture = Fixture::new().await;
        let mut node = recording.node(&[], 4000);
        let chain = node.ledger.chain.as_mut().unwrap();
        (chain.max_age_s, chain.stale_grace_s) = (3600, 86_400);
        let admission = fixture.open_with_log(&node, &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        assert!(matches!(denial(&admission, &good), ChainReason::Stale { .. }));
        std::fs::create_dir(data(&fixture).join("ledger.new")).unwrap();
        admission.apply_bundle(&recording.bundle("attested")).await.unwrap_err();
        assert_revoked(&admission, &good);

        // An index is revoked, and no relay was asked for one of its members yet.
        let reason = |reason| Reason::Chain { digest: good.clone(), reason };
        let (revoked, not_asked) =
            (reason(ChainReason::Revoked { seq: 1, block: 1 }), reason(ChainReason::NotAsked));
        let both = admission.choose_stricter(Decision::Deny(revoked.clone()), not_asked.clone());
        assert_eq!(both, Decision::Deny(revoked.clone()));
        assert_eq!(
            admission.choose_stricter(Decision::Deny(not_asked), revoked.clone()),
            Decision::Deny(revoked)
        );
    });
}

#[test]
fn a_revocation_that_cannot_be_persisted_takes_effect() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let node = recording.node(&[], 60);
        let good = recording.digest(0);
        let admission = fixture.open_with_log(&node, &recording).await;
        // A folder with the name of the temporary file stands for a full disk.
        let full = data(&fixture).join("ledger.new");
        std::fs::create_dir(&full).unwrap();
        assert!(admission.apply_bundle(&recording.bundle("approved")).await.is_err());
        assert_eq!(
            denial(&admission, &good),
            ChainReason::NotFollowed,
            "an approval waits until it is persisted"
        );
        std::fs::remove_dir(&full).unwrap();
        assert!(admission.apply_bundle(&recording.bundle("approved")).await.unwrap());
        assert!(matches!(admission.decide(&good), Decision::Allow(_)));
        std::fs::create_dir(&full).unwrap();
        assert!(admission.apply_bundle(&recording.bundle("attested")).await.is_err());
        assert_revoked(&admission, &good);
        // The marked state is still the one before.
        assert!(matches!(fixture.open(&node).await.decide(&good), Decision::Allow(_)));
    });
}

/// The mark cannot be written, because the TPM does not answer.
#[test]
fn a_revocation_takes_effect_while_the_tpm_hangs() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let good = recording.digest(0);
        let admission = fixture.open_with_log(&recording.node(&[], 60), &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        let admission = Arc::new(admission);
        let hang = Hang::start(vec![fixture.swtpm.process()]);
        // The update of the log comes first, and waits for the TPM.
        let longer = recording.log() + &approval(4, &format!("sha256:{}", "66".repeat(32)));
        let log = tokio::spawn({
            let admission = admission.clone();
            async move { admission.extend_log(&longer).await }
        });
        let is_written = || {
            let files = std::fs::read_dir(fixture.dir.path().join("data")).unwrap();
            let mut texts = files.filter_map(|file| std::fs::read(file.unwrap().path()).ok());
            texts.any(|text| String::from_utf8_lossy(&text).contains("6666"))
        };
        while !is_written() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let bundle = tokio::spawn({
            let (admission, bundle) = (admission.clone(), recording.bundle("attested"));
            async move { admission.apply_bundle(&bundle).await }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while matches!(admission.decide(&good), Decision::Allow(_)) {
            assert!(Instant::now() < deadline, "the image is still allowed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_revoked(&admission, &good);
        assert!(!log.is_finished() && !bundle.is_finished());
        drop(hang);
        log.await.unwrap().unwrap();
        assert!(bundle.await.unwrap().unwrap());
        assert_revoked(&admission, &good);
    });
}

#[test]
fn a_member_of_an_approved_index_can_be_revoked() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let admission = fixture.open_with_log(&recording.node(&[], 60), &recording).await;
        // Neither the log nor a bundle has this image.
        let unknown = format!("sha256:{}", "66".repeat(32));
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        assert!(matches!(
            admission.find_member_denial(&unknown),
            Some(Reason::Chain { reason: ChainReason::NotAsked, .. })
        ));
        assert!(
            admission.find_member_denial(&recording.digest(0)).is_none()
                && admission.find_member_denial(&recording.digest(2)).is_none()
        );
        let revoked = admission.find_member_denial(&recording.digest(1)).unwrap();
        assert!(matches!(revoked, Reason::Chain { reason: ChainReason::Revoked { .. }, .. }));
        // If the relays withhold the record, the known one becomes too old.
        let fixture = Fixture::new().await;
        let mut node = recording.node(&[], 4000);
        node.ledger.chain.as_mut().unwrap().max_age_s = 3600;
        let admission = fixture.open_with_log(&node, &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        let stale = admission.find_member_denial(&recording.digest(2)).unwrap();
        assert!(
            matches!(stale, Reason::Chain { reason: ChainReason::Stale { .. }, .. }),
            "{stale}"
        );
    });
}

#[test]
fn stale_state_is_denied_after_its_grace_period() {
    run(async {
        let (fixture, recording) = (Fixture::new().await, Recording::read());
        let mut node = recording.node(&[], 4000);
        node.ledger.chain.as_mut().unwrap().max_age_s = 3600;
        let admission = fixture.open_with_log(&node, &recording).await;
        admission.apply_bundle(&recording.bundle("approved")).await.unwrap();
        let Decision::Deny(reason) = admission.decide(&recording.digest(0)) else {
            panic!("allowed")
        };
        assert!(
            matches!(&reason, Reason::Chain { reason: ChainReason::Stale { .. }, .. }),
            "{reason}"
        );
        assert_eq!(admission.grace_period(&reason), Duration::ZERO);
        node.ledger.chain.as_mut().unwrap().stale_grace_s = 7200;
        let reopened = fixture.open(&node).await;
        assert_eq!(reopened.grace_period(&reason), Duration::MAX);
        // After a restart the node waits for the relays, because the persisted state can be older
        // than the one that was known before.
        node.ledger.chain.as_mut().unwrap().stale_grace_s = 0;
        let reopened = fixture.open(&node).await;
        assert!((Duration::from_secs(60)..Duration::MAX).contains(&reopened.grace_period(&reason)));
        reopened.apply_bundle(&recording.bundle("approved")).await.unwrap();
        assert_eq!(reopened.grace_period(&reason), Duration::ZERO);
    });
}
