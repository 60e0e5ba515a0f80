//! Comparison of trustd with the engine alone: `cargo xtask bench gate`. Both are timed in turns,
//! in one run on one machine.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::engine::{ImageLoad, LoadLock};
use basalt_trustd::images::fetch::{Fetcher, ProgressCell, RegistryClient};
use basalt_trustd::images::store::Store;
use bollard::Docker;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptions, ListImagesOptions, RemoveImageOptionsBuilder,
};
use config::{ImageSource, Registry};
use futures_util::StreamExt as _;
use ledger::{Decision, Status};
use oci::Limits;

use crate::images::{Compression, TestImage, image_with_layers, publish};
use crate::node::{Node, RealEngine, run};
use crate::registry::RealRegistry;

const ROUNDS: usize = 5;
const LAYERS: usize = 8;
const LAYER_BYTES: usize = 25 << 20;

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

fn fetcher(dir: &std::path::Path, registries: &[Registry]) -> Fetcher {
    let store = Store::open(dir, 8 << 30, Limits::default(), crate::node::readers()).unwrap();
    let client = RegistryClient::new(registries, Duration::from_secs(30)).unwrap();
    Fetcher::new(Arc::new(store), client, oci::Platform::linux("amd64"))
}

/// Returns a new image. The engine keeps the layers of removed images for a while.
fn large(name: &str) -> TestImage {
    image_with_layers(
        &format!("{name} {}", std::process::id()),
        &[Compression::Gzip; LAYERS],
        LAYER_BYTES,
    )
}

/// Fetches and loads an image as a rollout does: the engine gets verified layers at once.
async fn load(node: &Node, gate: &Fetcher, source: &ImageSource, load_lock: &LoadLock) {
    let load = ImageLoad::new(
        &Arc::new(node.connect_engine().await),
        gate.store.clone(),
        Arc::new(|_| Ok(())),
        load_lock.clone(),
    );
    let verified = gate
        .fetch("bench", source, &ProgressCell::default(), &|image, layers| {
            load.layers_verified(image, layers);
        })
        .await
        .unwrap();
    load.finish(verified).await.unwrap();
}

/// Removes all images, once the engine has removed the partial images of the last load.
async fn remove_images(node: &Node, load_lock: &LoadLock) {
    let _guard = load_lock.lock().await;
    for image in node.connect_engine().await.images().await.unwrap() {
        node.connect_engine().await.remove_image(&image.digest).await.unwrap();
    }
}

/// Times the load of an archive by the engine alone.
async fn docker_load(docker: &Docker, file: &Path) -> Duration {
    let began = Instant::now();
    let content = tokio::fs::read(file).await.unwrap();
    let stream = futures_util::stream::iter(
        content
            .chunks(1 << 17)
            .map(|c| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(c)))
            .collect::<Vec<_>>(),
    );
    let mut loading = Box::pin(docker.import_image_stream(
        ImportImageOptions { quiet: true, ..Default::default() },
        stream,
        None,
    ));
    while let Some(item) = loading.next().await {
        item.unwrap();
    }
    began.elapsed()
}

/// Times the upload of an archive into the store, its verification and its load into the engine.
async fn gate_load(node: &Node, load_lock: &LoadLock, file: &Path, digest: String) -> Duration {
    let dir = tempfile::tempdir_in("/cache").unwrap();
    let gate = fetcher(dir.path(), &[]);
    let began = Instant::now();
    gate.upload(std::fs::File::open(file).unwrap()).await.unwrap();
    load(node, &gate, &ImageSource { digest, registry: None, archive: None }, load_lock).await;
    began.elapsed()
}

/// Times a pull by the engine alone.
async fn docker_pull(docker: &Docker, name: &str, digest: &str) -> Duration {
    let began = Instant::now();
    let options =
        CreateImageOptionsBuilder::default().from_image(&format!("{name}@{digest}")).build();
    let mut pulling = Box::pin(docker.create_image(Some(options), None, None));
    while let Some(item) = pulling.next().await {
        item.unwrap();
    }
    began.elapsed()
}

/// Times a fetch from a registry and the load into the engine.
async fn gate_pull(
    node: &Node,
    load_lock: &LoadLock,
    registry: &Registry,
    name: &str,
    digest: String,
) -> Duration {
    let dir = tempfile::tempdir_in("/cache").unwrap();
    let gate = fetcher(dir.path(), std::slice::from_ref(registry));
    let began = Instant::now();
    load(
        node,
        &gate,
        &ImageSource { digest, registry: Some(name.to_owned()), archive: None },
        load_lock,
    )
    .await;
    began.elapsed()
}

