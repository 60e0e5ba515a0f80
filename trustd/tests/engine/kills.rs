//! A kill at each fail point of a start, an upgrade and a rollback. The next process reaches the
//! same end.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::engine::{EngineImage, Tickets, serve_plugin};
use basalt_trustd::modules::{ModuleStatus, Modules};
use deployment::{DesiredState, Spec};
use ledger::{SigningKey, Status};

use crate::common::Swtpm;
use crate::images::{Compression, TestImage, image, image_with_layers};
use crate::node::{
    CERTIFICATE, Owner, RealEngine, WAIT_TIMEOUT, dependencies, node_config, run, settings,
    statement,
};

const KEY: [u8; 32] = [5; 32];

/// Folders, TPM and engine that survive the processes of a test.
struct Place {
    dir: tempfile::TempDir,
    tpm: Swtpm,
    engine: std::path::PathBuf,
    generation: u64,
    /// Digests of all images that the engine may have at the end, separated by commas.
    images: String,
}

impl Place {
    /// Creates the folders of a node whose ledger approves the images and whose store has them.
    async fn new(engine: &Path, images: &[&TestImage]) -> Self {
        let dir = tempfile::Builder::new().prefix("kill").tempdir_in("/run").unwrap();
        let tpm = Swtpm::start(dir.path());
        let settings = settings(dir.path(), &tpm.tcti);
        let log: String = images
            .iter()
            .enumerate()
            .map(|(n, i)| statement(&key(), &i.digest, Status::Approved, n as u64 + 1))
            .collect();
        std::fs::write(settings.etc.join("ledger.jsonl"), log).unwrap();
        let digests: Vec<&str> = images.iter().map(|i| i.digest.as_str()).collect();
        let place =
            Self { dir, tpm, engine: engine.to_owned(), generation: 0, images: digests.join(",") };
        let node = node_config(&key(), &Owner::load_or_create(place.dir.path()), "");
        let store = basalt_trustd::fetcher(&node, &settings).unwrap();
        for image in images {
            store.upload(std::io::Cursor::new(image.archive())).await.unwrap();
        }
        place
    }

    /// Persists a spec as `Modules::apply` does.
    fn persist_spec(&mut self, toml: &str) {
        self.generation += 1;
        let spec = Spec {
            desired: DesiredState::Run,
            module: "app".into(),
            generation: self.generation,
            node: CERTIFICATE.into(),
            toml: Some(toml.into()),
        };
        let signed = Owner::load_or_create(self.dir.path()).sign(&spec);
        std::fs::write(
            self.dir.path().join("data/modules/app.desired.json"),
            serde_json::to_string(&signed).unwrap(),
        )
        .unwrap();
    }

    /// Runs a process that ends at a fail point, as a power cut would end it. Returns whether the
    /// process reached the fail point.
    fn is_killed_at(&self, fail_point: &str) -> bool {
        // A fail point aborts the process (SIGABRT). A failed assertion ends it with a status.
        self.process("BASALT_FAILPOINT", fail_point).signal() == Some(6)
    }

    /// Runs a process until the module runs with this image in one container.
    fn assert_reconciles(&self, after: &str, image: &TestImage) {
        let status = self.process("BASALT_KILL_EXPECTED_IMAGE", &image.digest);
        assert!(
            status.success(),
            "after {after}:\n{}",
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        );
    }

    /// Runs `one_process` with a variable in its environment, and returns how it ended.
    fn process(&self, name: &str, value: &str) -> ExitStatus {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "kills::one_process", "--nocapture"])
            .env("BASALT_KILL_DIR", self.dir.path())
            .env("BASALT_KILL_ENGINE", &self.engine)
            .env("BASALT_KILL_TPM", &self.tpm.tcti)
            .env("BASALT_KILL_IMAGES", &self.images)
            .env(name, value)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("the process did not end within {} s", WAIT_TIMEOUT.as_secs());
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&KEY)
}

