//! Module sockets without an engine: the test process moves into a control group that is named like
//! a container's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basalt_trustd::audit::Audit;
use basalt_trustd::engine::inventory;
use basalt_trustd::module_api::{Shared, Sockets};
use client::Client;
use config::{Access, CryptoUse, KeyBinding, Quota};

use crate::common::{Swtpm, vault};

pub(crate) const ALL_CALLS: [CryptoUse; 7] = [
    CryptoUse::Vrf,
    CryptoUse::Random,
    CryptoUse::Hash,
    CryptoUse::Hmac,
    CryptoUse::Sign,
    CryptoUse::Seal,
    CryptoUse::Quote,
];
/// Quota that no test reaches.
pub(crate) const LARGE_QUOTA: Quota = Quota { calls_per_s: 1_000_000, tpm_calls_per_s: 1000 };

/// Control group that this process is in. Its drop moves the process back to the root.
pub(crate) struct Cgroup {
    root: PathBuf,
    dir: PathBuf,
}

impl Cgroup {
    pub(crate) fn enter(container: &str) -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        // With cgroup v1, one hierarchy is enough. This one sets no limit by itself.
        let root = PathBuf::from(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" });
        let dir = root.join("basalt-test").join(container);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Self { root, dir }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.root.join("cgroup.procs"), std::process::id().to_string());
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Sockets of modules, with a software TPM and no engine.
pub(crate) struct SocketHost {
    pub(crate) shared: Shared,
    pub(crate) sockets: Sockets,
    _swtpm: Swtpm,
    _dir: tempfile::TempDir,
}

/// Returns the ID of container `n`.
pub(crate) fn container(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

impl SocketHost {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(dir.path());
        let tpm = swtpm.open().await;
        let platform = dir.path().join("platform.log");
        std::fs::write(&platform, "").unwrap();
        let audit =
            Arc::new(Audit::open(tpm.clone(), &platform, dir.path(), dir.path()).await.unwrap());
        let vault =
            vault(&tpm, audit.platform_pcr(), dir.path(), dir.path(), &config::Keys::default());
        let root = Arc::new(vault.open().await.unwrap());
        let inventory = Arc::new(inventory::Inventory::open(dir.path()).unwrap());
        let shared = Shared { tpm, root, audit, inventory, ledger: [7; 32] };
        let sockets = Sockets::new(dir.path().join("sockets"), shared.clone());
        Self { shared, sockets, _swtpm: swtpm, _dir: dir }
    }

    /// Records container `n` as a container of this module, and returns its socket.
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
            Access { crypto: crypto.to_vec(), keys_bound_to: KeyBinding::Approvers, quota },
        )
    }

    /// Records container `n` as a container of this module with this access, and returns its
    /// socket.
    pub(crate) fn bound(&self, n: u8, module: &str, access: Access) -> PathBuf {
        let digest = format!("sha256:{}", container(n));
        let record = inventory::ContainerRecord {
            module: module.into(),
            requested_digest: digest.clone(),
            digest,
            fingerprint: "sha256:".into(),
            config_digest: Default::default(),
            health_command: Vec::new(),
            joined_peers: false,
            stopping: false,
            access,
        };
        self.shared.inventory.insert(&container(n), &record).unwrap();
        self.sockets.open(module).unwrap().join("trustd.sock")
    }
}

pub(crate) fn client(socket: &Path) -> Client {
    Client::connect_to(socket).unwrap()
}
