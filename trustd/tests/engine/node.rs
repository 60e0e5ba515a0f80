//! A node without a machine. Each test has its own real engine, software TPM, ledger and modules.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basalt_trustd::admission::Admission;
use basalt_trustd::audit::Audit;
use basalt_trustd::engine::{Engine, Tickets};
use basalt_trustd::images::fetch::{Fetcher, RegistryClient};
use basalt_trustd::images::store::Store;
use basalt_trustd::module_api::{Shared, Sockets};
use basalt_trustd::modules::{Dependencies, ModuleStatus, Modules};
use basalt_trustd::owner_api::state::NodeState;
use basalt_trustd::reader::Readers;
use basalt_trustd::sandbox::Landlock;
use basalt_trustd::settings::Settings;
use bollard::Docker;
use deployment::{DesiredState, SignedSpec, Spec};
use ledger::{ImageStatement, LogEntry, SigningKey, Status};

use crate::common::{SHIPPED, Swtpm, boot, vault};

pub(crate) use crate::owner::Owner;
pub(crate) use crate::real_engine::RealEngine;

/// Time after which a condition that a test waits for counts as failed.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Program that trustd starts as a reader of images.
const READER_PROGRAM: &str = env!("CARGO_BIN_EXE_basalt-trustd");
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until a condition is true.
#[track_caller]
pub(crate) fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {} s", WAIT_TIMEOUT.as_secs());
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns real readers of images.
pub(crate) fn readers() -> Readers {
    Readers::new(READER_PROGRAM.into(), Landlock::IfSupported)
}

/// A node. Its processes and its reconcile loop end on drop.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) engine: RealEngine,
    pub(crate) tpm: Swtpm,
    pub(crate) settings: Settings,
    pub(crate) key: SigningKey,
    pub(crate) log: String,
    pub(crate) owner: Owner,
    pub(crate) admission: Arc<Admission>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) config: config::Node,
    /// SHA-256 of the node's certificate, hex.
    pub(crate) certificate: String,
    reconcile_loop: Option<tokio::task::JoinHandle<()>>,
}

/// SHA-256 of a node's certificate, hex.
pub(crate) const CERTIFICATE: &str =
    "abababababababababababababababababababababababababababababababab";

/// Generation of the next spec.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Creates the folders of a node below `dir` and returns their locations.
pub(crate) fn settings(dir: &Path, tcti: &str) -> Settings {
    let path = |sub: &str| dir.join(sub);
    for sub in ["etc/modules", "data/modules", "run", "sockets", "/run/docker/plugins"] {
        std::fs::create_dir_all(path(sub)).unwrap();
    }
    if !path("platform.log").exists() {
        std::fs::write(path("platform.log"), "").unwrap();
    }
    Settings {
        etc: path("etc"),
        owner_settings: path("own.toml"),
        boot_log: path("boot.jsonl"),
        policies: path(SHIPPED),
        data: path("data"),
        run: path("run"),
        modules: path("sockets"),
        platform_log: path("platform.log"),
        engine_socket: path("docker.sock"),
        init_socket: path("init.sock"),
        tcti: tcti.to_owned(),
        plugin_socket: "/run/docker/plugins/basalt.sock".into(),
        cgroup_root: None,
        service_cgroups: Vec::new(),
        reader_program: READER_PROGRAM.into(),
        landlock: Landlock::IfSupported,
    }
}

/// Returns the node.toml of a node with one approver and one owner, and the lines `more`.
pub(crate) fn node_config(key: &SigningKey, owner: &Owner, more: &str) -> config::Node {
    let kind = if more.contains("[ledger.chain]") { "ethereum" } else { "log" };
    let text = format!(
        "hostname = \"t\"\n[network]\nkind = \"none\"\n\
         [api]\nlisten = \"127.0.0.1:7443\"\n[owner]\ncertificates = [\"{}\"]\n\
         [ledger]\nkind = \"{kind}\"\nname = \"t\"\nthreshold = 1\napprovers = [\"{}\"]\n{more}",
        owner.fingerprint(),
        measure::hex(key.verifying_key().as_bytes())
    );
    config::parse("node.toml", &text).unwrap()
}

/// Creates the parts that trustd creates when it starts.
pub(crate) async fn dependencies(
    settings: &Settings,
    node: &config::Node,
    tickets: Arc<Tickets>,
    tpm: basalt_trustd::tpm::Tpm,
) -> Dependencies {
    let audit = Arc::new(
        Audit::open(tpm.clone(), &settings.platform_log, &settings.run, &settings.data)
            .await
            .unwrap(),
    );
    let vault = vault(
        &tpm,
        audit.platform_pcr(),
        &settings.data,
        settings.policies.parent().unwrap(),
        &node.keys,
    );
    let root = Arc::new(vault.open().await.unwrap());
    let admission = Arc::new(
        Admission::open(node, &settings.etc, &settings.data, 0, tpm.clone(), root.clone())
            .await
            .unwrap(),
    );
    let inventory =
        Arc::new(basalt_trustd::engine::inventory::Inventory::open(&settings.run).unwrap());
    let shared =
        Shared { tpm, root, audit: audit.clone(), inventory, ledger: admission.identity() };
    Dependencies {
        admission,
        audit,
        fetcher: fetcher(settings, node, "amd64"),
        sockets: Arc::new(Sockets::new(settings.modules.clone(), shared)),
        tickets,
        settings: settings.clone(),
        certificate: CERTIFICATE.into(),
        owners: node.owner.certificates.clone(),
        reserved_ports: vec![7443],
    }
}

