//! What happens behind trustd's back.

use std::time::Duration;

use bollard::models::{ContainerCreateBody, ContainerUpdateBody, ExecConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ImportImageOptions, StopContainerOptions, TagImageOptionsBuilder,
};
use futures_util::StreamExt as _;
use ledger::Status;

use crate::images::image;
use crate::node::{Node, run};

/// On a machine that has nothing else to do.
const SOON: Duration = Duration::from_secs(2);
/// Tests run beside other work; this is not about speed, which the bench measures.
const IN_TIME: Duration = Duration::from_secs(20);

async fn with_good(name: &str) -> (Node, String, String) {
    let mut node = Node::start(name).await;
    let good = image("good");
    node.state(&good.digest, Status::Approved).await;
    node.push(&good.archive()).await.unwrap();
    node.apply(
        "good",
        &format!(
            "memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n[health]\nstays-s = 0\n",
            good.digest
        ),
    );
    let container = node.running("good").await;
    (node, container, good.digest)
}

#[test]
fn containers_images_and_names_from_nowhere_are_removed_and_recorded() {
    run(async {
        let (node, container, digest) = with_good("unknown").await;
        let docker = node.behind().await;
        let evil = image("evil");
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(
            axum::body::Bytes::from(evil.archive_with_name("evil:1")),
        )]);
        let mut loading =
            Box::pin(docker.import_image_stream(ImportImageOptions::default(), stream, None));
        while let Some(item) = loading.next().await {
            item.unwrap();
        }
        node.event(|e| e.starts_with("unknown-image-removed") && e.contains(&evil.digest)).await;
        // One even with trustd's own label and an approved image.
        let labels = [(basalt_trustd::engine::LABEL.to_owned(), "good".to_owned())].into();
        let body = ContainerCreateBody {
            image: Some(digest.clone()),
            labels: Some(labels),
            ..Default::default()
        };
        let id = docker
            .create_container(
                Some(CreateContainerOptionsBuilder::default().name("twin").build()),
                body,
            )
            .await
            .unwrap()
            .id;
        let _ = docker.start_container(&id, None).await;
        let took = node.gone(&id).await;
        assert!(took < IN_TIME, "{took:?}");
        println!(
            "an unknown container was gone after {took:?} (2 s on an idle machine: {})",
            took < SOON
        );
        node.event(|e| e.starts_with("unknown-container-removed") && e.contains(&id)).await;
        // Another name for an approved image.
        let options = TagImageOptionsBuilder::default().repo("innocent").tag("latest").build();
        docker.tag_image(&digest, Some(options)).await.unwrap();
        node.event(|e| e.starts_with("unknown-tag-removed") && e.contains("innocent")).await;
        assert_eq!(node.running("good").await, container, "what is good was not touched");
    });
}

#[test]
fn an_altered_container_is_replaced() {
    run(async {
        let (node, container, _) = with_good("altered").await;
        let docker = node.behind().await;
        let update = ContainerUpdateBody { pids_limit: Some(4000), ..Default::default() };
        docker.update_container(&container, update).await.unwrap();
        node.gone(&container).await;
        node.event(|e| e.starts_with("module-tampered") && e.contains(&container)).await;
        let next = fresh(&node, &container).await;
        // Somebody looks into it.
        let exec = ExecConfig { cmd: Some(vec!["/stay".into()]), ..Default::default() };
        docker.create_exec(&next, exec).await.unwrap();
        node.gone(&next).await;
        // Told by an event, or seen by looking: whichever was first.
        let event = node.event(|e| e.starts_with("module-tampered") && e.contains(&next)).await;
        assert!(event.contains("exec_create") || event.contains("something runs in it"), "{event}");
        let third = fresh(&node, &next).await;
        // Stopped behind trustd's back, it is started again.
        let _ = docker.stop_container(&third, None::<StopContainerOptions>).await;
        node.event(|e| e.starts_with("module-exited")).await;
        fresh(&node, &third).await;
    });
}

async fn fresh(node: &Node, old: &str) -> String {
    match node.until("good", |s| matches!(s, basalt_trustd::modules::State::Running { container } if container != old)).await {
        basalt_trustd::modules::State::Running { container } => container,
        _ => unreachable!(),
    }
}

#[test]
fn a_container_started_by_containerd_itself_is_seen_in_the_control_groups() {
    run(async {
        let (node, ..) = with_good("ctr").await;
        let groups = node.dir.path().join("groups");
        let foreign = groups.join("default/planted");
        std::fs::create_dir_all(&foreign).unwrap();
        std::fs::write(foreign.join("cgroup.procs"), "4711\n").unwrap();
        let init = std::os::unix::net::UnixDatagram::bind(&node.settings.init).unwrap();
        init.set_read_timeout(Some(crate::node::PATIENCE)).unwrap();
        let settings =
            basalt_trustd::settings::Settings { groups: Some(groups), ..node.settings.clone() };
        let parts = crate::node::parts(
            &settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        let audit = parts.audit.clone();
        node.keeping_aborted();
        let modules = std::sync::Arc::new(basalt_trustd::modules::Modules::open(parts).unwrap());
        let keeping = tokio::spawn(modules.keep());
        let asked = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 128];
            let n = init.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        });
        assert_eq!(asked.await.unwrap(), "end default/planted");
        assert!(audit.records().await.iter().any(|r| r.content.kind == "unknown-cgroup-killed"));
        keeping.abort();
    });
}

#[test]
fn a_stream_of_events_that_stalls_is_an_alarm() {
    run(async {
        let (mut node, container, _) = with_good("stall").await;
        // Between trustd and the engine: everything passes, but for the events, of which only the
        // head does.
        let socket = node.dir.path().join("stalling.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let engine = node.engine.socket.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let engine = engine.clone();
                tokio::spawn(stall(client, engine));
            }
        });
        let settings =
            basalt_trustd::settings::Settings { engine: socket, ..node.settings.clone() };
        let parts = crate::node::parts(
            &settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        node.keeping_aborted();
        node.audit = parts.audit.clone();
        node.modules = std::sync::Arc::new(basalt_trustd::modules::Modules::open(parts).unwrap());
        node.go_on();
        node.running("good").await;
        let docker = node.behind().await;
        let exec = ExecConfig { cmd: Some(vec!["/stay".into()]), ..Default::default() };
        docker.create_exec(&container, exec).await.unwrap();
        node.event(|e| e.starts_with("engine-events-missed")).await;
        node.gone(&container).await;
    });
}

/// Passes a connection on; of an endless stream of events, only the first bytes.
async fn stall(client: tokio::net::UnixStream, engine: std::path::PathBuf) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = tokio::net::UnixStream::connect(engine).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let stalled = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = stalled.clone();
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.contains("/events") && !text.contains("until=") {
                seen.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            to_server.write_all(&buffer[..n]).await.unwrap();
        }
    });
    let mut buffer = vec![0; 65536];
    let mut first = true;
    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
        if stalled.load(std::sync::atomic::Ordering::SeqCst) && !first {
            continue;
        }
        first = !stalled.load(std::sync::atomic::Ordering::SeqCst);
        if to_client.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    up.abort();
}
