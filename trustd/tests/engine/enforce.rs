//! Enforcement: what the ledger denies ends in time, whatever the engine and the TPM do.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use basalt_trustd::modules::{ModuleStatus, Modules};
use basalt_trustd::settings::Settings;
use bollard::models::ContainerState;
use client::Suite;
use ledger::{ImageStatement, LogEntry, Status};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::hang::Hang;
use crate::images::{TestImage, image};
use crate::node::{Node, WAIT_TIMEOUT, run, wait};
use crate::socket_host::{ALL_CALLS, Cgroup, LARGE_QUOTA, SocketHost, client, container};

/// Time for a container to end on an idle machine. The time that it took is printed.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// Time for a container to end on a busy machine. Every path that waits for the engine or the TPM
/// takes longer.
const LIMIT: Duration = Duration::from_secs(10);
/// Control group below which the engine of the tests has its containers. A node has `node/modules`.
const CONTAINERS: &str = "basalt-test";

/// Returns the folder of a container's control group. With cgroup v1, one hierarchy is enough.
fn cgroup(container: &str) -> PathBuf {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let root = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    Path::new(root).join(CONTAINERS).join(container)
}

/// Returns the processes of a container without this one.
fn processes(container: &str) -> Vec<i32> {
    let text = std::fs::read_to_string(cgroup(container).join("cgroup.procs")).unwrap_or_default();
    let own = std::process::id() as i32;
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != own).collect()
}

/// Stands for init, which is not in the tests' namespaces: it carries out `kill-group` requests for
/// containers, and counts the reports that trustd watches.
struct Init {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Init {
    fn start(socket: &Path) -> Self {
        let socket = UnixDatagram::bind(socket).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = ended.clone();
        let thread = std::thread::spawn(move || {
            let (mut buffer, mut reports) = ([0; 256], 0);
            while !is_ended.load(Ordering::Relaxed) {
                let Ok(n) = socket.recv(&mut buffer) else { continue };
                let request = String::from_utf8_lossy(&buffer[..n]).into_owned();
                match request.strip_prefix("kill-group node/modules/") {
                    Some(container) => {
                        for pid in processes(container) {
                            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
                        }
                    }
                    None => {
                        assert_eq!(request, "watching trustd");
                        reports += 1;
                    }
                }
            }
            reports
        });
        Self { ended, thread: Some(thread) }
    }

