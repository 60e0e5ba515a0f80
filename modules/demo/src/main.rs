//! A module as small as one can be: it holds no key and no cryptography, and still has a verifiable random function.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

const SOCKET: &str = "/run/basalt/trustd.sock";
const SUITES: [&str; 2] = ["ECVRF-EDWARDS25519-SHA512-TAI", "ECVRF-P256-SHA256-TAI"];
/// "basalt"
const ALPHA: &str = "626173616c74";
const PAUSE: Duration = Duration::from_secs(15);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => serve(port),
        ["ask", peer] => ask(peer),
        _ => prove(),
    }
}

/// Answers whoever connects with the word in the image.
fn serve(port: &str) {
    let word = std::fs::read_to_string("/word").unwrap_or_default();
    let listener = match TcpListener::bind(format!("0.0.0.0:{port}")) {
        Ok(listener) => listener,
        Err(error) => return println!("demo: cannot listen on {port}: {error}"),
    };
    for mut client in listener.incoming().flatten() {
        let _ = client.write_all(word.as_bytes());
    }
}

/// Asks a peer, HOST:PORT, for its word again and again.
fn ask(peer: &str) {
    loop {
        let mut word = String::new();
        match TcpStream::connect(peer).and_then(|mut stream| stream.read_to_string(&mut word)) {
            Ok(_) => println!("demo: {peer} says {word}"),
            Err(error) => println!("demo: {peer} does not answer: {error}"),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn prove() {
    if let Err(error) = run() {
        println!("demo: failed: {error}");
        std::process::exit(1);
    }
    // A module runs until it is stopped, and outlives a trustd that is started anew: its socket comes back at the same place.
    for number in 2u64.. {
        std::thread::sleep(PAUSE);
        match prove_and_verify(SUITES[0]) {
            Ok(_) => println!("demo: proof number {number} verified"),
            Err(error) => println!("demo: proof number {number} failed: {error}"),
        }
    }
}

fn run() -> Result<(), String> {
    look_for_the_tpm();
    for suite in SUITES {
        println!("demo: proof {}", prove_and_verify(suite)?);
        println!("demo: verified {suite}");
    }
    let random = call("/v1/random", &json!({ "bytes": 16 }))?;
    println!("demo: random {}", random["random"]);
    println!("demo: done");
    Ok(())
}

/// A proof with all that is needed to verify it elsewhere.
fn prove_and_verify(suite: &str) -> Result<Value, String> {
    let proof = call("/v1/vrf/prove", &json!({ "suite": suite, "alpha": ALPHA }))?;
    let request = json!({ "suite": suite, "alpha": ALPHA, "public_key": proof["public_key"], "pi": proof["pi"] });
    let verdict = call("/v1/vrf/verify", &request)?;
    if verdict["valid"] != true || verdict["beta"] != proof["beta"] {
        return Err(format!("the proof does not verify: {verdict}"));
    }
    Ok(json!({ "suite": suite, "alpha": ALPHA, "public_key": proof["public_key"], "pi": proof["pi"], "beta": proof["beta"] }))
}

/// A container has no business with the TPM; the log shows that it cannot.
fn look_for_the_tpm() {
    for path in ["/dev/tpm0", "/dev/tpmrm0"] {
        match std::fs::File::options().read(true).write(true).open(path) {
            Ok(_) => println!("demo: ALARM {path} can be opened"),
            Err(error) => println!("demo: {path} refused: {error}"),
        }
    }
}

/// One request over the module's socket: HTTP/1.1 with JSON, nothing more is needed.
fn call(path: &str, body: &Value) -> Result<Value, String> {
    let body = body.to_string();
    let mut socket = UnixStream::connect(SOCKET).map_err(|e| format!("{SOCKET}: {e}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(30))).map_err(|e| e.to_string())?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: trustd\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the head")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        return Err(format!("{path}: {status}: {body}"));
    }
    serde_json::from_str(body).map_err(|e| e.to_string())
}
