//! Side by side with the bare engine: `cargo xtask bench gate`. Everything is timed in one run on
//! one machine, in turns.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::engine::{Loading, Turn};
use basalt_trustd::images::fetch::{Client, Fetcher, Watched};
use basalt_trustd::images::store::Store;
use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptions};
use config::{Registry, Source};
use futures_util::StreamExt as _;
use ledger::{Decision, Status};
use oci::Limits;

use crate::images::{Built, Packed, layered, publish};
use crate::node::{Node, run};
use crate::registry::RealRegistry;

const ROUNDS: usize = 5;
const LAYERS: usize = 8;
const LAYER: usize = 25 << 20;

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

fn fetcher(dir: &std::path::Path, registries: &[Registry]) -> Fetcher {
    let store = Store::open(dir, 8 << 30, Limits::default()).unwrap();
    let client = Client::new(registries, Duration::from_secs(30)).unwrap();
    Fetcher::new(Arc::new(store), client, oci::Platform::linux("amd64"))
}

/// Another image each time: the engine keeps layers of what it once had, and takes its time to
/// forget them.
fn large(name: &str) -> Built {
    layered(&format!("{name} {}", std::process::id()), &[Packed::Gzip; LAYERS], LAYER)
}

/// As a module's job does it: what is verified is handed on at once.
async fn bring(node: &Node, gate: &Fetcher, source: &Source, turn: &Turn) {
    let loading = Loading::new(
        &Arc::new(node.own().await),
        gate.store.clone(),
        Arc::new(|_| Ok(())),
        turn.clone(),
    );
    let verified = gate
        .get("bench", source, &Watched::default(), &|image, layers| loading.ready(image, layers))
        .await
        .unwrap();
    loading.finish(verified).await.unwrap();
}

async fn forget(node: &Node, turn: &Turn) {
    // Not before the engine is done with the last one's parts. trustd's own look removes what it
    // did not load; it is not running here.
    let _turn = turn.lock().await;
    for image in node.own().await.images().await.unwrap() {
        node.own().await.remove_image(&image.digest).await.unwrap();
    }
}

/// The engine alone.
async fn docker_load(docker: &Docker, file: &Path) -> Duration {
    let begun = Instant::now();
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
    begun.elapsed()
}

/// The same kind of file into the store, verified, and from there into the engine.
async fn gate_load(node: &Node, turn: &Turn, file: &Path, digest: String) -> Duration {
    let dir = tempfile::tempdir_in("/cache").unwrap();
    let gate = fetcher(dir.path(), &[]);
    let begun = Instant::now();
    gate.upload(std::fs::File::open(file).unwrap()).await.unwrap();
    bring(node, &gate, &Source { digest, registry: None, archive: None }, turn).await;
    begun.elapsed()
}

async fn docker_pull(docker: &Docker, name: &str, digest: &str) -> Duration {
    let begun = Instant::now();
    let options =
        CreateImageOptionsBuilder::default().from_image(&format!("{name}@{digest}")).build();
    let mut pulling = Box::pin(docker.create_image(Some(options), None, None));
    while let Some(item) = pulling.next().await {
        item.unwrap();
    }
    begun.elapsed()
}

async fn gate_pull(
    node: &Node,
    turn: &Turn,
    registry: &Registry,
    name: &str,
    digest: String,
) -> Duration {
    let dir = tempfile::tempdir_in("/cache").unwrap();
    let gate = fetcher(dir.path(), std::slice::from_ref(registry));
    let begun = Instant::now();
    bring(node, &gate, &Source { digest, registry: Some(name.to_owned()), archive: None }, turn)
        .await;
    begun.elapsed()
}

