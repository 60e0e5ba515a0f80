//! kill -9 at every step of a start, an upgrade and a rollback: the next process brings it to the
//! same end.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::engine::{Tickets, serve};
use basalt_trustd::modules::{Modules, State};
use deployment::{DesiredState, Spec};
use ledger::{SigningKey, Status};

use crate::common::Swtpm;
use crate::images::{Built, Packed, image, layered};
use crate::node::{Owner, PATIENCE, RealEngine, config_of, parts, run, settings, statement};

const KEY: [u8; 32] = [5; 32];

/// What a process finds when it starts.
struct Place {
    dir: tempfile::TempDir,
    tpm: Swtpm,
    engine: std::path::PathBuf,
    generation: u64,
    /// Digests of all images that the engine may have in the end, parted by commas.
    images: String,
}

impl Place {
    /// A node's folders with a ledger that approves the images and a store that has them.
    async fn new(engine: &Path, images: &[&Built]) -> Self {
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
        let node = config_of(&key(), &Owner::kept(place.dir.path()), "");
        let store = basalt_trustd::fetcher(&node, &settings.data).unwrap();
        for image in images {
            store.upload(std::io::Cursor::new(image.archive())).await.unwrap();
        }
        place
    }

    /// As `Modules::apply` leaves it.
    fn spec(&mut self, toml: &str) {
        self.generation += 1;
        let spec = Spec {
            desired: DesiredState::Run,
            module: "app".into(),
            generation: self.generation,
            toml: toml.into(),
        };
        let signed = Owner::kept(self.dir.path()).sign(&spec);
        std::fs::write(
            self.dir.path().join("data/modules/app.now.json"),
            serde_json::to_string(&signed).unwrap(),
        )
        .unwrap();
    }

    /// A process that ends at a step, as if the power failed.
    fn killed_at(&self, step: &str) -> bool {
        // What steps::step does; an assertion that failed is something else.
        self.process("BASALT_FAILPOINT", step).signal() == Some(6)
    }

    /// A process that is left alone until the module runs as this image, in one container.
    fn settles_on(&self, what: &str, image: &Built) {
        let ended = self.process("BASALT_UNTIL", &image.digest);
        assert!(
            ended.success(),
            "after {what}:\n{}",
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        );
    }

    /// How a process ended.
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
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it did not end by itself");
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&KEY)
}

/// Ends when it is killed at a step, or when all is as it should be.
#[test]
#[ignore = "the process that the other tests kill"]
fn one_process() {
    let path = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    run(async {
        let (dir, tcti) = (path("BASALT_KILL_DIR"), std::env::var("BASALT_KILL_TPM").unwrap());
        let settings = basalt_trustd::settings::Settings {
            engine: path("BASALT_KILL_ENGINE"),
            ..settings(&dir, &tcti)
        };
        let node = config_of(&key(), &Owner::kept(&dir), "");
        let tickets = Arc::new(Tickets::default());
        serve(tickets.clone(), &settings.plugin).unwrap();
        let tpm = basalt_trustd::tpm::Tpm::open(&tcti).await.unwrap();
        // That the log replays to the register after every kill is checked when it is opened.
        let parts = parts(&settings, &node, tickets.clone(), tpm).await;
        let modules = Arc::new(Modules::open(parts).unwrap());
        let _keeping = tokio::spawn(modules.clone().keep());
        let images = std::env::var("BASALT_KILL_IMAGES").unwrap();
        let (until, begun) = (std::env::var("BASALT_UNTIL").unwrap_or_default(), Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let Some(engine) = modules.engine() else { continue };
            let (state, containers) = (modules.state("app"), engine.containers().await.unwrap());
            if let (Some(State::Running { container }), [one]) = (&state, &containers[..])
                && one.id == *container
                && one.running
                && one.image == until
                // What was left of an image goes too.
                && engine.images().await.unwrap().iter().all(|i| images.split(',').any(|known| known == i.digest))
            {
                return;
            }
            assert!(begun.elapsed() < PATIENCE / 2, "{state:?}, {containers:?}");
        }
    });
}

fn module(image: &Built, more: &str) -> String {
    let command =
        if more.is_empty() { "" } else { "command = [\"/stay\", \"/var/lib/app/words\"]\n" };
    format!(
        "memory-mib = 32\nstop-within-s = 1\n{command}[image]\ndigest = \"{}\"\n[health]\ncommand = [\"/stay\", \"check\"]\nwithin-s = 4\n{more}",
        image.digest
    )
}

const FOLDER: &str = "[[volumes]]\nname = \"state\"\npath = \"/var/lib/app\"\n";

/// What answers for the second lock while the engine starts ends with it, connections and all.
fn engine(dir: &Path, name: &str) -> RealEngine {
    run(async {
        std::fs::create_dir_all("/run/docker/plugins").unwrap();
        serve(Arc::new(Tickets::default()), Path::new("/run/docker/plugins/basalt.sock")).unwrap();
        let engine = RealEngine::start(dir, name, true);
        engine.ready().await;
        engine
    })
}

#[test]
fn at_every_step_of_a_start() {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let engine = engine(dir.path(), "kill-start");
    let image = layered("one", &[Packed::Gzip, Packed::Zstd, Packed::No], 100_000);
    for step in [
        "marked",
        "fetched",
        "approved",
        "part",
        "loaded",
        "created",
        "remembered",
        "started",
        "healthy",
        "good",
    ] {
        let mut place = run(Place::new(&engine.socket, &[&image]));
        place.spec(&module(&image, FOLDER));
        assert!(place.killed_at(step), "it never came to {step:?}");
        place.settles_on(step, &image);
    }
}

#[test]
fn at_every_step_of_an_upgrade_and_of_a_rollback() {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let engine = engine(dir.path(), "kill-upgrade");
    let (one, two, sick) = (image("one"), image("two"), image("sick"));
    // With a folder the old one is halted for the new one; without, both run beside each other.
    let alone = ["halted", "created", "remembered", "started", "healthy", "good", "ended"]
        .map(|step| (step, FOLDER, &two, &two));
    let beside =
        ["loaded", "remembered", "started", "good", "ended"].map(|step| (step, "", &two, &two));
    let back = [("started", FOLDER), ("rolled-back", FOLDER), ("started", ""), ("rolled-back", "")];
    for (step, more, next, end) in
        alone.into_iter().chain(beside).chain(back.map(|(step, more)| (step, more, &sick, &one)))
    {
        let mut place = run(Place::new(&engine.socket, &[&one, &two, &sick]));
        place.spec(&module(&one, more));
        place.settles_on("the first version", &one);
        place.spec(&module(next, more));
        assert!(place.killed_at(step), "it never came to {step:?}");
        place.settles_on(step, end);
    }
}