/// Creates a fetcher of images for a processor architecture.
pub(crate) fn fetcher(settings: &Settings, node: &config::Node, architecture: &str) -> Fetcher {
    let store = Store::open(
        &settings.data.join("store"),
        node.store.quota_mib << 20,
        oci::Limits::default(),
        Readers::new(settings.reader_program.clone(), settings.landlock),
    )
    .unwrap();
    let client = RegistryClient::new(&node.registries, Duration::from_secs(3)).unwrap();
    Fetcher::new(Arc::new(store), client, oci::Platform::linux(architecture))
}

impl Node {
    /// Starts a node. The name must be unique among the tests.
    pub(crate) async fn start(name: &str) -> Self {
        Self::with(name, "").await
    }

    /// Starts a node with additional lines in its node.toml.
    pub(crate) async fn with(name: &str, more: &str) -> Self {
        Self::made_for("amd64", name, more).await
    }

    /// Starts a node that fetches images for another architecture, which it cannot run.
    pub(crate) async fn made_for(architecture: &str, name: &str, more: &str) -> Self {
        assert!(
            std::env::var_os("BASALT_ENGINE_TESTS").is_some(),
            "the engine tests need their own namespaces: cargo xtask test engine"
        );
        let dir = tempfile::Builder::new().prefix("node").tempdir_in("/run").unwrap();
        let tpm = Swtpm::start(dir.path());
        let settings = settings(dir.path(), &tpm.tcti);
        let (key, owner) = (SigningKey::from_bytes(&[5; 32]), Owner::new());
        let config = node_config(&key, &owner, more);
        let tickets = Arc::new(Tickets::default());
        basalt_trustd::engine::serve_plugin(tickets.clone(), &settings.plugin_socket).unwrap();
        let engine = RealEngine::start(dir.path(), name, true);
        engine.ready().await;
        let mut dependencies =
            dependencies(&settings, &config, tickets.clone(), tpm.open().await).await;
        dependencies.fetcher = fetcher(&settings, &config, architecture);
        let (admission, audit) = (dependencies.admission.clone(), dependencies.audit.clone());
        let modules = Arc::new(Modules::open(dependencies).unwrap());
        let mut node = Self {
            dir,
            engine,
            tpm,
            settings,
            key,
            log: String::new(),
            owner,
            admission,
            audit,
            tickets,
            modules,
            config,
            certificate: CERTIFICATE.into(),
            reconcile_loop: None,
        };
        node.start_reconciling();
        node
    }

    /// Returns the state of the owner's API. `certificate` is the hash of the node's certificate.
    pub(crate) fn node_state(&self, certificate: &str) -> Arc<NodeState> {
        let audit = self.audit.clone();
        let vault = vault(
            audit.tpm(),
            audit.platform_pcr(),
            &self.settings.data,
            self.dir.path(),
            &self.config.keys,
        );
        Arc::new(NodeState {
            boot: boot(),
            machine: "virt".into(),
            audit,
            vault,
            init_socket: self.settings.init_socket.clone(),
            certificate: certificate.to_owned(),
            unlock: tokio::sync::Notify::new(),
        })
    }

    /// Aborts the reconcile loop, as the end of trustd does.
    pub(crate) fn abort_reconciling(&self) {
        if let Some(task) = &self.reconcile_loop {
            task.abort();
        }
    }

    /// Ends trustd and starts it again. The engine and its containers are not affected.
    pub(crate) async fn restart(&mut self) {
        self.abort_reconciling();
        let (tickets, tpm) = (self.tickets.clone(), self.tpm.open().await);
        let mut parts = dependencies(&self.settings, &self.config, tickets, tpm).await;
        parts.certificate = self.certificate.clone();
        (self.admission, self.audit) = (parts.admission.clone(), parts.audit.clone());
        self.modules = Arc::new(Modules::open(parts).unwrap());
        self.start_reconciling();
    }

    /// Starts the reconcile loop.
    pub(crate) fn start_reconciling(&mut self) {
        self.reconcile_loop = Some(tokio::spawn(self.modules.clone().run()));
    }

    /// Adds a statement about an image to the node's log.
    pub(crate) async fn add_statement(&mut self, digest: &str, status: Status) {
        let seq = self.log.lines().count() as u64 + 1;
        self.log += &statement(&self.key, digest, status, seq);
        self.admission.extend_log(&self.log).await.unwrap();
        self.modules.wake();
    }

