//! A module's socket without an engine: this process stands in a control group that is named like a
//! container's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basalt_trustd::audit::Audit;
use basalt_trustd::engine::inventory;
use basalt_trustd::module_api::{Shared, Sockets};
use client::Client;
use config::{Access, BoundTo, CryptoUse, Quota};

use crate::common::{Swtpm, vault};

pub(crate) const ALL: [CryptoUse; 7] = [
    CryptoUse::Vrf,
    CryptoUse::Random,
    CryptoUse::Hash,
    CryptoUse::Hmac,
    CryptoUse::Sign,
    CryptoUse::Seal,
    CryptoUse::Quote,
];
pub(crate) const MUCH: Quota = Quota { calls_per_s: 1_000_000, tpm_calls_per_s: 1000 };

/// A control group with this process in it; on drop the process goes back to the root.
pub(crate) struct Group {
    root: PathBuf,
    dir: PathBuf,
}

impl Group {
    pub(crate) fn enter(container: &str) -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        // One hierarchy is enough; this one limits nothing by itself.
        let root = PathBuf::from(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" });
        let dir = root.join("basalt-test").join(container);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Self { root, dir }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.root.join("cgroup.procs"), std::process::id().to_string());
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// What trustd has for modules, on a software TPM.
pub(crate) struct Alone {
    pub(crate) shared: Shared,
    pub(crate) sockets: Sockets,
    _swtpm: Swtpm,
    _dir: tempfile::TempDir,
}

pub(crate) fn container(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

impl Alone {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        let tpm = swtpm.open().await;
        let platform = dir.path().join("platform.log");
        std::fs::write(&platform, "").unwrap();
        let audit =
            Arc::new(Audit::open(tpm.clone(), &platform, dir.path(), dir.path()).await.unwrap());
        let vault = vault(
            &tpm,
            audit.platform_register(),
            dir.path(),
            dir.path(),
            &config::Keys::default(),
        );
        let root = Arc::new(vault.open().await.unwrap());
        let started = Arc::new(inventory::Ledger::open(dir.path()).unwrap());
        let shared = Shared { tpm, root, audit, started, ledger: [7; 32] };
        let sockets = Sockets::new(dir.path().join("sockets"), shared.clone());
        Self { shared, sockets, _swtpm: swtpm, _dir: dir }
    }

    /// As if trustd had started container `n` as this module; returns its socket.
    pub(crate) fn module(
        &self,
        n: u8,
        module: &str,
        crypto: &[CryptoUse],
        quota: Quota,
    ) -> PathBuf {
        self.bound(
            n,
            module,
            Access { crypto: crypto.to_vec(), keys_bound_to: BoundTo::Approvers, quota },
        )
    }

    pub(crate) fn bound(&self, n: u8, module: &str, access: Access) -> PathBuf {
        let digest = format!("sha256:{}", container(n));
        let started = inventory::Started {
            module: module.into(),
            asked: digest.clone(),
            digest,
            settings: "sha256:".into(),
            shape: Default::default(),
            check: Vec::new(),
            introduced: false,
            access,
        };
        self.shared.started.remember(&container(n), &started).unwrap();
        self.sockets.open(module).unwrap().join("trustd.sock")
    }
}

pub(crate) fn client(socket: &Path) -> Client {
    Client::at(socket).unwrap()
}