#[test]
#[ignore = "cargo xtask bench gate"]
fn figures() {
    run(async {
        let registry = RealRegistry::start();
        let host = registry.address.to_string();
        let name = format!("{host}/bench/app");
        let plain = Registry {
            host: host.clone(),
            mirrors: Vec::new(),
            plain: true,
            ca: None,
            user: None,
            password: None,
        };
        let mut node = Node::start("bench").await;
        node.keeping_aborted();
        let docker = node.behind().await;
        let turn = Turn::default();
        let file = node.dir.path().join("image.tar");
        // First: the whole process counts, the harness and what is left of making images too.
        let digest = {
            let image = layered("gigabyte", &[Packed::Gzip; LAYERS], 128 << 20);
            std::fs::write(&file, image.archive()).unwrap();
            image.digest
        };
        let dir = tempfile::tempdir_in("/cache").unwrap();
        let gate = fetcher(dir.path(), &[]);
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        gate.upload(std::fs::File::open(&file).unwrap()).await.unwrap();
        bring(&node, &gate, &Source { digest, registry: None, archive: None }, &turn).await;
        println!(
            "FIGURE peak memory while a 1 GB image is loaded: {:.0} MiB (at most 64 MiB)",
            peak_kib() as f64 / 1024.0
        );
        forget(&node, &turn).await;
        std::fs::remove_file(&file).unwrap();

        let archived = |what: String| {
            let image = large(&what);
            std::fs::write(&file, image.archive_with_name("bench:1")).unwrap();
            image.digest
        };
        let published = |what: String| {
            let image = large(&what);
            publish(&registry.storage, "bench/app", &image.blobs, &[&image.manifest]);
            image.digest
        };
        let (mut loads, mut bare_loads, mut pulls, mut bare_pulls) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            archived(format!("docker load {round}"));
            bare_loads.push(docker_load(&docker, &file).await);
            forget(&node, &turn).await;

            let digest = archived(format!("load {round}"));
            loads.push(gate_load(&node, &turn, &file, digest).await);
            forget(&node, &turn).await;

            let digest = published(format!("docker pull {round}"));
            bare_pulls.push(docker_pull(&docker, &name, &digest).await);
            forget(&node, &turn).await;

            let digest = published(format!("pull {round}"));
            pulls.push(gate_pull(&node, &turn, &plain, &name, digest).await);
            forget(&node, &turn).await;
            let seconds = |all: &[Duration]| all.last().unwrap().as_secs_f64();
            println!(
                "round {round}: docker load {:.2} s, gate {:.2} s; docker pull {:.2} s, gate {:.2} s",
                seconds(&bare_loads),
                seconds(&loads),
                seconds(&bare_pulls),
                seconds(&pulls)
            );
        }
        let ratio = |ours: Vec<Duration>, bare: Vec<Duration>, what: &str, bare_name: &str| {
            let (ours, bare) = (median(ours), median(bare));
            println!(
                "FIGURE {what}: {:.2} s, {bare_name} {:.2} s, ratio {:.2} (at most 1.10)",
                ours.as_secs_f64(),
                bare.as_secs_f64(),
                ours.as_secs_f64() / bare.as_secs_f64()
            );
        };
        ratio(loads, bare_loads, "load through the gate, 200 MB in 8 layers", "docker load");
        ratio(pulls, bare_pulls, "pull through the gate, 200 MB in 8 layers", "docker pull");

        // A verdict with everything local: ledger and image.
        let small = crate::images::image("verdict");
        node.state(&small.digest, Status::Approved).await;
        node.push(&small.archive()).await.unwrap();
        let source = Source { digest: small.digest.clone(), registry: None, archive: None };
        let mut verdicts = Vec::new();
        for _ in 0..1000 {
            let begun = Instant::now();
            let verified = node
                .modules
                .fetcher()
                .get("verdict", &source, &Watched::default(), &|_, _| {})
                .await
                .unwrap();
            assert!(matches!(node.approvals.decide(&verified.digest), Decision::Allow(_)));
            verdicts.push(begun.elapsed());
        }
        verdicts.sort();
        println!(
            "FIGURE verdict with everything local: p50 {:.2} ms, p99 {:.2} ms (at most 5 ms)",
            verdicts[500].as_secs_f64() * 1e3,
            verdicts[990].as_secs_f64() * 1e3
        );
        let stranger = crate::images::image("stranger");
        let mut right = 0;
        for _ in 0..5 {
            let asked = (0..20).map(|n| {
                let (fetcher, source, approvals) =
                    (node.modules.fetcher().clone(), source.clone(), node.approvals.clone());
                let other = stranger.digest.clone();
                tokio::spawn(async move {
                    if n % 2 == 0 {
                        let verified = fetcher
                            .get(&format!("v{n}"), &source, &Watched::default(), &|_, _| {})
                            .await
                            .unwrap();
                        matches!(approvals.decide(&verified.digest), Decision::Allow(_))
                    } else {
                        matches!(approvals.decide(&other), Decision::Deny(_))
                    }
                })
            });
            for task in asked.collect::<Vec<_>>() {
                right += usize::from(task.await.unwrap());
            }
        }
        println!("FIGURE verdicts 20 in parallel: {right}/100 right");

        // Watching: one module runs, nothing happens.
        node.apply(
            "idle",
            &format!(
                "memory-mib = 32\n[image]\ndigest = \"{}\"\n[health]\nstays-s = 0\n",
                small.digest
            ),
        );
        node.go_on();
        let container = node.running("idle").await;
        let engine = node.engine.processes();
        let spent = || engine.iter().map(|pid| cpu(&pid.to_string())).sum::<Duration>();
        let before = (cpu("self"), spent());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let share = |now: Duration, before: Duration| (now - before).as_secs_f64() / 60.0 * 100.0;
        println!(
            "FIGURE watching costs {:.2}% of a core in trustd (at most 1%), {:.2}% in the engine that answers",
            share(cpu("self"), before.0),
            share(spent(), before.1)
        );
        let mut gone = Vec::new();
        for n in 0..5 {
            let body = bollard::models::ContainerCreateBody {
                image: Some(small.digest.clone()),
                ..Default::default()
            };
            let name = format!("stranger{n}");
            let options = bollard::query_parameters::CreateContainerOptionsBuilder::default()
                .name(&name)
                .build();
            let id = docker.create_container(Some(options), body).await.unwrap().id;
            let begun = Instant::now();
            let _ = docker.start_container(&id, None).await;
            node.gone(&id).await;
            gone.push(begun.elapsed());
        }
        println!(
            "FIGURE an unknown container is gone after {:.2} s (at most 2 s)",
            median(gone).as_secs_f64()
        );
        assert!(!container.is_empty());
    });
}

/// The largest resident set since it was last reset (proc_pid_status(5), VmHWM).
fn peak_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    text.lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap()
}

/// Processor time of a process so far.
fn cpu(of: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{of}/stat")).unwrap();
    // utime and stime, fields 14 and 15, in hundredths of a second (proc_pid_stat(5)); the state is
    // the third.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let hundredths = |n: usize| fields[n - 3].parse::<u64>().unwrap();
    Duration::from_millis((hundredths(14) + hundredths(15)) * 10)
}
