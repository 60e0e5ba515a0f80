//! A node that follows a chain, against a software TPM and bundles that were recorded on a real
//! network (lib/ledger/tests/ethereum).

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use basalt_trustd::admission::Admission;
use basalt_trustd::tpm::Tpm;
use ledger::{ChainReason, Decision, ImageStatement, LogEntry, Reason, SigningKey, Status};
use measure::Pcr;
use serde_json::Value;

use crate::common::{Swtpm, vault};

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns the key of the only approver.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// Returns a line of the log that approves an image.
pub(crate) fn approval(seq: u64, digest: &str) -> String {
    let mut entry = LogEntry::new(ImageStatement {
        digest: digest.into(),
        exp: u64::MAX,
        iat: 0,
        seq,
        status: Status::Approved,
    });
    entry.sign("t", &key());
    entry.line() + "\n"
}

/// Bundles of a real network. The genesis time is moved, so that the bundles look recent. No
/// signature covers it.
pub(crate) struct Recording(Value);

impl Recording {
    pub(crate) fn read() -> Self {
        let text = include_str!("../../../lib/ledger/tests/ethereum/devnet-minimal.json");
        Self(serde_json::from_str(text).unwrap())
    }

    /// Returns the text of a bundle.
    pub(crate) fn bundle(&self, name: &str) -> String {
        let bundles = self.0["bundles"].as_array().unwrap();
        bundles.iter().find(|recorded| recorded["name"] == name).unwrap()["bundle"].to_string()
    }

    /// Returns the digest of an image: 0 is approved and later revoked, 1 is revoked, 2 has no
    /// record.
    pub(crate) fn digest(&self, n: usize) -> String {
        self.0["digests"][n].as_str().unwrap().replace("0x", "sha256:")
    }

    /// Returns the settings of a node. The last bundle was made `age` seconds ago.
    pub(crate) fn node(&self, relays: &[String], age: u64) -> config::Node {
        config::parse("node.toml", &self.node_toml(relays, age)).unwrap()
    }

    /// Returns the text of node.toml.
    pub(crate) fn node_toml(&self, relays: &[String], age: u64) -> String {
        let bundles = self.0["bundles"].as_array().unwrap();
        let newest =
            bundles.iter().map(|recorded| recorded["now"].as_u64().unwrap()).max().unwrap();
        let mut chain = String::new();
        for line in self.0["settings"].as_str().unwrap().lines() {
            chain += &match line.split_once(" = ") {
                Some(("genesis-time", time)) => {
                    let time = time.parse::<u64>().unwrap() + now() - newest - age;
                    format!("genesis-time = {time}\n")
                }
                Some(("relays", _)) => {
                    format!("relays = {}\n", serde_json::to_string(relays).unwrap())
                }
                Some(("poll-s", _)) => "poll-s = 1\n".into(),
                _ => format!("{line}\n"),
            };
        }
        let approver = measure::hex(key().verifying_key().as_bytes());
        format!(
            "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:0\"\n\
             [owner]\n[ledger]\nkind = \"ethereum\"\nname = \"t\"\nthreshold = 1\n\
             approvers = [\"{approver}\"]\n{chain}"
        )
    }

    /// Returns a log that approves all three images, so that only the chain decides.
    pub(crate) fn log(&self) -> String {
        (0..3).map(|n| approval(n as u64 + 1, &self.digest(n))).collect()
    }
}

/// Opens the ledger of the node with its files in `dir`.
pub(crate) async fn open_admission(tpm: &Tpm, dir: &Path, node: &config::Node) -> Admission {
    let data = dir.join("data");
    let vault = vault(tpm, Pcr::default(), &data, dir, &node.keys);
    let root_key = Arc::new(vault.open().await.unwrap());
    Admission::open(node, &dir.join("etc"), &data, 0, tpm.clone(), root_key).await.unwrap()
}

/// Files and TPM of a node.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    #[allow(dead_code)] // Not every test program uses it.
    pub(crate) swtpm: Swtpm,
    pub(crate) tpm: Tpm,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        for folder in ["etc", "data"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let tpm = swtpm.open().await;
        Self { dir, swtpm, tpm }
    }

    /// Opens the ledger, as trustd does at its start.
    pub(crate) async fn open(&self, node: &config::Node) -> Admission {
        open_admission(&self.tpm, self.dir.path(), node).await
    }

    /// Opens the ledger of a new node and gives it the log.
    pub(crate) async fn open_with_log(
        &self,
        node: &config::Node,
        recording: &Recording,
    ) -> Admission {
        let admission = self.open(node).await;
        admission.extend_log(&recording.log()).await.unwrap();
        // Only records that a decision needed are remembered.
        (0..3).for_each(|n| drop(admission.decide(&recording.digest(n))));
        admission
    }
}

/// Returns why the chain denies an image.
pub(crate) fn denial(admission: &Admission, digest: &str) -> ChainReason {
    match admission.decide(digest) {
        Decision::Deny(Reason::Chain { reason, .. }) => reason,
        other => panic!("{digest}: {other:?}"),
    }
}
