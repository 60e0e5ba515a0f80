//! The modules' sockets: identification of the caller, keys, permissions, quotas, hostile modules.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use client::{Error, ErrorCode, Suite};
use config::{Access, CryptoUse, KeyBinding, Quota};
use ledger::Status;
use serde_json::{Value, json};

use crate::images::image;
use crate::node::{Node, WAIT_TIMEOUT, programs, run};
use crate::socket_host::{ALL_CALLS, Cgroup, LARGE_QUOTA, SocketHost, client, container};

const SUITE: Suite = Suite::Ed25519Tai;

/// Returns status, code and message of a rejected call.
#[track_caller]
fn rejection<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, ErrorCode, String) {
    match result {
        Err(Error::Rejected { status, code, message }) => (status, code, message),
        other => panic!("the call was not rejected: {other:?}"),
    }
}

/// Returns the folder of the control group that a process is in.
fn cgroup_of(pid: i64) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |line: &str| line.splitn(3, ':').nth(2).unwrap().trim_start_matches('/').to_owned();
    match text.lines().find(|l| l.contains(":pids:")) {
        Some(line) => Path::new("/sys/fs/cgroup/pids").join(path(line)),
        None => Path::new("/sys/fs/cgroup")
            .join(path(text.lines().find(|l| l.starts_with("0::")).unwrap())),
    }
}

/// Runs a program of the set `programs` on a file of examples/module, in a control group and with
/// the path of a socket.
fn run_example(cgroup: Option<&Path>, program: &str, file: &str, socket: &Path) -> Output {
    let programs = programs();
    let join = cgroup
        .map_or_else(|| ":".into(), |dir| format!("echo $$ > {}/cgroup.procs", dir.display()));
    // Node.js reads files of its own below /usr/share.
    let mount = format!("mount --bind {}/usr/share /usr/share", programs.display());
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &format!("{mount} && {join} && exec \"$@\""), "sh"])
        .arg(programs.join("usr/bin").join(program))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/module").join(file))
        .env("LD_LIBRARY_PATH", programs.join("usr/lib/x86_64-linux-gnu"))
        .env("PYTHONHOME", programs.join("usr"))
        .env("BASALT_SOCKET", socket)
        .output()
        .unwrap()
}

#[test]
fn only_the_modules_own_container_is_answered() {
    run(async {
        let mut node = Node::start("socket").await;
        let (a, b) = (image("a"), image("b"));
        for (name, image) in [("a", &a), ("b", &b)] {
            node.add_statement(&image.digest, Status::Approved).await;
            node.push(&image.archive()).await.unwrap();
            node.apply(
                name,
                &format!(
                    "memory-mib = 256\ncrypto = [\"vrf\"]\n[image]\ndigest = \"{}\"\n",
                    image.digest
                ),
            );
        }
        let docker = node.bypass_plugin().await;
        let mut cgroups = Vec::new();
        for name in ["a", "b"] {
            let id = node.wait_until_running(name).await;
            cgroups.push(cgroup_of(
                docker.inspect_container(&id, None).await.unwrap().state.unwrap().pid.unwrap(),
            ));
        }
        let socket = |name: &str| node.settings.modules.join(name).join("trustd.sock");

        let mut betas = Vec::new();
        for (name, cgroup) in ["a", "b"].iter().zip(&cgroups) {
            for (program, file) in [("python3", "vrf.py"), ("node", "vrf.mjs")] {
                let output = run_example(Some(cgroup), program, file, &socket(name));
                let printed = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(printed.starts_with("valid "), "{program}: {output:?}");
                betas.push(printed);
            }
        }
        assert_eq!(
            (&betas[0], &betas[2]),
            (&betas[1], &betas[3]),
            "a module has the same key in every language"
        );
        assert_ne!(betas[0], betas[2], "each module has its own key");

        // A process of another module, and a process in no container.
        for cgroup in [Some(&*cgroups[1]), None] {
            let output = run_example(cgroup, "python3", "vrf.py", &socket("a"));
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && printed.contains("only this module's container"),
                "{output:?}"
            );
        }
        for reason in ["is of the module b", "runs in no container"] {
            node.wait_for_event(|e| {
                e.starts_with("module-socket-denied")
                    && e.contains("\"module\":\"a\"")
                    && e.contains(reason)
            })
            .await;
        }
        let times =
            node.events().await.iter().filter(|e| e.starts_with("module-socket-denied")).count();
        assert_eq!(times, 2, "each denial is recorded once");
    });
}

