//! A minimal module: it has no keys and no cryptography of its own, and uses the VRF of the node.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Result, ensure};
use client::{Client, Suite, hex};
use serde_json::{Value, json};

const SUITES: [Suite; 2] = [Suite::Ed25519Tai, Suite::P256Tai];
const ALPHA: &[u8] = b"basalt";
/// Timeout of the connection to a peer. Packets can be lost while networks change.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two requests to a peer.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two proofs.
const PROOF_INTERVAL: Duration = Duration::from_secs(15);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => serve(port),
        ["ask", peer] => ask(peer),
        _ => prove(),
    }
}

/// Sends the word in the image to every client.
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

/// Requests the word of a peer (HOST:PORT) again and again.
fn ask(peer: &str) {
    loop {
        match request_word(peer) {
            Ok(word) => println!("demo: {peer} says {word}"),
            Err(error) => println!("demo: {peer} does not answer: {error}"),
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn request_word(peer: &str) -> std::io::Result<String> {
    let address = peer.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, PEER_TIMEOUT)?;
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    let mut word = String::new();
    stream.read_to_string(&mut word).map(|_| word)
}

/// Makes and verifies proofs until the module is stopped.
fn prove() {
    if let Err(error) = run_once() {
        println!("demo: failed: {error:#}");
        std::process::exit(1);
    }
    // The module keeps running while trustd restarts. The socket has the same path afterwards.
    for number in 2u64.. {
        std::thread::sleep(PROOF_INTERVAL);
        match prove_and_verify(SUITES[0]) {
            Ok(_) => println!("demo: proof number {number} verified"),
            Err(error) => println!("demo: proof number {number} failed: {error:#}"),
        }
    }
}

fn run_once() -> Result<()> {
    check_tpm_denied();
    for suite in SUITES {
        println!("demo: proof {}", prove_and_verify(suite)?);
        println!("demo: verified {suite}");
    }
    let random = Client::connect()?.random(16)?;
    println!("demo: random {}", hex(&random));
    println!("demo: done");
    Ok(())
}

/// Makes a proof and verifies it. Returns the proof with the data that its verification needs.
fn prove_and_verify(suite: Suite) -> Result<Value> {
    let mut node = Client::connect()?;
    let proof = node.vrf_prove(suite, ALPHA)?;
    let beta = node.vrf_verify(suite, &proof.public_key, ALPHA, &proof.pi)?;
    ensure!(beta.as_ref() == Some(&proof.beta), "the proof is invalid");
    Ok(json!({
        "suite": suite,
        "alpha": hex(ALPHA),
        "public_key": proof.public_key,
        "pi": proof.pi,
        "beta": proof.beta,
    }))
}

/// Reports whether the container can open the TPM, which must be denied.
fn check_tpm_denied() {
    for path in ["/dev/tpm0", "/dev/tpmrm0"] {
        match std::fs::File::options().read(true).write(true).open(path) {
            Ok(_) => println!("demo: ALARM {path} can be opened"),
            Err(error) => println!("demo: {path} denied: {error}"),
        }
    }
}
