//! A node without a machine: engine, TPM, ledger, registry and modules, all real, each test its
//! own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basalt_trustd::admission::Approvals;
use basalt_trustd::audit::Audit;
use basalt_trustd::engine::{Engine, Tickets};
use basalt_trustd::images::fetch::{Client, Fetcher};
use basalt_trustd::images::store::Store;
use basalt_trustd::module_api::{Shared, Sockets};
use basalt_trustd::modules::{Modules, Parts, State};
use basalt_trustd::owner_api::common::Base;
use basalt_trustd::settings::Settings;
use bollard::Docker;
use deployment::{DesiredState, SignedSpec, Spec};
use ledger::{ImageStatement, LogEntry, SigningKey, Status};
use rcgen::SigningKey as _;

use crate::common::{SHIPPED, Swtpm, boot, vault};

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// containerd and dockerd with folders of their own, ended on drop.
pub(crate) struct RealEngine {
    children: Vec<Child>,
    pub(crate) socket: PathBuf,
}

impl Drop for RealEngine {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl RealEngine {
    /// Starts an engine; with the second lock, somebody must answer on the plugin's socket.
    pub(crate) fn start(dir: &Path, name: &str, locked: bool) -> Self {
        let state = Path::new("/var/lib/docker").join(name);
        std::fs::create_dir_all(&state).unwrap();
        let log = |what: &str| std::fs::File::create(dir.join(format!("{what}.log"))).unwrap();
        let containerd = dir.join("containerd.sock");
        let config = dir.join("containerd.toml");
        let text = format!(
            "version = 2\nroot = \"/var/lib/containerd/{name}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{}\"\n",
            dir.join("containerd").display(),
            containerd.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut engine = Self { children: Vec::new(), socket: dir.join("docker.sock") };
        let out = log("containerd");
        engine.children.push(
            Command::new("containerd")
                .arg("--config")
                .arg(&config)
                .stdout(out.try_clone().unwrap())
                .stderr(out)
                .spawn()
                .unwrap(),
        );
        wait("containerd", || containerd.exists());
        let daemon = dir.join("daemon.json");
        let mut settings = serde_json::json!({
            "data-root": state, "exec-root": dir.join("exec"), "pidfile": dir.join("docker.pid"), "containerd": containerd,
            "hosts": [format!("unix://{}", engine.socket.display())], "features": { "containerd-snapshotter": true },
            "bridge": "none", "ip6tables": false, "userland-proxy": false, "cgroup-parent": "/basalt-test",
        });
        if locked {
            settings["authorization-plugins"] = serde_json::json!(["basalt"]);
        }
        std::fs::write(&daemon, settings.to_string()).unwrap();
        let out = log("dockerd");
        engine.children.push(
            Command::new("dockerd")
                .arg("--config-file")
                .arg(&daemon)
                .stdin(Stdio::null())
                .stdout(out.try_clone().unwrap())
                .stderr(out)
                .spawn()
                .unwrap(),
        );
        engine
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    pub(crate) async fn ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            assert!(Instant::now() < deadline, "dockerd does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[track_caller]
pub(crate) fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An owner as `trustctl` would be one.
pub(crate) struct Owner {
    key: rcgen::KeyPair,
    certificate: Vec<u8>,
}

impl Owner {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        Self { key, certificate: certificate.der().to_vec() }
    }

    /// From files, made if there are none: the same owner for a process that is started again.
    pub(crate) fn kept(dir: &Path) -> Self {
        let (key, certificate) = (dir.join("owner.pem"), dir.join("owner.der"));
        if !key.exists() {
            let new = Self::new();
            std::fs::write(&certificate, &new.certificate).unwrap();
            std::fs::write(&key, new.key.serialize_pem()).unwrap();
        }
        let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
        Self { key, certificate: std::fs::read(certificate).unwrap() }
    }

    pub(crate) fn fingerprint(&self) -> String {
        use sha2::Digest as _;
        measure::hex(&sha2::Sha256::digest(&self.certificate))
    }

    pub(crate) fn sign(&self, spec: &Spec) -> SignedSpec {
        let text = spec.text();
        let signature = self.key.sign(&deployment::signed_bytes(&text)).unwrap();
        SignedSpec {
            certificate: measure::hex(&self.certificate),
            signature: measure::hex(&signature),
            spec: text,
        }
    }
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) engine: RealEngine,
    pub(crate) tpm: Swtpm,
    pub(crate) settings: Settings,
    pub(crate) key: SigningKey,
    pub(crate) log: String,
    pub(crate) owner: Owner,
    pub(crate) approvals: Arc<Approvals>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) config: config::Node,
    keeping: Option<tokio::task::JoinHandle<()>>,
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

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
        own: path("own.toml"),
        boot_log: path("boot.jsonl"),
        policies: path(SHIPPED),
        data: path("data"),
        run: path("run"),
        modules: path("sockets"),
        platform_log: path("platform.log"),
        engine: path("docker.sock"),
        init: path("init.sock"),
        tcti: tcti.to_owned(),
        plugin: "/run/docker/plugins/basalt.sock".into(),
        groups: None,
        services: Vec::new(),
    }
}

pub(crate) fn config_of(key: &SigningKey, owner: &Owner, more: &str) -> config::Node {
    let kind = if more.contains("[ledger.chain]") { "ethereum" } else { "log" };
    let text = format!(
        "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:7443\"\n[owner]\ncertificates = [\"{}\"]\n[ledger]\nkind = \"{kind}\"\nname = \"t\"\nthreshold = 1\napprovers = [\"{}\"]\n{more}",
        owner.fingerprint(),
        measure::hex(key.verifying_key().as_bytes())
    );
    config::parse("node.toml", &text).unwrap()
}

/// What trustd puts together when it starts.
pub(crate) async fn parts(
    settings: &Settings,
    node: &config::Node,
    tickets: Arc<Tickets>,
    tpm: basalt_trustd::tpm::Tpm,
) -> Parts {
    let audit = Arc::new(
        Audit::open(tpm.clone(), &settings.platform_log, &settings.run, &settings.data)
            .await
            .unwrap(),
    );
    let vault = vault(
        &tpm,
        audit.platform_register(),
        &settings.data,
        settings.policies.parent().unwrap(),
        &node.keys,
    );
    let root = Arc::new(vault.open().await.unwrap());
    let approvals = Arc::new(
        Approvals::open(node, &settings.etc, &settings.data, 0, tpm.clone(), root.clone())
            .await
            .unwrap(),
    );
    let started = Arc::new(basalt_trustd::engine::inventory::Ledger::open(&settings.run).unwrap());
    let shared = Shared { tpm, root, audit: audit.clone(), started, ledger: approvals.identity() };
    Parts {
        approvals,
        audit,
        fetcher: fetcher(settings, node, "amd64"),
        sockets: Arc::new(Sockets::new(settings.modules.clone(), shared)),
        tickets,
        settings: settings.clone(),
        owners: node.owner.certificates.clone(),
        taken: vec![7443],
    }
}

pub(crate) fn fetcher(settings: &Settings, node: &config::Node, architecture: &str) -> Fetcher {
    let store = Store::open(
        &settings.data.join("store"),
        node.store.quota_mib << 20,
        oci::Limits::default(),
    )
    .unwrap();
    let client = Client::new(&node.registries, Duration::from_secs(3)).unwrap();
    Fetcher::new(Arc::new(store), client, oci::Platform::linux(architecture))
}

impl Node {
    pub(crate) async fn start(name: &str) -> Self {
        Self::with(name, "").await
    }

