//! The gate against a real Docker Engine, in namespaces of its own: `cargo xtask test engine`.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::api::module::Sockets;
use basalt_trustd::approvals::Approvals;
use basalt_trustd::audit::Audit;
use basalt_trustd::crypto::keys::RootKey;
use basalt_trustd::engine::Engine;
use basalt_trustd::modules::{Modules, State};
use basalt_trustd::settings::Settings;
use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, ImportImageOptions};
use common::Swtpm;
use ledger::{Entry, SigningKey, Statement, Status};

const PATIENCE: Duration = Duration::from_secs(120);

/// containerd and dockerd with folders of their own, ended on drop.
struct RealEngine {
    children: Vec<Child>,
    socket: PathBuf,
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
    fn start(dir: &Path, name: &str) -> Self {
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
        engine
            .children
            .push(Command::new("containerd").arg("--config").arg(&config).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap());
        wait("containerd", || containerd.exists());
        let daemon = dir.join("daemon.json");
        let settings = serde_json::json!({
            "data-root": state, "exec-root": dir.join("exec"), "pidfile": dir.join("docker.pid"), "containerd": containerd,
            "hosts": [format!("unix://{}", engine.socket.display())], "features": { "containerd-snapshotter": true },
            "bridge": "none", "iptables": false, "ip6tables": false, "cgroup-parent": "/basalt-test",
        });
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
        let socket = engine.socket.clone();
        wait("dockerd", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        engine
    }
}

#[track_caller]
fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A static program that says something and stays.
fn program(dir: &Path) -> Vec<u8> {
    let source = dir.join("stay.rs");
    std::fs::write(&source, "fn main() { println!(\"it runs\"); loop { std::thread::park() } }").unwrap();
    let output = dir.join("stay");
    let status = Command::new("rustc").args(["-O", "-Ctarget-feature=+crt-static", "-o"]).arg(&output).arg(&source).status().unwrap();
    assert!(status.success());
    std::fs::read(output).unwrap()
}

fn image(program: &[u8], word: &str) -> (Vec<u8>, String) {
    oci::build(&oci::Image {
        architecture: "amd64",
        files: &[("stay", 0o755, program), ("word", 0o644, word.as_bytes())],
        folders: &["run", "run/basalt"],
        entrypoint: &["/stay"],
        user: "65532:65532",
    })
    .unwrap()
}

/// A node without a machine: engine, TPM, ledger and modules, all real.
struct Node {
    dir: tempfile::TempDir,
    engine: RealEngine,
    _tpm: Swtpm,
    settings: Settings,
    key: SigningKey,
    log: String,
    approvals: Arc<Approvals>,
    audit: Arc<Audit>,
    modules: Arc<Modules>,
    sockets: Arc<Sockets>,
}

impl Node {
    async fn start(name: &str) -> Self {
        assert!(std::env::var_os("BASALT_ENGINE_TESTS").is_some(), "these tests need namespaces of their own: cargo xtask test engine");
        let dir = tempfile::Builder::new().prefix("node").tempdir_in("/run").unwrap();
        let path = |sub: &str| dir.path().join(sub);
        for sub in ["etc/modules", "data/modules", "run", "sockets"] {
            std::fs::create_dir_all(path(sub)).unwrap();
        }
        std::fs::write(path("platform.log"), "").unwrap();
        let key = SigningKey::from_bytes(&[5; 32]);
        let node: config::Node = config::parse(
            "node.toml",
            &format!(
                "hostname = \"t\"\n[network]\nkind = \"none\"\n[api]\nlisten = \"127.0.0.1:0\"\n[owner]\n[ledger]\nkind = \"log\"\nname = \"t\"\nthreshold = 1\napprovers = [\"{}\"]\n",
                measure::hex(key.verifying_key().as_bytes())
            ),
        )
        .unwrap();
        let tpm = Swtpm::start(dir.path());
        let engine = RealEngine::start(dir.path(), name);
        let settings = Settings {
            etc: path("etc"),
            own: path("own.toml"),
            data: path("data"),
            run: path("run"),
            modules: path("sockets"),
            platform_log: path("platform.log"),
            engine: engine.socket.clone(),
            init: path("init.sock"),
            tcti: tpm.tcti.clone(),
        };
        let handle = tpm.open().await;
        let audit = Arc::new(Audit::open(handle.clone(), &settings.platform_log, &settings.run, &settings.data).await.unwrap());
        let root = Arc::new(RootKey::open(&handle, &path("data/root.sealed")).await.unwrap());
        let approvals = Arc::new(Approvals::open(&node, &settings.etc, &settings.data, 0).unwrap());
        let modules = Arc::new(Modules::open(&settings, approvals.clone(), audit.clone()).unwrap());
        let sockets = Arc::new(Sockets::new(settings.modules.clone(), handle, root));
        Self { dir, engine, _tpm: tpm, settings, key, log: String::new(), approvals, audit, modules, sockets }
    }

    fn state(&mut self, digest: &str, status: Status) {
        let seq = self.log.lines().count() as u64 + 1;
        let mut entry = Entry::new(Statement { digest: digest.to_owned(), exp: u64::MAX, iat: 0, seq, status });
        entry.sign("t", &self.key);
        self.log += &(entry.line() + "\n");
        self.approvals.extend(&self.log).unwrap();
    }

    async fn apply(&self, name: &str, archive: &[u8], digest: &str) {
        std::fs::write(self.modules.archive_path(name), archive).unwrap();
        self.modules.apply(name, &format!("memory-mib = 32\n[image]\ndigest = \"{digest}\"\narchive = \"upload\"\n")).await.unwrap();
    }

