//! The modules' socket: who is answered, what every call answers, and what a hostile module
//! achieves.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use basalt_trustd::module_api::NAMES;
use client::{Client, Error, hex};
use config::{Access, BoundTo, CryptoUse, Quota};
use ledger::Status;
use serde_json::{Value, json};

use crate::alone::{ALL, Alone, Group, MUCH, client, container};
use crate::images::image;
use crate::node::{Node, PATIENCE, programs, run};

const SUITE: &str = "ECVRF-EDWARDS25519-SHA512-TAI";

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String, String) {
    match result {
        Err(Error::Refused { status, code, message }) => (status, code, message),
        other => panic!("not refused: {other:?}"),
    }
}

/// The folder of the control group that a process is in.
fn group(pid: i64) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |line: &str| line.splitn(3, ':').nth(2).unwrap().trim_start_matches('/').to_owned();
    match text.lines().find(|l| l.contains(":pids:")) {
        Some(line) => Path::new("/sys/fs/cgroup/pids").join(path(line)),
        None => Path::new("/sys/fs/cgroup")
            .join(path(text.lines().find(|l| l.starts_with("0::")).unwrap())),
    }
}

/// A program of the set `programs` on a file of examples/module, in a control group, asking a
/// socket.
fn example(group: Option<&Path>, program: &str, file: &str, socket: &Path) -> Output {
    let programs = programs();
    let join =
        group.map_or_else(|| ":".into(), |dir| format!("echo $$ > {}/cgroup.procs", dir.display()));
    // Node.js has a part of itself below /usr/share.
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
            node.state(&image.digest, Status::Approved).await;
            node.push(&image.archive()).await.unwrap();
            node.apply(
                name,
                &format!(
                    "memory-mib = 256\ncrypto = [\"vrf\"]\n[image]\ndigest = \"{}\"\n",
                    image.digest
                ),
            );
        }
        let docker = node.behind().await;
        let mut groups = Vec::new();
        for name in ["a", "b"] {
            let id = node.running(name).await;
            groups.push(group(
                docker.inspect_container(&id, None).await.unwrap().state.unwrap().pid.unwrap(),
            ));
        }
        let socket = |name: &str| node.settings.modules.join(name).join("trustd.sock");

        let mut betas = Vec::new();
        for (name, group) in ["a", "b"].iter().zip(&groups) {
            for (program, file) in [("python3", "vrf.py"), ("node", "vrf.mjs")] {
                let output = example(Some(group), program, file, &socket(name));
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(said.starts_with("valid "), "{program}: {output:?}");
                betas.push(said);
            }
        }
        assert_eq!(
            (&betas[0], &betas[2]),
            (&betas[1], &betas[3]),
            "one module, one key, whatever the language"
        );
        assert_ne!(betas[0], betas[2], "each module has its own");

        // Another module's process, and one that is in no container.
        for group in [Some(&*groups[1]), None] {
            let output = example(group, "python3", "vrf.py", &socket("a"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && said.contains("only this module's container"),
                "{output:?}"
            );
        }
        for why in ["is of the module b", "runs in no container"] {
            node.event(|e| {
                e.starts_with("module-socket-denied")
                    && e.contains("\"module\":\"a\"")
                    && e.contains(why)
            })
            .await;
        }
        let times =
            node.events().await.iter().filter(|e| e.starts_with("module-socket-denied")).count();
        assert_eq!(times, 2, "each said once");
    });
}

fn document() -> Value {
    serde_json::from_str(include_str!("../../openapi-module.json")).unwrap()
}