    /// With more in its node.toml.
    pub(crate) async fn with(name: &str, more: &str) -> Self {
        Self::made_for("amd64", name, more).await
    }

    /// One that takes images for another processor, as long as none of them runs.
    pub(crate) async fn made_for(architecture: &str, name: &str, more: &str) -> Self {
        assert!(
            std::env::var_os("BASALT_ENGINE_TESTS").is_some(),
            "these tests need namespaces of their own: cargo xtask test engine"
        );
        let dir = tempfile::Builder::new().prefix("node").tempdir_in("/run").unwrap();
        let tpm = Swtpm::start(dir.path());
        let settings = settings(dir.path(), &tpm.tcti);
        let (key, owner) = (SigningKey::from_bytes(&[5; 32]), Owner::new());
        let config = config_of(&key, &owner, more);
        let tickets = Arc::new(Tickets::default());
        basalt_trustd::engine::serve(tickets.clone(), &settings.plugin).unwrap();
        let engine = RealEngine::start(dir.path(), name, true);
        engine.ready().await;
        let mut parts = parts(&settings, &config, tickets.clone(), tpm.open().await).await;
        parts.fetcher = fetcher(&settings, &config, architecture);
        let (approvals, audit) = (parts.approvals.clone(), parts.audit.clone());
        let modules = Arc::new(Modules::open(parts).unwrap());
        let mut node = Self {
            dir,
            engine,
            tpm,
            settings,
            key,
            log: String::new(),
            owner,
            approvals,
            audit,
            tickets,
            modules,
            config,
            keeping: None,
        };
        node.go_on();
        node
    }