#[test]
fn calls_that_the_module_file_does_not_list_are_denied_and_recorded_once() {
    let host = run(SocketHost::start());
    let socket = host.module(1, "m", &[CryptoUse::Hash], LARGE_QUOTA);
    let _cgroup = Cgroup::enter(&container(1));
    let mut node = client(&socket);
    node.call_by_name::<Value>("hash", &json!({ "algorithm": "sha512", "data": "" })).unwrap();
    // A client that disconnects before the answer is recorded, too, and the log still matches the
    // register.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream
        .write_all(b"POST /v1/vrf/prove HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        .unwrap();
    drop(stream);
    for _ in 0..3 {
        let (status, code, message) = rejection(node.vrf_prove(SUITE, b""));
        assert_eq!((status, code), (403, ErrorCode::Forbidden));
        assert!(message.contains("\"vrf\" under crypto"), "{message}");
    }
    let answers: Value = node
        .call_by_name(
            "batch",
            &json!({ "calls": [{ "call": "quote", "request": { "nonce": "00".repeat(8) } }] }),
        )
        .unwrap();
    assert_eq!(answers["answers"][0]["error"]["code"], "forbidden");
    let statement =
        measure::AttestedStatement::Node { certificate: String::new(), nonce: "00".repeat(8) };
    let evidence = run(host.shared.audit.collect_evidence(&statement)).unwrap();
    trustctl::evidence::verify(&evidence, &[0; 8], None).unwrap();
    let events = run(host.shared.audit.records());
    assert_eq!(
        events.iter().filter(|r| r.content.kind == "module-call-denied").count(),
        2,
        "{events:?}"
    );
}

/// Keys that are bound to the approvers are the same for every image of the module, keys that are
/// bound to an image only for this image. No other module has them.
#[test]
fn keys_depend_on_their_binding() {
    let host = run(SocketHost::start());
    let access =
        |keys_bound_to| Access { crypto: ALL_CALLS.to_vec(), keys_bound_to, quota: LARGE_QUOTA };
    let key = |n: u8, module: &str, bound| {
        let socket = host.bound(n, module, access(bound));
        let _cgroup = Cgroup::enter(&container(n));
        client(&socket).vrf_prove(SUITE, b"").unwrap().public_key
    };
    assert_eq!(key(1, "m", KeyBinding::Approvers), key(2, "m", KeyBinding::Approvers));
    assert_ne!(key(1, "m", KeyBinding::Image), key(2, "m", KeyBinding::Image));
    assert_ne!(key(1, "m", KeyBinding::Approvers), key(1, "m", KeyBinding::Image));
    assert_ne!(key(1, "m", KeyBinding::Approvers), key(3, "other", KeyBinding::Approvers));
    // A container that trustd did not start, or that it started as another module.
    let socket = host.sockets.open("m").unwrap().join("trustd.sock");
    for n in [3, 9] {
        let _cgroup = Cgroup::enter(&container(n));
        assert_eq!(rejection(client(&socket).identity()).1, ErrorCode::UnknownPeer);
    }
    // With keys that are bound to the image, another image cannot unseal the data.
    let sealed = {
        let socket = host.bound(1, "m", access(KeyBinding::Image));
        let _cgroup = Cgroup::enter(&container(1));
        client(&socket).seal(b"", b"secret").unwrap()
    };
    let socket = host.bound(2, "m", access(KeyBinding::Image));
    let _cgroup = Cgroup::enter(&container(2));
    assert_eq!(rejection(client(&socket).unseal(b"", &sealed)).0, 422);
}

#[test]
fn quotas_are_enforced_and_report_the_time_to_wait() {
    let host = run(SocketHost::start());
    let socket = host.module(1, "m", &ALL_CALLS, Quota { calls_per_s: 5, tpm_calls_per_s: 1 });
    let _cgroup = Cgroup::enter(&container(1));
    let mut node = client(&socket);
    let mut made = 0;
    let (status, code, message) = loop {
        match node.identity() {
            Ok(_) => made += 1,
            error => break rejection(error),
        }
        assert!(made < 200, "the quota has no effect");
    };
    assert!(made >= 20, "{made}");
    assert_eq!((status, code), (429, ErrorCode::Quota));
    assert!(message.contains("5 calls a second") && message.contains(" ms"), "{message}");
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while node.identity().is_err() {
        assert!(Instant::now() < deadline);
    }
    let many = json!({ "calls": vec![json!({ "call": "identity" }); 30] });
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        let (_, _, message) = rejection(node.call_by_name::<Value>("batch", &many));
        if message.contains("never") {
            break;
        }
        assert!(Instant::now() < deadline, "{message}");
    }
}