/// Runs trustd until a fail point ends the process or the expected state is reached.
#[test]
#[ignore = "process that the other tests start and kill"]
fn one_process() {
    let path = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    run(async {
        let (dir, tcti) = (path("BASALT_KILL_DIR"), std::env::var("BASALT_KILL_TPM").unwrap());
        let settings = basalt_trustd::settings::Settings {
            engine_socket: path("BASALT_KILL_ENGINE"),
            ..settings(&dir, &tcti)
        };
        let node = node_config(&key(), &Owner::load_or_create(&dir), "");
        let tickets = Arc::new(Tickets::default());
        serve_plugin(tickets.clone(), &settings.plugin_socket).unwrap();
        let tpm = basalt_trustd::tpm::Tpm::open(&tcti).await.unwrap();
        // The audit log verifies when it is opened that it replays to the register.
        let dependencies = dependencies(&settings, &node, tickets.clone(), tpm).await;
        let modules = Arc::new(Modules::open(dependencies).unwrap());
        let _running = tokio::spawn(modules.clone().run());
        let images = std::env::var("BASALT_KILL_IMAGES").unwrap();
        let expected = std::env::var("BASALT_KILL_EXPECTED_IMAGE").unwrap_or_default();
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let Some(engine) = modules.engine() else { continue };
            let (status, containers) = (modules.status("app"), engine.containers().await.unwrap());
            let is_known = |image: &EngineImage| images.split(',').any(|d| d == image.digest);
            if let (Some(ModuleStatus::Running { container }), [one]) = (&status, &containers[..])
                && one.id == *container
                && one.running
                && one.image == expected
                // Partial images are removed too.
                && engine.images().await.unwrap().iter().all(is_known)
            {
                return;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT / 2, "{status:?}, {containers:?}");
        }
    });
}

fn module(image: &TestImage, more: &str) -> String {
    let command =
        if more.is_empty() { "" } else { "command = [\"/stay\", \"/var/lib/app/words\"]\n" };
    format!(
        "memory-mib = 32\nstop-within-s = 1\n{command}[image]\ndigest = \"{}\"\n[health]\n\
         command = [\"/stay\", \"check\"]\nwithin-s = 4\n{more}",
        image.digest
    )
}

/// Volume that excludes two concurrent containers.
const VOLUME: &str = "[[volumes]]\nname = \"state\"\npath = \"/var/lib/app\"\n";

/// Starts an engine. The authorization plugin that answers while it starts ends afterwards, with
/// all connections.
fn engine(dir: &Path, name: &str) -> RealEngine {
    run(async {
        std::fs::create_dir_all("/run/docker/plugins").unwrap();
        serve_plugin(Arc::new(Tickets::default()), Path::new("/run/docker/plugins/basalt.sock"))
            .unwrap();
        let mut engine = RealEngine::start(dir, name, true);
        engine.is_plugin_interrupted = true;
        engine.ready().await;
        engine
    })
}

#[test]
fn a_start_resumes_after_a_kill_at_any_fail_point() {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let engine = engine(dir.path(), "kill-start");
    for step in [
        "marked", "fetched", "approved", "part", "loaded", "created", "recorded", "started",
        "healthy", "good",
    ] {
        // Each process gets an image of its own: an engine that still has the image of the previous
        // one would not load it in parts.
        let compressions = [Compression::Gzip, Compression::Zstd, Compression::None];
        let image = image_with_layers(step, &compressions, 100_000);
        let mut place = run(Place::new(&engine.socket, &[&image]));
        place.persist_spec(&module(&image, VOLUME));
        assert!(place.is_killed_at(step), "the fail point {step:?} was not reached");
        place.assert_reconciles(step, &image);
    }
}

#[test]
fn an_upgrade_and_a_rollback_resume_after_a_kill_at_any_fail_point() {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let engine = engine(dir.path(), "kill-upgrade");
    let (one, two, sick) = (image("one"), image("two"), image("sick"));
    // With a volume the old version is stopped first. Without one, both versions run concurrently.
    let exclusive = ["old-stopped", "created", "recorded", "started", "healthy", "good", "removed"]
        .map(|step| (step, VOLUME, &two, &two));
    let concurrent =
        ["loaded", "recorded", "started", "good", "removed"].map(|step| (step, "", &two, &two));
    let rollback =
        [("started", VOLUME), ("rolled-back", VOLUME), ("started", ""), ("rolled-back", "")];
    for (step, more, next, end) in exclusive
        .into_iter()
        .chain(concurrent)
        .chain(rollback.map(|(step, more)| (step, more, &sick, &one)))
    {
        let mut place = run(Place::new(&engine.socket, &[&one, &two, &sick]));
        place.persist_spec(&module(&one, more));
        place.assert_reconciles("the first version", &one);
        place.persist_spec(&module(next, more));
        assert!(place.is_killed_at(step), "the fail point {step:?} was not reached");
        place.assert_reconciles(step, end);
    }
}