#[test]
#[ignore = "cargo xtask bench gate"]
fn figures() {
    run(async {
        let registry = RealRegistry::start();
        let mut node = Node::start("bench").await;
        node.abort_reconciling();
        let load_lock = LoadLock::default();
        let alone = EngineAlone::start().await;
        // The memory is measured first. It is that of the whole process, including what the
        // creation of test images leaves behind.
        measure_memory(&node, &load_lock).await;
        compare_with_docker(&node, &alone, &registry, &load_lock).await;
        let small = crate::images::image("decision");
        node.add_statement(&small.digest, Status::Approved).await;
        node.push(&small.archive()).await.unwrap();
        let source = ImageSource { digest: small.digest.clone(), registry: None, archive: None };
        measure_decisions(&node, &source).await;
        measure_concurrent_decisions(&node, &source).await;
        measure_reconcile_loop(&mut node, &small.digest).await;
        measure_removal(&node, &small.digest).await;
    });
}

async fn measure_memory(node: &Node, load_lock: &LoadLock) {
    let file = node.dir.path().join("image.tar");
    let digest = {
        let image = image_with_layers("gigabyte", &[Compression::Gzip; LAYERS], 128 << 20);
        std::fs::write(&file, image.archive()).unwrap();
        image.digest
    };
    let dir = tempfile::tempdir_in("/cache").unwrap();
    let gate = fetcher(dir.path(), &[]);
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    gate.upload(std::fs::File::open(&file).unwrap()).await.unwrap();
    load(node, &gate, &ImageSource { digest, registry: None, archive: None }, load_lock).await;
    println!(
        "FIGURE peak memory while a 1 GB image is loaded: {:.0} MiB (at most 64 MiB)",
        peak_kib() as f64 / 1024.0
    );
    remove_images(node, load_lock).await;
    std::fs::remove_file(&file).unwrap();
}

/// The engine as Debian installs it, without trustd.
struct EngineAlone {
    docker: Docker,
    _dir: tempfile::TempDir,
    _engine: RealEngine,
}

impl EngineAlone {
    /// Starts the engine, and prints its version, its start time and its memory.
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("alone").tempdir_in("/run").unwrap();
        let began = Instant::now();
        let engine = RealEngine::start(dir.path(), "bench-alone", false);
        engine.answers().await;
        let socket = engine.socket.to_string_lossy().into_owned();
        let docker = Docker::connect_with_unix(&socket, 600, bollard::API_DEFAULT_VERSION).unwrap();
        let docker = docker.negotiate_version().await.unwrap();
        let started = began.elapsed();
        let version = docker.version().await.unwrap().version.unwrap();
        let memory: u64 = engine.processes().into_iter().map(resident_kib).sum();
        println!(
            "FIGURE engine {version}: starts in {:.2} s, {:.0} MiB in dockerd and containerd",
            started.as_secs_f64(),
            memory as f64 / 1024.0
        );
        Self { docker, _dir: dir, _engine: engine }
    }

    /// Removes all images.
    async fn remove_images(&self) {
        let force = RemoveImageOptionsBuilder::default().force(true).build();
        for image in self.docker.list_images(None::<ListImagesOptions>).await.unwrap() {
            self.docker.remove_image(&image.id, Some(force.clone()), None).await.unwrap();
        }
    }
}

async fn compare_with_docker(
    node: &Node,
    alone: &EngineAlone,
    registry: &RealRegistry,
    load_lock: &LoadLock,
) {
    let host = registry.address.to_string();
    let name = format!("{host}/bench/app");
    let settings = Registry { host, plain: true, ..Registry::default() };
    let file = node.dir.path().join("image.tar");
    let archive = |name: String| {
        let image = large(&name);
        std::fs::write(&file, image.archive_with_name("bench:1")).unwrap();
        image.digest
    };
    let publish = |name: String| {
        let image = large(&name);
        publish(&registry.storage, "bench/app", &image.blobs, &[&image.manifest]);
        image.digest
    };
    let (mut loads, mut docker_loads, mut pulls, mut docker_pulls) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        archive(format!("docker load {round}"));
        docker_loads.push(docker_load(&alone.docker, &file).await);
        alone.remove_images().await;

        let digest = archive(format!("load {round}"));
        loads.push(gate_load(node, load_lock, &file, digest).await);
        remove_images(node, load_lock).await;

        let digest = publish(format!("docker pull {round}"));
        docker_pulls.push(docker_pull(&alone.docker, &name, &digest).await);
        alone.remove_images().await;

        let digest = publish(format!("pull {round}"));
        pulls.push(gate_pull(node, load_lock, &settings, &name, digest).await);
        remove_images(node, load_lock).await;
        let seconds = |all: &[Duration]| all.last().unwrap().as_secs_f64();
        println!(
            "round {round}: docker load {:.2} s, gate {:.2} s; docker pull {:.2} s, gate {:.2} s",
            seconds(&docker_loads),
            seconds(&loads),
            seconds(&docker_pulls),
            seconds(&pulls)
        );
    }
    print_ratio(loads, docker_loads, "load through the gate, 200 MB in 8 layers", "docker load");
    print_ratio(pulls, docker_pulls, "pull through the gate, 200 MB in 8 layers", "docker pull");
}

