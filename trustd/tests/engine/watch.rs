//! Drift: changes in the engine that trustd did not make.

use std::time::Duration;

use basalt_trustd::modules::ModuleStatus;
use bollard::models::{ContainerCreateBody, ContainerUpdateBody, ExecConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ImportImageOptions, StopContainerOptions, TagImageOptionsBuilder,
};
use futures_util::StreamExt as _;
use ledger::Status;

use crate::images::image;
use crate::node::{Node, run};

/// Time for a removal on an idle machine. It is printed; the benchmark measures it.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// Time for a removal on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts a node with a running module. Returns the module's container and digest.
async fn node_with_module(name: &str) -> (Node, String, String) {
    let mut node = Node::start(name).await;
    let good = image("good");
    node.add_statement(&good.digest, Status::Approved).await;
    node.push(&good.archive()).await.unwrap();
    node.apply(
        "good",
        &format!(
            "memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n[health]\nstays-s = 0\n",
            good.digest
        ),
    );
    let container = node.wait_until_running("good").await;
    (node, container, good.digest)
}

#[test]
fn unknown_containers_images_and_tags_are_removed_and_recorded() {
    run(async {
        let (node, container, digest) = node_with_module("unknown").await;
        let docker = node.bypass_plugin().await;
        let unknown = image("unknown");
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(
            axum::body::Bytes::from(unknown.archive_with_name("unknown:1")),
        )]);
        let mut loading =
            Box::pin(docker.import_image_stream(ImportImageOptions::default(), stream, None));
        while let Some(item) = loading.next().await {
            item.unwrap();
        }
        node.wait_for_event(|e| {
            e.starts_with("unknown-image-removed") && e.contains(&unknown.digest)
        })
        .await;
        // An unknown container with trustd's label and an approved image.
        let labels = [(basalt_trustd::engine::MODULE_LABEL.to_owned(), "good".to_owned())].into();
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
        let took = node.wait_until_removed(&id).await;
        assert!(took < LIMIT, "{took:?}");
        println!(
            "an unknown container was gone after {took:?} (2 s on an idle machine: {})",
            took < IDLE_LIMIT
        );
        node.wait_for_event(|e| e.starts_with("unknown-container-removed") && e.contains(&id))
            .await;
        // Another tag of an approved image.
        let options = TagImageOptionsBuilder::default().repo("other").tag("latest").build();
        docker.tag_image(&digest, Some(options)).await.unwrap();
        node.wait_for_event(|e| e.starts_with("unknown-tag-removed") && e.contains("other:latest"))
            .await;
        assert_eq!(
            node.wait_until_running("good").await,
            container,
            "the known container was replaced"
        );
    });
}

#[test]
fn an_altered_container_is_replaced() {
    run(async {
        let (node, container, _) = node_with_module("altered").await;
        let docker = node.bypass_plugin().await;
        let update = ContainerUpdateBody { pids_limit: Some(4000), ..Default::default() };
        docker.update_container(&container, update).await.unwrap();
        node.wait_until_removed(&container).await;
        node.wait_for_event(|e| e.starts_with("module-tampered") && e.contains(&container)).await;
        let next = replaced(&node, &container).await;
        // A command is executed in the container.
        let exec = ExecConfig { cmd: Some(vec!["/stay".into()]), ..Default::default() };
        docker.create_exec(&next, exec).await.unwrap();
        node.wait_until_removed(&next).await;
        // Either the event stream or the inspection reports it first.
        let event =
            node.wait_for_event(|e| e.starts_with("module-tampered") && e.contains(&next)).await;
        assert!(event.contains("exec_create") || event.contains("exec session"), "{event}");
        let third = replaced(&node, &next).await;
        // A container that was stopped by another client of the engine is started again.
        let _ = docker.stop_container(&third, None::<StopContainerOptions>).await;
        node.wait_for_event(|e| e.starts_with("module-exited")).await;
        replaced(&node, &third).await;
    });
}

/// Waits until the module runs in another container.
async fn replaced(node: &Node, old: &str) -> String {
    let is_new = |status: &ModuleStatus| match status {
        ModuleStatus::Running { container } => container != old,
        _ => false,
    };
    match node.wait_for_status("good", is_new).await {
        ModuleStatus::Running { container } => container,
        _ => unreachable!(),
    }
}

#[test]
fn processes_of_containerd_itself_are_found_in_the_control_groups() {
    run(async {
        let (node, ..) = node_with_module("ctr").await;
        let groups = node.dir.path().join("groups");
        let foreign = groups.join("default/planted");
        std::fs::create_dir_all(&foreign).unwrap();
        std::fs::write(foreign.join("cgroup.procs"), "4711\n").unwrap();
        let init = std::os::unix::net::UnixDatagram::bind(&node.settings.init_socket).unwrap();
        init.set_read_timeout(Some(crate::node::WAIT_TIMEOUT)).unwrap();
        let settings = basalt_trustd::settings::Settings {
            cgroup_root: Some(groups),
            ..node.settings.clone()
        };
        let parts = crate::node::dependencies(
            &settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        let audit = parts.audit.clone();
        node.abort_reconciling();
        let modules = std::sync::Arc::new(basalt_trustd::modules::Modules::open(parts).unwrap());
        let running = tokio::spawn(modules.run());
        let request = tokio::task::spawn_blocking(move || {
            loop {
                let mut buffer = [0; 128];
                let n = init.recv(&mut buffer).unwrap();
                let request = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if request != "watching trustd" {
                    return request;
                }
            }
        });
        assert_eq!(request.await.unwrap(), "kill-group default/planted");
        assert!(audit.records().await.iter().any(|r| r.content.kind == "unknown-cgroup-killed"));
        running.abort();
    });
}

#[test]
fn a_stalled_event_stream_is_recorded_and_opened_again() {
    run(async {
        let (mut node, container, _) = node_with_module("stall").await;
        // A proxy between trustd and the engine passes everything on except the event stream, of
        // which it passes only the head.
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
            basalt_trustd::settings::Settings { engine_socket: socket, ..node.settings.clone() };
        let parts = crate::node::dependencies(
            &settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        node.abort_reconciling();
        node.audit = parts.audit.clone();
        node.modules = std::sync::Arc::new(basalt_trustd::modules::Modules::open(parts).unwrap());
        node.start_reconciling();
        node.wait_until_running("good").await;
        let docker = node.bypass_plugin().await;
        let exec = ExecConfig { cmd: Some(vec!["/stay".into()]), ..Default::default() };
        docker.create_exec(&container, exec).await.unwrap();
        node.wait_for_event(|e| e.starts_with("engine-events-missed")).await;
        node.wait_until_removed(&container).await;
    });
}

/// Passes a connection on, but only the first bytes of an endless event stream.
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