    /// Ends, and returns the number of reports.
    fn end(mut self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Returns a module file. Its owner would give the module a long time to stop.
fn module(image: &TestImage) -> String {
    format!(
        "memory-mib = 32\nstop-within-s = 600\ncrypto = [\"hash\"]\n[image]\ndigest = \"{}\"\n\
         [health]\nstays-s = 0\n",
        image.digest
    )
}

/// Starts a node with a running module `app`. Returns the module's container.
async fn node_with_module(name: &str, image: &TestImage) -> (Node, Init, String) {
    let mut node = Node::start(name).await;
    let init = Init::start(&node.settings.init_socket);
    node.add_statement(&image.digest, Status::Approved).await;
    node.push(&image.archive()).await.unwrap();
    node.apply("app", &module(image));
    let container = node.wait_until_running("app").await;
    assert!(!processes(&container).is_empty(), "the module has no processes");
    (node, init, container)
}

/// Asks for the identity over a connection. Returns an empty text if there is no answer.
fn ask(connection: &mut UnixStream) -> String {
    connection.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let mut answer = [0; 4096];
    if connection.write_all(b"GET /v1/identity HTTP/1.1\r\nhost: x\r\n\r\n").is_err() {
        return String::new();
    }
    let n = connection.read(&mut answer).unwrap_or_default();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

/// Opens a connection as a process of a container, which has an answer.
fn connect_as(container: &str, socket: &Path) -> UnixStream {
    let _cgroup = Cgroup::enter(container);
    let mut connection = UnixStream::connect(socket).unwrap();
    let answer = ask(&mut connection);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    connection
}

/// Requires that a container gets no answer and has no processes in time.
fn assert_ends(container: &str, socket: &Path, open: &mut UnixStream, since: Instant, what: &str) {
    while !ask(open).is_empty() {
        assert!(since.elapsed() < LIMIT, "{what}: an open connection is still answered");
    }
    let silent = since.elapsed();
    wait(what, || processes(container).is_empty());
    let ended = since.elapsed();
    assert!(ended < LIMIT, "{what}: the processes ended after {ended:?}");
    println!(
        "{what}: silent after {silent:?}, without processes after {ended:?} (2 s on an idle \
         machine: {})",
        ended < IDLE_LIMIT
    );
    // A new connection is closed without an answer. Once its removal is recorded, the container is
    // as unknown as any other.
    let _cgroup = Cgroup::enter(container);
    let answer = ask(&mut UnixStream::connect(socket).unwrap());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 403"), "{answer}");
}

/// Waits until a denied container is removed and recorded.
async fn assert_recorded(node: &Node, container: &str, code: &str) {
    node.wait_until_removed(container).await;
    node.wait_for_event(|e| e.starts_with("module-stopped") && e.contains(code)).await;
    let inventory = node.settings.run.join("containers").join(container);
    wait("the end of the record", || !inventory.exists());
    assert!(node.wait_until_denied("app").await.starts_with(code));
}

#[test]
fn a_revoked_module_ends_although_the_engine_hangs() {
    run(async {
        let image = image("hangs");
        let (mut node, init, container) = node_with_module("hang-engine", &image).await;
        let socket = node.settings.modules.join("app/trustd.sock");
        let mut open = connect_as(&container, &socket);
        let hang = Hang::start(node.engine.processes());
        let since = Instant::now();
        node.add_statement(&image.digest, Status::Revoked).await;
        assert_ends(&container, &socket, &mut open, since, "the engine hangs");
        // The owner sees it while the engine hangs.
        assert!(node.wait_until_denied("app").await.starts_with("revoked"));
        drop(hang);
        assert_recorded(&node, &container, "revoked").await;
        assert!(init.end() > 0, "init gets reports");
    });
}

#[test]
fn a_revoked_module_ends_although_the_tpm_hangs() {
    run(async {
        let image = image("hangs");
        let (mut node, _init, container) = node_with_module("hang-tpm", &image).await;
        let socket = node.settings.modules.join("app/trustd.sock");
        let mut open = connect_as(&container, &socket);
        let hang = Hang::start(vec![node.tpm.process()]);
        let since = Instant::now();
        node.log += &crate::node::statement(&node.key, &image.digest, Status::Revoked, 2);
        let extended = tokio::spawn({
            let (admission, log) = (node.admission.clone(), node.log.clone());
            async move { admission.extend_log(&log).await }
        });
        assert_ends(&container, &socket, &mut open, since, "the TPM hangs");
        // The engine removes the container without waiting for the event.
        node.wait_until_removed(&container).await;
        assert!(!extended.is_finished());
        drop(hang);
        // The update may have taken too long. Then its sender sends it again.
        let _ = extended.await.unwrap();
        node.admission.extend_log(&node.log).await.unwrap();
        assert_recorded(&node, &container, "revoked").await;
    });
}

#[test]
fn a_module_ends_when_its_approval_expires_although_the_engine_hangs() {
    run(async {
        let (mut node, image) = (Node::start("expires").await, image("expires"));
        let _init = Init::start(&node.settings.init_socket);
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let exp = now().as_secs() + 30;
        let digest = image.digest.clone();
        let approved = ImageStatement { digest, exp, iat: 0, seq: 1, status: Status::Approved };
        let mut entry = LogEntry::new(approved);
        entry.sign("t", &node.key);
        node.log = entry.line() + "\n";
        node.admission.extend_log(&node.log).await.unwrap();
        node.push(&image.archive()).await.unwrap();
        node.apply("app", &module(&image));
        let container = node.wait_until_running("app").await;
        let socket = node.settings.modules.join("app/trustd.sock");
        let mut open = connect_as(&container, &socket);
        let hang = Hang::start(node.engine.processes());
        while now() < Duration::from_secs(exp) {
            assert!(!processes(&container).is_empty(), "the approval is still valid");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_ends(&container, &socket, &mut open, Instant::now(), "the approval expires");
        drop(hang);
        assert_recorded(&node, &container, "expired").await;
    });
}

/// Passes a connection to the engine on. Requests to start a container wait for `start`, requests
/// to remove one for `remove`.
async fn delay(
    client: tokio::net::UnixStream,
    engine: PathBuf,
    start: Arc<AtomicBool>,
    remove: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
) {
    let server = tokio::net::UnixStream::connect(engine).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    });
    let mut buffer = vec![0; 65536];
    while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..n]);
        let line = text.lines().next().unwrap_or_default();
        let gate = if line.starts_with("POST") && line.contains("/start") {
            held.store(true, Ordering::SeqCst);
            Some(&start)
        } else if line.starts_with("DELETE") && line.contains("/containers/") {
            Some(&remove)
        } else {
            None
        };
        while gate.is_some_and(|gate| !gate.load(Ordering::SeqCst)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to_server.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    down.abort();
}

#[test]
fn a_container_that_the_engine_is_starting_ends_too() {
    run(async {
        let (mut node, image) = (Node::start("starting").await, image("starting"));
        let _init = Init::start(&node.settings.init_socket);
        let proxy = node.dir.path().join("delaying.sock");
        let listener = tokio::net::UnixListener::bind(&proxy).unwrap();
        let [start, remove, held] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
        let engine = node.engine.socket.clone();
        let gates = (start.clone(), remove.clone(), held.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (start, remove, held) = gates.clone();
                tokio::spawn(delay(client, engine.clone(), start, remove, held));
            }
        });
        let settings = Settings { engine_socket: proxy, ..node.settings.clone() };
        let tpm = node.tpm.open().await;
        let parts =
            crate::node::dependencies(&settings, &node.config, node.tickets.clone(), tpm).await;
        node.abort_reconciling();
        (node.admission, node.audit) = (parts.admission.clone(), parts.audit.clone());
        node.modules = Arc::new(Modules::open(parts).unwrap());
        node.start_reconciling();
        node.add_statement(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
        node.apply("app", &module(&image));
        wait("the request to start the container", || held.load(Ordering::SeqCst));
        // The container is in the inventory and does not run yet.
        let containers = std::fs::read_dir(node.settings.run.join("containers")).unwrap();
        let ids: Vec<String> = containers
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.contains('.'))
            .collect();
        let [container] = &ids[..] else { panic!("{ids:?}") };
        node.add_statement(&image.digest, Status::Revoked).await;
        start.store(true, Ordering::SeqCst);
        // The engine starts it although it is denied, and does not remove it.
        let docker = node.bypass_plugin().await;
        let state = async || {
            let found = docker.inspect_container(container, None).await.unwrap();
            found.state.unwrap()
        };
        let since = Instant::now();
        // It is killed while it starts or afterwards. Before the start, its exit code is 0.
        while !matches!(
            state().await,
            ContainerState { running: Some(false), exit_code: Some(1..), .. }
        ) {
            assert!(since.elapsed() < LIMIT, "the container runs: {:?}", state().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("a denied container that was started ended within {:?}", since.elapsed());
        assert!(processes(container).is_empty());
        remove.store(true, Ordering::SeqCst);
        assert_recorded(&node, container, "revoked").await;
    });
}

/// The module starts a new version that is approved while the old one is revoked.
#[test]
fn only_the_denied_container_of_a_module_ends() {
    run(async {
        let (old, new) = (image("old version"), image("new version"));
        let (mut node, _init, container) = node_with_module("two", &old).await;
        let socket = node.settings.modules.join("app/trustd.sock");
        node.add_statement(&new.digest, Status::Approved).await;
        node.push(&new.archive()).await.unwrap();
        // The new version is on trial for as long as its owner said.
        let trial = module(&new).replace("stays-s = 0", "stays-s = 5");
        node.apply("app", &trial);
        let engine = node.connect_engine().await;
        let mut open = connect_as(&container, &socket);
        let second = loop {
            let containers = engine.containers().await.unwrap();
            let new = containers.into_iter().find(|c| c.id != container && c.running);
            match new {
                Some(new) => break new.id,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut open_new = connect_as(&second, &socket);
        let since = Instant::now();
        node.add_statement(&old.digest, Status::Revoked).await;
        assert_ends(&container, &socket, &mut open, since, "the old version");
        assert!(ask(&mut open_new).starts_with("HTTP/1.1 200"), "the new version is answered");
        let is_second = |status: &ModuleStatus| match status {
            ModuleStatus::Running { container } => *container == second,
            _ => false,
        };
        node.wait_for_status("app", is_second).await;
        connect_as(&second, &socket);
    });
}

/// Requests that a module sends at once.
const REQUESTS: usize = 20;

#[test]
fn a_closed_gate_ends_answers_that_are_being_computed_or_sent() {
    let host = run(SocketHost::start());
    let socket = host.module(1, "m", &ALL_CALLS, LARGE_QUOTA);
    host.module(2, "m", &ALL_CALLS, LARGE_QUOTA);
    let request = |body: &str| {
        format!(
            "POST /v1/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let request_of_call = json!({ "suite": Suite::P256Sswu, "alpha": "" });
    let prove = json!({ "call": "vrf/prove", "request": request_of_call });
    let calls = json!({ "calls": vec![prove; 1024] }).to_string();
    let mut idle = connect_as(&container(1), &socket);
    let mut other = connect_as(&container(2), &socket);
    let mut computing = connect_as(&container(1), &socket);
    // Several requests, one after the other, so that the module never waits for the next.
    let requests = request(&calls).repeat(REQUESTS);
    let mut writer = computing.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(requests.as_bytes()));
    let mut answers = vec![0; 1024];
    computing.read_exact(&mut answers).unwrap();
    host.sockets.end_answers(&container(1));
    let _ = computing.read_to_end(&mut answers);
    let _ = writing.join().unwrap();
    let count = String::from_utf8_lossy(&answers).matches("HTTP/1.1 200").count();
    assert!((1..REQUESTS).contains(&count), "{count} answers");
    assert_eq!(ask(&mut idle), "");
    let cgroup = Cgroup::enter(&container(1));
    assert_eq!(ask(&mut UnixStream::connect(&socket).unwrap()), "");
    drop(cgroup);
    // The other container of the module is not affected.
    assert!(ask(&mut other).starts_with("HTTP/1.1 200"));
    let _cgroup = Cgroup::enter(&container(2));
    client(&socket).vrf_prove(Suite::P256Sswu, b"").unwrap();
}