    /// What its API shows beside its modules.
    pub(crate) fn base(&self, certificate: &str) -> Arc<Base> {
        let audit = self.audit.clone();
        let vault = vault(
            audit.tpm(),
            audit.platform_register(),
            &self.settings.data,
            self.dir.path(),
            &self.config.keys,
        );
        let (init, certificate) = (self.settings.init.clone(), certificate.to_owned());
        Arc::new(Base {
            boot: boot(),
            machine: "virt".into(),
            audit,
            vault,
            init,
            certificate,
            opened: tokio::sync::Notify::new(),
        })
    }

    /// Ends the loop, as the end of the process would.
    pub(crate) fn keeping_aborted(&self) {
        if let Some(keeping) = &self.keeping {
            keeping.abort();
        }
    }

    pub(crate) fn go_on(&mut self) {
        self.keeping = Some(tokio::spawn(self.modules.clone().keep()));
    }

    pub(crate) async fn state(&mut self, digest: &str, status: Status) {
        let seq = self.log.lines().count() as u64 + 1;
        self.log += &statement(&self.key, digest, status, seq);
        self.approvals.extend(&self.log).await.unwrap();
        self.modules.wake();
    }

    /// Puts an archive into the store, as `trustctl image push` does.
    pub(crate) async fn push(&self, archive: &[u8]) -> Result<Vec<String>, oci::OciError> {
        self.modules.fetcher().upload(std::io::Cursor::new(archive.to_vec())).await
    }

    pub(crate) fn spec(&self, name: &str, desired: DesiredState, toml: &str) -> SignedSpec {
        let generation = SERIAL.fetch_add(1, Ordering::Relaxed);
        self.owner.sign(&Spec { desired, module: name.into(), generation, toml: toml.into() })
    }

    pub(crate) fn apply(&self, name: &str, toml: &str) {
        self.modules.apply(name, &self.spec(name, DesiredState::Run, toml)).unwrap();
    }

    /// Waits until a module is as desired.
    pub(crate) async fn until(&self, name: &str, spec: impl Fn(&State) -> bool) -> State {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.modules.state(name) {
                Some(state) if spec(&state) => return state,
                other => assert!(
                    Instant::now() < deadline,
                    "{name}: {other:?}\n{}",
                    self.events().await.join("\n")
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until something is in the audit log.
    pub(crate) async fn event(&self, says: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.events().await;
            if let Some(event) = events.iter().find(|e| says(e)) {
                return event.clone();
            }
            assert!(Instant::now() < deadline, "{}", events.join("\n"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn running(&self, name: &str) -> String {
        match self.until(name, |s| matches!(s, State::Running { .. })).await {
            State::Running { container } => container,
            _ => unreachable!(),
        }
    }

    pub(crate) async fn refused(&self, name: &str) -> String {
        match self.until(name, |s| matches!(s, State::Refused { .. })).await {
            State::Refused { reason } => reason,
            _ => unreachable!(),
        }
    }

    pub(crate) async fn events(&self) -> Vec<String> {
        self.audit
            .records()
            .await
            .into_iter()
            .map(|r| format!("{} {}", r.content.kind, r.content.data))
            .collect()
    }

    pub(crate) async fn kinds(&self) -> Vec<String> {
        self.events().await.iter().map(|e| e.split(' ').next().unwrap().to_owned()).collect()
    }

    /// The engine, as somebody who got past the second lock would have it.
    pub(crate) async fn behind(&self) -> Docker {
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

    pub(crate) async fn own(&self) -> Engine {
        Engine::connect(&self.engine.socket, self.tickets.clone()).await.unwrap()
    }

    /// How long until the engine has no such container any more.
    pub(crate) async fn gone(&self, id: &str) -> Duration {
        let (engine, begun) = (self.own().await, Instant::now());
        while engine.containers().await.unwrap().iter().any(|c| c.id == id) {
            assert!(begun.elapsed() < PATIENCE, "{id} is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }
}

/// A program that nobody here wrote.
pub(crate) fn service(name: &str) -> PathBuf {
    Path::new(
        &std::env::var_os("BASALT_SERVICES")
            .expect("these tests need real services: cargo xtask test engine"),
    )
    .join(name)
}

/// The tree of the set `programs`.
pub(crate) fn programs() -> PathBuf {
    std::env::var_os("BASALT_PROGRAMS")
        .expect("these tests need other people's programs: cargo xtask test engine")
        .into()
}

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
        if let Some(keeping) = self.keeping.take() {
            keeping.abort();
        }
    }
}

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}