fn print_ratio(gate: Vec<Duration>, docker: Vec<Duration>, what: &str, docker_name: &str) {
    let (gate, docker) = (median(gate).as_secs_f64(), median(docker).as_secs_f64());
    println!(
        "FIGURE {what}: {gate:.2} s, {docker_name} {docker:.2} s, ratio {:.2} (at most 1.05)",
        gate / docker
    );
}

/// Times decisions with log and image on the node.
async fn measure_decisions(node: &Node, source: &ImageSource) {
    let mut decisions = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        let verified = node
            .modules
            .fetcher()
            .fetch("decision", source, &ProgressCell::default(), &|_, _| {})
            .await
            .unwrap();
        assert!(matches!(node.admission.decide(&verified.digest), Decision::Allow(_)));
        decisions.push(began.elapsed());
    }
    decisions.sort();
    println!(
        "FIGURE decision with everything local: p50 {:.2} ms, p99 {:.2} ms (at most 5 ms)",
        decisions[500].as_secs_f64() * 1e3,
        decisions[990].as_secs_f64() * 1e3
    );
}

/// Counts correct decisions among 20 concurrent ones, in five rounds.
async fn measure_concurrent_decisions(node: &Node, source: &ImageSource) {
    let unapproved = crate::images::image("unapproved").digest;
    let mut correct = 0;
    for _ in 0..5 {
        let tasks = (0..20).map(|n| {
            let (fetcher, source, admission) =
                (node.modules.fetcher().clone(), source.clone(), node.admission.clone());
            let unapproved = unapproved.clone();
            tokio::spawn(async move {
                if n % 2 == 0 {
                    let verified = fetcher
                        .fetch(&format!("d{n}"), &source, &ProgressCell::default(), &|_, _| {})
                        .await
                        .unwrap();
                    matches!(admission.decide(&verified.digest), Decision::Allow(_))
                } else {
                    matches!(admission.decide(&unapproved), Decision::Deny(_))
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            correct += usize::from(task.await.unwrap());
        }
    }
    println!("FIGURE decisions 20 in parallel: {correct}/100 right");
}

/// Measures the processor time of the reconcile loop while one module runs and nothing changes.
async fn measure_reconcile_loop(node: &mut Node, digest: &str) {
    node.apply(
        "idle",
        &format!("memory-mib = 32\n[image]\ndigest = \"{digest}\"\n[health]\nstays-s = 0\n"),
    );
    node.start_reconciling();
    let container = node.wait_until_running("idle").await;
    assert!(!container.is_empty());
    let engine = node.engine.processes();
    let engine_time = || engine.iter().map(|pid| cpu(&pid.to_string())).sum::<Duration>();
    let before = (cpu("self"), engine_time());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let share = |now: Duration, before: Duration| (now - before).as_secs_f64() / 60.0 * 100.0;
    println!(
        "FIGURE watching costs {:.2}% of a core in trustd (at most 1%), {:.2}% in the engine that \
         answers",
        share(cpu("self"), before.0),
        share(engine_time(), before.1)
    );
}

/// Times the removal of unknown containers.
async fn measure_removal(node: &Node, digest: &str) {
    let docker = node.bypass_plugin().await;
    let mut times = Vec::new();
    for n in 0..5 {
        let body = bollard::models::ContainerCreateBody {
            image: Some(digest.to_owned()),
            ..Default::default()
        };
        let name = format!("unknown{n}");
        let options =
            bollard::query_parameters::CreateContainerOptionsBuilder::default().name(&name).build();
        let id = docker.create_container(Some(options), body).await.unwrap().id;
        let began = Instant::now();
        let _ = docker.start_container(&id, None).await;
        node.wait_until_removed(&id).await;
        times.push(began.elapsed());
    }
    println!(
        "FIGURE an unknown container is gone after {:.2} s (at most 2 s)",
        median(times).as_secs_f64()
    );
}

/// Returns the peak resident set size in KiB since its last reset (proc_pid_status(5), VmHWM).
fn peak_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    text.lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap()
}

/// Returns the resident set size of a process in KiB.
fn resident_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap()
}

/// Returns the processor time of a process.
fn cpu(pid: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // utime and stime, fields 14 and 15, in hundredths of a second (proc_pid_stat(5)); the state is
    // the third.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let hundredths = |n: usize| fields[n - 3].parse::<u64>().unwrap();
    Duration::from_millis((hundredths(14) + hundredths(15)) * 10)
}