    /// Uploads an archive, as `trustctl image push` does.
    pub(crate) async fn push(&self, archive: &[u8]) -> Result<Vec<String>, oci::OciError> {
        self.modules.fetcher().upload(std::io::Cursor::new(archive.to_vec())).await
    }

    /// Signs a spec with a new generation.
    pub(crate) fn spec(&self, name: &str, desired: DesiredState, toml: &str) -> SignedSpec {
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        self.owner.sign(&Spec {
            desired,
            generation,
            module: name.into(),
            node: self.certificate.clone(),
            toml: Some(toml.into()),
        })
    }

    /// Applies a spec to run a module file.
    pub(crate) fn apply(&self, name: &str, toml: &str) {
        self.modules.apply(name, &self.spec(name, DesiredState::Run, toml)).unwrap();
    }

    /// Waits for a status of a module and returns it.
    pub(crate) async fn wait_for_status(
        &self,
        name: &str,
        is_expected: impl Fn(&ModuleStatus) -> bool,
    ) -> ModuleStatus {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            match self.modules.status(name) {
                Some(status) if is_expected(&status) => return status,
                other => assert!(
                    Instant::now() < deadline,
                    "{name}: {other:?}\n{}",
                    self.events().await.join("\n")
                ),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits for an event in the audit log and returns it.
    pub(crate) async fn wait_for_event(&self, is_expected: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let events = self.events().await;
            if let Some(event) = events.iter().find(|e| is_expected(e)) {
                return event.clone();
            }
            assert!(Instant::now() < deadline, "{}", events.join("\n"));
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until a module runs and is healthy; returns the ID of its container.
    pub(crate) async fn wait_until_running(&self, name: &str) -> String {
        match self.wait_for_status(name, |s| matches!(s, ModuleStatus::Running { .. })).await {
            ModuleStatus::Running { container } => container,
            _ => unreachable!(),
        }
    }

    /// Waits until a module is denied; returns the reason.
    pub(crate) async fn wait_until_denied(&self, name: &str) -> String {
        match self.wait_for_status(name, |s| matches!(s, ModuleStatus::Denied { .. })).await {
            ModuleStatus::Denied { reason } => reason,
            _ => unreachable!(),
        }
    }

    /// Returns the events of the audit log, each with its kind and data.
    pub(crate) async fn events(&self) -> Vec<String> {
        self.audit
            .records()
            .await
            .into_iter()
            .map(|r| format!("{} {}", r.content.kind, r.content.data))
            .collect()
    }

    /// Returns the kinds of the events of the audit log.
    pub(crate) async fn event_kinds(&self) -> Vec<String> {
        self.events().await.iter().map(|e| e.split(' ').next().unwrap().to_owned()).collect()
    }

    /// Connects to the engine as an attacker who has bypassed the authorization plugin.
    pub(crate) async fn bypass_plugin(&self) -> Docker {
        let tickets = self.tickets.clone();
        let docker = Docker::connect_with_unix(
            &self.engine.socket.to_string_lossy(),
            60,
            bollard::API_DEFAULT_VERSION,
        )
        .unwrap();
        docker
            .with_request_modifier(move |request| tickets.stamp(request))
            .negotiate_version()
            .await
            .unwrap()
    }

    /// Connects to the engine as trustd does.
    pub(crate) async fn connect_engine(&self) -> Engine {
        Engine::connect(&self.engine.socket, self.tickets.clone()).await.unwrap()
    }

    /// Waits until the engine does not have a container; returns how long that took.
    pub(crate) async fn wait_until_removed(&self, id: &str) -> Duration {
        let (engine, start) = (self.connect_engine().await, Instant::now());
        while engine.containers().await.unwrap().iter().any(|c| c.id == id) {
            assert!(start.elapsed() < WAIT_TIMEOUT, "{id} is still there");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        start.elapsed()
    }
}

/// Returns the path of a third-party service.
pub(crate) fn service(name: &str) -> PathBuf {
    Path::new(
        &std::env::var_os("BASALT_SERVICES")
            .expect("BASALT_SERVICES is not set: cargo xtask test engine sets it"),
    )
    .join(name)
}

/// Returns the sysroot of the set `programs`.
pub(crate) fn programs() -> PathBuf {
    std::env::var_os("BASALT_PROGRAMS")
        .expect("BASALT_PROGRAMS is not set: cargo xtask test engine sets it")
        .into()
}

/// Returns a line of the log: a statement about an image, signed by the approver.
pub(crate) fn statement(key: &SigningKey, digest: &str, status: Status, seq: u64) -> String {
    let mut entry = LogEntry::new(ImageStatement {
        digest: digest.to_owned(),
        exp: u64::MAX,
        iat: 0,
        seq,
        status,
    });
    entry.sign("t", key);
    entry.line() + "\n"
}

impl Drop for Node {
    fn drop(&mut self) {
        self.abort_reconciling();
    }
}

/// Runs a test with two threads. The log goes to the test's output.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    logging::install(logging::Logger {
        now: Duration::default,
        write: |line| println!("{line}"),
        max_level: logging::Level::Debug,
    });
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}
