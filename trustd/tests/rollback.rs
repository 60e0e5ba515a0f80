//! Rollback protection of the ledger's log, against a software TPM: no older state is accepted.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/hang.rs"]
mod hang;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::admission::Admission;
use basalt_trustd::tpm::Tpm;
use common::{Swtpm, vault};
use hang::Hang;
use ledger::{Decision, ImageStatement, LogEntry, Reason, SigningKey, Status};
use measure::Pcr;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Name of the file that replaces the log's head. A folder of this name stands for a full disk.
const TEMPORARY_HEAD: &str = "ledger-head.new";

/// Returns the digest of an image of the tests.
fn digest(byte: &str) -> String {
    format!("sha256:{}", byte.repeat(32))
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// Returns a line of the log, signed by the approver.
fn log_line(seq: u64, digest: &str, status: Status) -> String {
    log_line_until(seq, digest, status, u64::MAX)
}

/// Returns a line of the log whose approval expires at `exp`.
fn log_line_until(seq: u64, digest: &str, status: Status, exp: u64) -> String {
    let statement = ImageStatement { digest: digest.to_owned(), exp, iat: 0, seq, status };
    let mut entry = LogEntry::new(statement);
    entry.sign("t", &key());
    entry.line() + "\n"
}

/// Returns a log that approves the image `ab`, and a longer one that revokes it.
fn logs() -> (String, String) {
    let approved = log_line(1, &digest("ab"), Status::Approved);
    let revoked = approved.clone() + &log_line(2, &digest("ab"), Status::Revoked);
    (approved, revoked)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Returns the settings of a node with one approver.
fn node() -> config::Node {
    let text = format!(
        "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:0\"\n\
         [owner]\n[ledger]\nkind = \"log\"\nname = \"t\"\nthreshold = 1\n\
         approvers = [\"{}\"]\n",
        measure::hex(key().verifying_key().as_bytes())
    );
    config::parse("node.toml", &text).unwrap()
}

/// A node with a software TPM and a data partition.
struct Fixture {
    dir: tempfile::TempDir,
    swtpm: Swtpm,
    tpm: Tpm,
    node: config::Node,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["etc", "data"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let swtpm = Swtpm::start(dir.path());
        let tpm = swtpm.open().await;
        let node = node();
        Self { dir, swtpm, tpm, node }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn mark(&self) -> PathBuf {
        self.data().join("ledger.seen")
    }

    /// Opens the ledger, as trustd does at its start.
    async fn open(&self) -> Admission {
        self.open_with(&self.tpm).await
    }

    async fn open_with(&self, tpm: &Tpm) -> Admission {
        let (dir, data) = (self.dir.path(), self.data());
        let vault = vault(tpm, Pcr::default(), &data, dir, &self.node.keys);
        let root_key = Arc::new(vault.open().await.unwrap());
        Admission::open(&self.node, &dir.join("etc"), &data, 0, tpm.clone(), root_key)
            .await
            .unwrap()
    }

    /// Copies the data partition to the folder `name`.
    fn save(&self, name: &str) -> PathBuf {
        let copied = self.dir.path().join(name);
        copy(&self.data(), &copied);
        copied
    }

    fn restore(&self, saved: &Path) {
        copy(saved, &self.data());
    }
}

fn assert_denied(admission: &Admission, expected: &str) {
    let Decision::Deny(reason) = admission.decide(&digest("ab")) else {
        panic!("allowed; expected: {expected}")
    };
    assert!(reason.to_string().contains(expected), "{reason}");
}

#[test]
fn an_older_data_partition_is_rejected() {
    run(async {
        let fixture = Fixture::new().await;
        let (approved, revoked) = logs();
        let admission = fixture.open().await;
        admission.extend_log(&approved).await.unwrap();
        assert!(matches!(admission.decide(&digest("ab")), Decision::Allow(_)));
        let old = fixture.save("old");
        admission.extend_log(&revoked).await.unwrap();
        assert_denied(&fixture.open().await, "revoked");
        let new = fixture.save("new");

        fixture.restore(&old);
        let rolled_back = fixture.open().await;
        assert_denied(&rolled_back, "an older state was restored");
        assert_denied(&rolled_back, "trustctl log reset");
        assert!(rolled_back.extend_log(&approved).await.is_err());

        fixture.restore(&new);
        assert_denied(&fixture.open().await, "revoked");
    });
}

#[test]
fn a_missing_damaged_or_forged_mark_is_rejected() {
    run(async {
        let fixture = Fixture::new().await;
        fixture.open().await.extend_log(&logs().1).await.unwrap();
        let good = fixture.save("good");
        std::fs::remove_file(fixture.mark()).unwrap();
        assert_denied(&fixture.open().await, "the file is missing");
        std::fs::write(fixture.mark(), "junk").unwrap();
        assert_denied(&fixture.open().await, "damaged");
        let text = std::fs::read_to_string(good.join("ledger.seen")).unwrap();
        let forged = text.replace("\"seq\":2", "\"seq\":1");
        assert_ne!(forged, text);
        std::fs::write(fixture.mark(), forged).unwrap();
        assert_denied(&fixture.open().await, "did not write it");
        fixture.restore(&good);
        assert_denied(&fixture.open().await, "revoked");
        // The counter is ahead of the mark, until the owner resets it.
        let before = fixture.tpm.read_counter().await.unwrap().unwrap();
        assert_eq!(before + 1, fixture.tpm.increment_counter().await.unwrap());
        assert_denied(&fixture.open().await, "an older state was restored");
        fixture.open().await.reset().await.unwrap();
        assert_denied(&fixture.open().await, "revoked");
    });
}

/// The disk is full when the node receives a log with one more approval.
#[test]
fn an_approval_that_cannot_be_persisted_has_no_effect() {
    run(async {
        let fixture = Fixture::new().await;
        let (_, revoked) = logs();
        fixture.open().await.extend_log(&revoked).await.unwrap();
        let other = digest("cd");
        let longer = revoked + &log_line(3, &other, Status::Approved);
        let admission = fixture.open().await;
        let blocker = fixture.data().join(TEMPORARY_HEAD);
        std::fs::create_dir(&blocker).unwrap();
        assert!(admission.extend_log(&longer).await.is_err());
        assert!(
            matches!(admission.decide(&other), Decision::Deny(_)),
            "an approval waits until it is persisted"
        );
        assert!(
            admission.extend_log(&longer).await.is_err(),
            "the log is not reported as persisted"
        );
        std::fs::remove_dir(&blocker).unwrap();
        assert_eq!(admission.extend_log(&longer).await.unwrap(), (3, true));
        assert_eq!(admission.extend_log(&longer).await.unwrap(), (3, false));
        assert!(matches!(admission.decide(&other), Decision::Allow(_)));
        assert!(matches!(fixture.open().await.decide(&other), Decision::Allow(_)));
    });
}

/// The disk is full when the node receives a log that renews the approval of a running module.
#[test]
fn an_approval_that_is_renewed_while_the_disk_is_full_stays_in_force() {
    run(async {
        let fixture = Fixture::new().await;
        let (image, other) = (digest("ab"), digest("cd"));
        let (end, renewed_end) = (u64::MAX - 1, u64::MAX);
        let log = log_line_until(1, &image, Status::Approved, end)
            + &log_line(2, &other, Status::Approved);
        fixture.open().await.extend_log(&log).await.unwrap();
        let admission = fixture.open().await;
        let renewed = log + &log_line_until(3, &image, Status::Approved, renewed_end);
        let longer = renewed.clone() + &log_line(4, &other, Status::Revoked);
        let approval = || match admission.decide(&image) {
            Decision::Allow(approval) => (approval.seq, approval.exp),
            Decision::Deny(reason) => panic!("the module would be stopped: {reason}"),
        };
        let blocker = fixture.data().join("ledger.new");
        std::fs::create_dir(&blocker).unwrap();
        assert!(admission.extend_log(&renewed).await.is_err());
        assert_eq!(approval(), (1, end));
        assert!(admission.extend_log(&longer).await.is_err());
        assert_eq!(approval(), (1, end));
        let decision = admission.decide(&other);
        assert!(matches!(decision, Decision::Deny(Reason::Revoked { .. })), "{decision:?}");
        std::fs::remove_dir(&blocker).unwrap();
        admission.extend_log(&longer).await.unwrap();
        assert_eq!(approval(), (3, renewed_end));
    });
}

/// Waits until an image is revoked.
async fn wait_until_revoked(admission: &Admission, digest: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !matches!(admission.decide(digest), Decision::Deny(Reason::Revoked { .. })) {
        assert!(Instant::now() < deadline, "{:?}", admission.decide(digest));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The mark cannot be written, because the TPM does not answer.
#[test]
fn a_revocation_takes_effect_while_the_tpm_hangs() {
    run(async {
        let fixture = Fixture::new().await;
        let [first, second, new] = ["ab", "cd", "ef"].map(digest);
        let log = log_line(1, &first, Status::Approved) + &log_line(2, &second, Status::Approved);
        let admission = Arc::new(fixture.open().await);
        admission.extend_log(&log).await.unwrap();
        let hang = Hang::start(vec![fixture.swtpm.process()]);
        let extend = |log: &str| {
            let (admission, log) = (admission.clone(), log.to_owned());
            tokio::spawn(async move { admission.extend_log(&log).await })
        };
        let log = log + &log_line(3, &new, Status::Approved);
        let log = log + &log_line(4, &first, Status::Revoked);
        let earlier = extend(&log);
        wait_until_revoked(&admission, &first).await;
        // The earlier update still waits for the TPM.
        let log = log + &log_line(5, &second, Status::Revoked);
        let later = extend(&log);
        wait_until_revoked(&admission, &second).await;
        assert!(!earlier.is_finished() && !later.is_finished());
        assert!(matches!(admission.decide(&new), Decision::Deny(Reason::Unknown { .. })));
        drop(hang);
        // The longer log can overtake the shorter one.
        let _ = earlier.await.unwrap();
        later.await.unwrap().unwrap();
        assert!(matches!(admission.decide(&new), Decision::Allow(_)));
        for admission in [&*admission, &fixture.open().await] {
            wait_until_revoked(admission, &first).await;
            wait_until_revoked(admission, &second).await;
        }
    });
}

/// The disk is full when the node receives a log that renews one approval and revokes another.
#[test]
fn a_renewal_that_cannot_be_persisted_leaves_the_older_approval_in_force() {
    run(async {
        let fixture = Fixture::new().await;
        let (renewed, revoked, new) = (digest("ab"), digest("cd"), digest("ef"));
        let approved =
            log_line(1, &renewed, Status::Approved) + &log_line(2, &revoked, Status::Approved);
        let admission = fixture.open().await;
        admission.extend_log(&approved).await.unwrap();
        let longer = approved.clone()
            + &log_line(3, &renewed, Status::Approved)
            + &log_line(4, &revoked, Status::Revoked)
            + &log_line(5, &new, Status::Approved);
        let blocker = fixture.data().join(TEMPORARY_HEAD);
        std::fs::create_dir(&blocker).unwrap();
        assert!(admission.extend_log(&longer).await.is_err());
        let seq = |digest: &str| match admission.decide(digest) {
            Decision::Allow(approval) => Ok(approval.seq),
            Decision::Deny(reason) => Err(reason.code()),
        };
        assert_eq!(seq(&renewed), Ok(1), "the persisted approval stays in force");
        assert_eq!(seq(&revoked), Err("revoked"), "a revocation takes effect at once");
        assert_eq!(seq(&new), Err("unknown"), "an approval waits until it is persisted");
        // What the node has seen is not forgotten although it is not on disk.
        let fork = approved + &log_line(3, &new, Status::Approved);
        let fork = fork.clone() + &log_line(4, &new, Status::Approved);
        assert!(admission.extend_log(&fork).await.is_err());
        std::fs::remove_dir(&blocker).unwrap();
        assert_eq!(admission.extend_log(&longer).await.unwrap(), (5, true));
        assert_eq!(seq(&renewed), Ok(3));
        let reopened = fixture.open().await;
        assert!(matches!(reopened.decide(&new), Decision::Allow(_)));
        assert!(matches!(reopened.decide(&revoked), Decision::Deny(_)));
    });
}

/// Fail points at which a longer log is persisted, and whether the node has it after a kill there.
#[cfg(feature = "engine-tests")] // Fail points need it: cargo xtask test engine.
const FAIL_POINTS: [(&str, bool); 3] =
    [("log-written", false), ("log-head", true), ("marked", true)];

#[cfg(feature = "engine-tests")]
#[test]
fn a_kill_at_any_point_leaves_the_old_log_or_the_new_one() {
    for (point, is_new) in FAIL_POINTS {
        run(async {
            let fixture = Fixture::new().await;
            let (approved, revoked) = logs();
            fixture.open().await.extend_log(&approved).await.unwrap();
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "one_process"])
                .env("BASALT_FAILPOINT", point)
                .env("BASALT_ROLLBACK_DIR", fixture.dir.path())
                .env("BASALT_ROLLBACK_TPM", &fixture.swtpm.tcti)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            assert_eq!(signal, Some(6), "the fail point {point:?} was not reached");
            let admission = fixture.open().await;
            match admission.decide(&digest("ab")) {
                Decision::Allow(_) => assert!(!is_new, "{point}"),
                Decision::Deny(reason) => assert!(is_new && reason.code() == "revoked", "{point}"),
            }
            assert_eq!(admission.extend_log(&revoked).await.unwrap(), (2, !is_new), "{point}");
            assert_denied(&fixture.open().await, "revoked");
        });
    }
}

/// Receives a longer log until a fail point ends the process.
#[cfg(feature = "engine-tests")]
#[test]
#[ignore = "process that another test starts and kills"]
fn one_process() {
    run(async {
        let dir = PathBuf::from(std::env::var_os("BASALT_ROLLBACK_DIR").unwrap());
        let tpm = Tpm::open(&std::env::var("BASALT_ROLLBACK_TPM").unwrap()).await.unwrap();
        let node = node();
        let vault = vault(&tpm, Pcr::default(), &dir.join("data"), &dir, &node.keys);
        let root_key = Arc::new(vault.open().await.unwrap());
        let (etc, data) = (dir.join("etc"), dir.join("data"));
        let admission = Admission::open(&node, &etc, &data, 0, tpm, root_key).await.unwrap();
        let _ = admission.extend_log(&logs().1).await;
    });
}

#[test]
fn the_mark_of_another_tpm_is_rejected() {
    run(async {
        let fixture = Fixture::new().await;
        fixture.open().await.extend_log(&logs().1).await.unwrap();
        let other_dir = tempfile::tempdir().unwrap();
        let other = Swtpm::start(other_dir.path());
        std::fs::remove_file(fixture.data().join("root.sealed")).unwrap();
        let admission = fixture.open_with(&other.open().await).await;
        assert_denied(&admission, "is it another TPM");
    });
}