    /// Lets the node work until a module is as wished.
    async fn until(&self, name: &str, wish: impl Fn(&State) -> bool) -> State {
        let keeping = tokio::spawn(self.modules.clone().keep(self.sockets.clone()));
        let deadline = Instant::now() + PATIENCE;
        let state = loop {
            let state = self.modules.units.lock().await.get(name).map(|u| u.state.clone());
            match state {
                Some(state) if wish(&state) => break state,
                other => assert!(Instant::now() < deadline, "{name}: {other:?}\n{}", self.events().await.join("\n")),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        keeping.abort();
        state
    }

    async fn events(&self) -> Vec<String> {
        self.audit.records().await.into_iter().map(|r| format!("{} {}", r.content.kind, r.content.data)).collect()
    }

    fn docker(&self) -> Docker {
        Docker::connect_with_unix(&self.engine.socket.to_string_lossy(), 60, bollard::API_DEFAULT_VERSION).unwrap()
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn is_running(state: &State) -> bool {
    matches!(state, State::Running { .. })
}

fn is_refused(state: &State) -> bool {
    matches!(state, State::Refused { .. })
}

#[test]
fn approved_runs_and_is_stopped_when_revoked() {
    run(async {
        let mut node = Node::start("approved").await;
        let (archive, digest) = image(&program(node.dir.path()), "good");
        node.state(&digest, Status::Approved);
        node.apply("good", &archive, &digest).await;
        let State::Running { container } = node.until("good", is_running).await else { unreachable!() };
        let engine = Engine::connect(&node.settings.engine).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !engine.logs(&container).await.unwrap().contains("it runs") {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What the engine made of it: nothing but what the template says.
        let found = node.docker().negotiate_version().await.unwrap().inspect_container(&container, None).await.unwrap();
        assert_eq!(found.image.as_deref(), Some(digest.as_str()));
        let host = found.host_config.unwrap();
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!((host.readonly_rootfs, host.privileged, host.pids_limit), (Some(true), Some(false), Some(64)));
        assert_eq!(host.network_mode.as_deref(), Some("none"));

        node.state(&digest, Status::Revoked);
        node.until("good", is_refused).await;
        assert!(engine.containers().await.unwrap().is_empty());
        let kinds: Vec<String> = node.events().await.iter().map(|e| e.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["module-approved", "module-started", "module-stopped", "module-refused"]);
    });
}

#[test]
fn what_is_not_approved_or_altered_never_reaches_the_engine() {
    run(async {
        let mut node = Node::start("refused").await;
        let program = program(node.dir.path());
        let (archive, digest) = image(&program, "nobody approved this");
        node.apply("stranger", &archive, &digest).await;
        // An archive with other content than the approved image: it holds no such manifest.
        let (_, approved) = image(&program, "approved");
        node.state(&approved, Status::Approved);
        node.apply("swapped", &archive, &approved).await;
        let (mut altered, digest) = image(&program, "altered");
        node.state(&digest, Status::Approved);
        let layer = altered.windows(2).position(|w| w == [0x1f, 0x8b]).unwrap();
        altered[layer + 1000] ^= 1;
        node.apply("altered", &altered, &digest).await;
        for (name, code) in [("stranger", "unknown"), ("swapped", "archive"), ("altered", "archive")] {
            let State::Refused { reason } = node.until(name, is_refused).await else { unreachable!() };
            assert!(reason.starts_with(code), "{name}: {reason}");
        }
        let docker = node.docker().negotiate_version().await.unwrap();
        assert!(docker.list_images(None::<bollard::query_parameters::ListImagesOptions>).await.unwrap().is_empty());
        assert!(Engine::connect(&node.settings.engine).await.unwrap().containers().await.unwrap().is_empty());
    });
}

#[test]
fn containers_that_trustd_did_not_start_are_removed_and_recorded() {
    run(async {
        let mut node = Node::start("unknown").await;
        let program = program(node.dir.path());
        let (archive, digest) = image(&program, "good");
        node.state(&digest, Status::Approved);
        node.apply("good", &archive, &digest).await;
        node.until("good", is_running).await;
        // Behind trustd's back, one even with trustd's own label and an approved image.
        let docker = node.docker().negotiate_version().await.unwrap();
        let (evil, evil_digest) = image(&program, "evil");
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(axum::body::Bytes::from(evil))]);
        let mut loading = Box::pin(docker.import_image_stream(ImportImageOptions::default(), stream, None));
        while let Some(item) = futures_util::StreamExt::next(&mut loading).await {
            item.unwrap();
        }
        let mut strangers = Vec::new();
        for (name, image, label) in [("evil", &evil_digest, None), ("twin", &digest, Some("good"))] {
            let labels = label.map(|l| std::collections::HashMap::from([(basalt_trustd::engine::LABEL.to_owned(), l.to_owned())]));
            let body = ContainerCreateBody { image: Some(image.clone()), labels, ..Default::default() };
            let id = docker.create_container(Some(CreateContainerOptionsBuilder::default().name(name).build()), body).await.unwrap().id;
            docker.start_container(&id, None).await.unwrap();
            strangers.push(id);
        }
        node.modules.units.lock().await.get_mut("good").unwrap().state = State::Waiting;
        node.until("good", is_running).await;
        let left: Vec<String> =
            Engine::connect(&node.settings.engine).await.unwrap().containers().await.unwrap().into_iter().map(|c| c.id).collect();
        assert_eq!(left.len(), 1);
        let events = node.events().await;
        for id in strangers {
            assert!(!left.contains(&id));
            assert!(events.iter().any(|e| e.starts_with("unknown-removed") && e.contains(&id)), "{events:?}");
        }
    });
}
