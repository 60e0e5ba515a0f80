//! A hostile module at its socket. Slow, large, endless and malformed requests end with an answer
//! or a closed connection, the next request is answered, and other modules are not affected.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use client::{Client, SignatureAlgorithm, Suite};
use serde_json::{Value, json};

use crate::node::{WAIT_TIMEOUT, run};
use crate::socket_host::{ALL_CALLS, Cgroup, LARGE_QUOTA, SocketHost, client, container};

/// Sends bytes and reads the answer until trustd closes the connection.
fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[track_caller]
fn check_status(socket: &Path, request: &[u8], status: &str) {
    let answer = exchange(socket, request);
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "expected {status}: {answer}");
}

/// JSON in a JSON string, many times. serde_json's raw values, which a dependency enables, would
/// parse each level as a value of any shape.
fn nested_raw_values() -> String {
    let mut nested = String::new();
    for _ in 0..60 {
        let quoted = nested.replace('\\', "\\u005c").replace('"', "\\u0022");
        let (open, close) = ("[".repeat(100), "]".repeat(100));
        nested = format!("{open}{{\"$serde_json::private::RawValue\":\"{quoted}\"}}{close}");
        if nested.len() > 500_000 {
            break;
        }
    }
    nested
}

#[test]
fn a_hostile_module_blocks_neither_trustd_nor_other_modules() {
    let host = run(SocketHost::start());
    let socket = host.module(1, "m", &ALL_CALLS, LARGE_QUOTA);
    let other = host.module(2, "other", &ALL_CALLS, LARGE_QUOTA);
    {
        let _cgroup = Cgroup::enter(&container(1));
        send_malformed_json(&socket);
        disconnect_during_calls(&socket);
        send_malformed_http(&socket);
    }
    exhaust_connections(&socket, &other);
}

fn send_malformed_json(socket: &Path) {
    check_status(socket, post("/v1/hash", &"[".repeat(100_000)).as_bytes(), "400");
    check_status(socket, post("/v1/hash", &"1".repeat((1 << 20) + 1)).as_bytes(), "413");
    let nested = nested_raw_values();
    for body in [
        nested.clone(),
        format!("{{\"algorithm\":{nested}}}"),
        format!("{{\"calls\":[{{\"call\":\"hash\",\"request\":{nested}}}]}}"),
    ] {
        for path in ["/v1/hash", "/v1/identity", "/v1/batch", "/v1/vrf/prove"] {
            check_status(socket, post(path, &body).as_bytes(), "");
        }
    }
    check_status(socket, post("/v1/hash", "[\"sha256\",\"00\"]").as_bytes(), "400");
    let answer = exchange(socket, post("/v1/batch", "{\"calls\":[\"secret\"]}").as_bytes());
    assert!(!answer.contains("secret"), "{answer}");
}

/// A client that disconnects during a call of the TPM leaves the audit log complete.
fn disconnect_during_calls(socket: &Path) {
    let request = post("/v1/quote", &json!({ "nonce": "00".repeat(8) }).to_string());
    for _ in 0..20 {
        UnixStream::connect(socket).unwrap().write_all(request.as_bytes()).unwrap();
    }
    let quote = client(socket).quote(&[1; 8]).unwrap();
    trustctl::evidence::verify(&quote.evidence, &[1; 8], None).unwrap();
}

fn send_malformed_http(socket: &Path) {
    check_status(socket, post("/v1/%ff", "{}").as_bytes(), "404");
    check_status(socket, post("/v1/../v1/hash", "{}").as_bytes(), "40");
    check_status(socket, post("/v1/vrf/delete", "{}").as_bytes(), "404");
    let request = b"DELETE /v1/identity HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    check_status(socket, request, "404");
    let request = b"POST /v1/hash HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\
                    content-length: 6\r\n\r\n{}";
    check_status(socket, request, "400");
    let request = b"POST /v1/hash HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                    transfer-encoding: chunked\r\n\r\nzz\r\n";
    check_status(socket, request, "4");
    for junk in [
        &[0u8; 4096][..],
        &[0xff; 300_000],
        &[b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(5000)].concat(),
    ] {
        let answer = exchange(socket, junk);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}

/// Requests that never end use all connections of the module. Another module is answered in the
/// meantime, and after trustd's timeout the module is answered again.
fn exhaust_connections(socket: &Path, other: &Path) {
    let cgroup = Cgroup::enter(&container(1));
    let start = |text: &str| {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let idle: Vec<UnixStream> = (0..12).map(|_| start("")).collect();
    let incomplete = "POST /v1/hash HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                      content-length: 100\r\n\r\n{";
    let slow: Vec<UnixStream> = (0..4).map(|_| start(incomplete)).collect();
    let waiting = std::thread::spawn({
        let socket = socket.to_owned();
        move || client(&socket).identity().map(|identity| identity.module)
    });
    drop(cgroup);
    let cgroup = Cgroup::enter(&container(2));
    let begin = Instant::now();
    client(other).vrf_prove(Suite::Ed25519Tai, b"").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    drop(cgroup);
    drop(idle);
    let _ = waiting.join().unwrap();
    drop(slow);
    let _cgroup = Cgroup::enter(&container(1));
    client(socket).identity().unwrap();
}

/// The load of Parsec's stress test: 250 calls of different kinds from each of two threads.
#[test]
fn many_concurrent_calls_succeed() {
    let host = run(SocketHost::start());
    let socket = host.module(1, "m", &ALL_CALLS, LARGE_QUOTA);
    let _cgroup = Cgroup::enter(&container(1));
    let work = |seed: usize| {
        let mut node = client(&socket);
        for n in 0..250 {
            make_call(&mut node, n + seed, n as u8);
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || work(seed));
        }
    });
}

fn make_call(node: &mut Client, kind: usize, data: u8) {
    match kind % 6 {
        0 => drop(node.random(16).unwrap()),
        1 => drop(node.vrf_prove(Suite::P256Sswu, &[data]).unwrap()),
        2 => {
            let sealed = node.seal(b"", &[data; 100]).unwrap();
            assert_eq!(node.unseal(b"", &sealed).unwrap(), [data; 100]);
        }
        3 => drop(node.sign(SignatureAlgorithm::EcdsaP256, &[data]).unwrap()),
        4 => {
            let suite = Suite::Ed25519Tai;
            let proof = node.vrf_prove(suite, &[data]).unwrap();
            let beta = node.vrf_verify(suite, &proof.public_key, &[data], &proof.pi).unwrap();
            assert_eq!(beta, Some(proof.beta));
        }
        _ => {
            let request = json!({ "algorithm": "sha512", "data": "00".repeat(1000) });
            drop(node.call_by_name::<Value>("hash", &request).unwrap());
        }
    }
}