#[test]
fn every_call_answers_as_described() {
    let alone = run(Alone::start());
    let socket = alone.module(1, "m", &ALL, MUCH);
    let _group = Group::enter(&container(1));
    let mut node = client(&socket);
    let document = document();

    let described: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(|path| path.trim_start_matches("/v1/"))
        .collect();
    let mut there: Vec<&str> = NAMES.iter().copied().chain(["batch", "openapi.json"]).collect();
    there.sort_unstable();
    assert_eq!(described.iter().collect::<std::collections::BTreeSet<_>>(), there.iter().collect());

    let mut ask = |name: &str, request: Value| -> (u16, Value) {
        let (status, value) = match node.call::<Value>(name, &request) {
            Ok(value) => (200, value),
            Err(Error::Refused { status, code, message }) => {
                (status, json!({ "error": { "code": code, "message": message } }))
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let described = &document["paths"][format!("/v1/{name}")]["post"];
        let check = |schema: &Value, value: &Value| -> Vec<String> {
            let schema = json!({ "allOf": [schema], "components": document["components"] });
            jsonschema::draft202012::new(&schema)
                .unwrap()
                .iter_errors(value)
                .map(|e| format!("{}: {e}", e.instance_path()))
                .collect()
        };
        let answer =
            &described["responses"][status.to_string()]["content"]["application/json"]["schema"];
        assert!(answer.is_object(), "{name} answers {status}, which is not described: {value}");
        assert_eq!(check(answer, &value), Vec::<String>::new(), "{name}: {value}");
        if status == 200 {
            let body = &described["requestBody"]["content"]["application/json"]["schema"];
            assert_eq!(
                check(body, &request),
                Vec::<String>::new(),
                "{name} takes what is not described: {request}"
            );
        }
        (status, value)
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();

    for suite in vrf::Suite::ALL {
        let (status, proof) = ask("vrf/prove", json!({ "suite": suite, "alpha": "00ff" }));
        assert_eq!(status, 200);
        let key = vrf::PublicKey::new(suite, &measure::unhex(&text(&proof["public_key"])).unwrap())
            .unwrap();
        let beta =
            key.verify(&[0, 255], &measure::unhex(&text(&proof["pi"])).unwrap()).unwrap().unwrap();
        assert_eq!(measure::hex(&beta), proof["beta"]);
        let mut request = json!({ "suite": suite, "public_key": proof["public_key"], "alpha": "00ff", "pi": proof["pi"] });
        assert_eq!(ask("vrf/verify", request.clone()).1["beta"], proof["beta"]);
        request["alpha"] = json!("00fe");
        assert_eq!(ask("vrf/verify", request.clone()), (200, json!({ "valid": false })));
        request["public_key"] = json!("00".repeat(33));
        assert_eq!(ask("vrf/verify", request).0, 400);
        assert_eq!(ask("vrf/keys", json!({ "suite": suite })).1["public_key"], proof["public_key"]);
    }
    // The TPM's statement about a key says which, whose, and for whom.
    let nonce = [9; 16];
    let (_, keys) = ask("vrf/keys", json!({ "suite": SUITE, "nonce": hex(&nonce) }));
    let checked = trustctl::evidence::check(&keys["evidence"], &nonce, None).unwrap();
    let measure::AttestedStatement::VrfKey { public_key, module, suite, image, .. } =
        checked.statement
    else {
        panic!("{:?}", checked.statement)
    };
    assert_eq!((json!(public_key), &*module, &*suite), (keys["public_key"].clone(), "m", SUITE));
    assert_eq!(image, format!("sha256:{}", container(1)));
    let (_, quote) = ask("quote", json!({ "nonce": hex(&nonce) }));
    let checked = trustctl::evidence::check(&quote["evidence"], &nonce, None).unwrap();
    assert!(
        matches!(checked.statement, measure::AttestedStatement::Module { .. }),
        "a module's quote is never the node's own"
    );

    assert_eq!(ask("random", json!({ "bytes": 33 })).1["random"].as_str().unwrap().len(), 66);
    assert_eq!(ask("random", json!({ "bytes": 1025 })).0, 400);
    // FIPS 180-4, "abc"
    let (_, hash) = ask("hash", json!({ "algorithm": "sha256", "data": "616263" }));
    assert_eq!(hash["hash"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let mac = |label: &str, algorithm: &str| json!({ "algorithm": algorithm, "label": label, "data": "00" });
    let macs = [mac("", "sha256"), mac("01", "sha256"), mac("", "sha512")]
        .map(|request| ask("hmac", request).1);
    assert!(
        macs[0] != macs[1]
            && macs[0] == ask("hmac", json!({ "algorithm": "sha256", "data": "00" })).1
            && macs[2]["mac"].as_str().unwrap().len() == 128
    );
    for algorithm in ["ed25519", "ecdsa-p256-sha256"] {
        let (_, signed) = ask("sign", json!({ "algorithm": algorithm, "data": "aabb" }));
        let mut request = json!({ "algorithm": algorithm, "public_key": signed["public_key"], "data": "aabb", "signature": signed["signature"] });
        assert_eq!(ask("verify", request.clone()), (200, json!({ "valid": true })));
        request["data"] = json!("aabc");
        assert_eq!(ask("verify", request.clone()), (200, json!({ "valid": false })));
        request["signature"] = json!("00");
        assert_eq!(ask("verify", request).0, 400);
    }
    let (_, sealed) = ask("seal", json!({ "context": "01", "data": "5e" }));
    assert_eq!(
        ask("unseal", json!({ "context": "01", "sealed": sealed["sealed"] })),
        (200, json!({ "data": "5e" }))
    );
    assert_eq!(ask("unseal", json!({ "context": "02", "sealed": sealed["sealed"] })).0, 422);

    let calls = json!([
        { "call": "hash", "request": { "algorithm": "sha256", "data": "616263" } },
        { "call": "identity" },
        { "call": "batch", "request": { "calls": [] } },
        { "call": "random", "request": { "bytes": 4 } },
        { "call": "hash", "request": { "algorithm": "md5", "data": "" } },
    ]);
    let (_, batch) = ask("batch", json!({ "calls": calls }));
    let answers = batch["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 5);
    assert_eq!(answers[0]["answer"], hash);
    assert_eq!(answers[1]["answer"]["module"], "m");
    assert_eq!(answers[2]["error"]["code"], "not-found");
    assert_eq!(answers[3]["answer"]["random"].as_str().unwrap().len(), 8);
    assert_eq!(answers[4]["error"]["code"], "bad-request");
    let many = |n: usize| json!({ "calls": vec![json!({ "call": "identity" }); n] });
    assert_eq!(ask("batch", many(1024)).1["answers"].as_array().unwrap().len(), 1024);
    assert_eq!(ask("batch", many(1025)).0, 400);

    for name in NAMES.iter().filter(|name| **name != "identity") {
        assert_eq!(ask(name, json!({ "other": 1 })).0, 400, "{name}");
    }
    let identity = client(&socket).identity().unwrap();
    assert_eq!((&*identity.module, identity.container), ("m", container(1)));
    assert_eq!(identity.bound_to, format!("approvers:{}", "07".repeat(32)));
}

#[test]
fn what_a_module_may_not_is_refused_and_said_once() {
    let alone = run(Alone::start());
    let socket = alone.module(1, "m", &[CryptoUse::Hash], MUCH);
    let _group = Group::enter(&container(1));
    let mut node = client(&socket);
    node.call::<Value>("hash", &json!({ "algorithm": "sha512", "data": "" })).unwrap();
    // Who hangs up before the answer is recorded all the same, and leaves a log that fits the
    // register.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream
        .write_all(b"POST /v1/vrf/prove HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        .unwrap();
    drop(stream);
    for _ in 0..3 {
        let (status, code, message) = refused(node.vrf_prove(SUITE, b""));
        assert_eq!((status, &*code), (403, "forbidden"));
        assert!(message.contains("\"vrf\" under crypto"), "{message}");
    }
    let answers: Value = node
        .call(
            "batch",
            &json!({ "calls": [{ "call": "quote", "request": { "nonce": "00".repeat(8) } }] }),
        )
        .unwrap();
    assert_eq!(answers["answers"][0]["error"]["code"], "forbidden");
    let statement =
        measure::AttestedStatement::Node { certificate: String::new(), nonce: "00".repeat(8) };
    let evidence =
        serde_json::to_value(run(alone.shared.audit.evidence(&statement)).unwrap()).unwrap();
    trustctl::evidence::check(&evidence, &[0; 8], None).unwrap();
    let events = run(alone.shared.audit.records());
    assert_eq!(
        events.iter().filter(|r| r.content.kind == "module-call-denied").count(),
        2,
        "{events:?}"
    );
}

/// Which keys stay the same: by approvers for every image of the module, by image for this one
/// alone; never for another module.
#[test]
fn keys_follow_what_they_are_bound_to() {
    let alone = run(Alone::start());
    let access = |keys_bound_to| Access { crypto: ALL.to_vec(), keys_bound_to, quota: MUCH };
    let key = |n: u8, module: &str, bound| {
        let socket = alone.bound(n, module, access(bound));
        let _group = Group::enter(&container(n));
        client(&socket).vrf_prove(SUITE, b"").unwrap().public_key
    };
    assert_eq!(key(1, "m", BoundTo::Approvers), key(2, "m", BoundTo::Approvers));
    assert_ne!(key(1, "m", BoundTo::Image), key(2, "m", BoundTo::Image));
    assert_ne!(key(1, "m", BoundTo::Approvers), key(1, "m", BoundTo::Image));
    assert_ne!(key(1, "m", BoundTo::Approvers), key(3, "other", BoundTo::Approvers));
    // A container that trustd did not start, or as another module.
    let socket = alone.sockets.open("m").unwrap().join("trustd.sock");
    for n in [3, 9] {
        let _group = Group::enter(&container(n));
        assert_eq!(refused(client(&socket).identity()).1, "unknown-peer");
    }
    // What was sealed by one image is not another's where the file says so.
    let sealed = {
        let socket = alone.bound(1, "m", access(BoundTo::Image));
        let _group = Group::enter(&container(1));
        client(&socket).seal(b"", b"secret").unwrap()
    };
    let socket = alone.bound(2, "m", access(BoundTo::Image));
    let _group = Group::enter(&container(2));
    assert_eq!(refused(client(&socket).unseal(b"", &sealed)).0, 422);
}

#[test]
fn quotas_hold_and_say_when_there_is_room() {
    let alone = run(Alone::start());
    let socket = alone.module(1, "m", &ALL, Quota { calls_per_s: 5, tpm_calls_per_s: 1 });
    let _group = Group::enter(&container(1));
    let mut node = client(&socket);
    let mut made = 0;
    let (status, code, message) = loop {
        match node.identity() {
            Ok(_) => made += 1,
            error => break refused(error),
        }
        assert!(made < 200, "no end");
    };
    assert!(made >= 20, "{made}");
    assert_eq!((status, &*code), (429, "quota"));
    assert!(message.contains("5 calls a second") && message.contains(" ms"), "{message}");
    let deadline = Instant::now() + PATIENCE;
    while node.identity().is_err() {
        assert!(Instant::now() < deadline);
    }
    let much = json!({ "calls": vec![json!({ "call": "identity" }); 30] });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, _, message) = refused(node.call::<Value>("batch", &much));
        if message.contains("never") {
            break;
        }
        assert!(Instant::now() < deadline, "{message}");
    }
}

/// What is slow, giant, endless or malformed ends with an answer or a closed connection, and the
/// next request is answered.
#[test]
fn a_hostile_module_gets_nowhere() {
    let alone = run(Alone::start());
    let (socket, others) = (alone.module(1, "m", &ALL, MUCH), alone.module(2, "other", &ALL, MUCH));
    let group = Group::enter(&container(1));
    // Until trustd closes the connection.
    let raw = |bytes: &[u8]| -> String {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert!(raw(post("/v1/hash", &"[".repeat(100_000)).as_bytes()).starts_with("HTTP/1.1 400"));
    assert!(
        raw(post("/v1/hash", &"1".repeat((1 << 20) + 1)).as_bytes()).starts_with("HTTP/1.1 413")
    );
    // JSON in JSON in JSON: with serde_json's raw values, which another crate switches on, reading
    // it as a value of any shape has no end.
    let mut nested = String::new();
    for _ in 0..60 {
        let quoted = nested.replace('\\', "\\u005c").replace('"', "\\u0022");
        nested = format!(
            "{}{{\"$serde_json::private::RawValue\":\"{quoted}\"}}{}",
            "[".repeat(100),
            "]".repeat(100)
        );
        if nested.len() > 500_000 {
            break;
        }
    }
    for body in [
        nested.clone(),
        format!("{{\"algorithm\":{nested}}}"),
        format!("{{\"calls\":[{{\"call\":\"hash\",\"request\":{nested}}}]}}"),
    ] {
        for path in ["/v1/hash", "/v1/identity", "/v1/batch", "/v1/vrf/prove"] {
            assert!(raw(post(path, &body).as_bytes()).starts_with("HTTP/1.1 "), "{path}");
        }
    }
    assert!(raw(post("/v1/hash", "[\"sha256\",\"00\"]").as_bytes()).starts_with("HTTP/1.1 400"));
    assert!(raw(post("/v1/%ff", "{}").as_bytes()).starts_with("HTTP/1.1 404"));
    assert!(!raw(post("/v1/batch", "{\"calls\":[\"secret\"]}").as_bytes()).contains("secret"));
    // Whoever hangs up in the middle of what is refused leaves the log whole.
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream
            .write_all(
                post("/v1/quote", &json!({ "nonce": "00".repeat(8) }).to_string()).as_bytes(),
            )
            .unwrap();
    }
    trustctl::evidence::check(&client(&socket).quote(&[1; 8]).unwrap()["evidence"], &[1; 8], None)
        .unwrap();
    assert!(raw(post("/v1/../v1/hash", "{}").as_bytes()).starts_with("HTTP/1.1 40"));
    assert!(raw(post("/v1/vrf/delete", "{}").as_bytes()).starts_with("HTTP/1.1 404"));
    assert!(
        raw(b"DELETE /v1/identity HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 404")
    );
    assert!(raw(b"POST /v1/hash HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}").starts_with("HTTP/1.1 400"));
    assert!(
        raw(b"POST /v1/hash HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
            .starts_with("HTTP/1.1 4")
    );
    for junk in [
        &[0u8; 4096][..],
        &[0xff; 300_000],
        &[b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(5000)].concat(),
    ] {
        let answer = raw(junk);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let begin = |text: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    // All places taken by requests that never end; another module does not notice.
    let idle: Vec<UnixStream> = (0..12).map(|_| begin("")).collect();
    let slow: Vec<UnixStream> = (0..4)
        .map(|_| begin("POST /v1/hash HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"))
        .collect();
    let waiting = std::thread::spawn({
        let socket = socket.clone();
        move || client(&socket).identity().map(|i| i.module)
    });
    drop(group);
    let group = Group::enter(&container(2));
    let begun = Instant::now();
    client(&others).vrf_prove(SUITE, b"").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(group);
    // They end by trustd's deadline, and then there is room again.
    drop(idle);
    let _ = waiting.join().unwrap();
    drop(slow);
    let _group = Group::enter(&container(1));
    client(&socket).identity().unwrap();
}

/// The stress profile of Parsec: many different calls at the same time, from each core 250, and
/// none fails.
#[test]
fn many_calls_at_once_all_succeed() {
    let alone = run(Alone::start());
    let socket = alone.module(1, "m", &ALL, MUCH);
    let _group = Group::enter(&container(1));
    let work = |seed: usize| {
        let mut node = Client::at(&socket).unwrap();
        for n in 0..250 {
            match (n + seed) % 6 {
                0 => drop(node.random(16).unwrap()),
                1 => drop(node.vrf_prove("ECVRF-P256-SHA256-SSWU", &[n as u8]).unwrap()),
                2 => {
                    let sealed = node.seal(b"", &[n as u8; 100]).unwrap();
                    assert_eq!(node.unseal(b"", &sealed).unwrap(), [n as u8; 100]);
                }
                3 => drop(node.sign("ecdsa-p256-sha256", &[n as u8]).unwrap()),
                4 => {
                    let proof = node.vrf_prove(SUITE, &[n as u8]).unwrap();
                    assert_eq!(
                        node.vrf_verify(SUITE, &proof.public_key, &[n as u8], &proof.pi).unwrap(),
                        Some(proof.beta)
                    );
                }
                _ => drop(
                    node.call::<Value>(
                        "hash",
                        &json!({ "algorithm": "sha512", "data": "00".repeat(1000) }),
                    )
                    .unwrap(),
                ),
            }
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || work(seed));
        }
    });
}
