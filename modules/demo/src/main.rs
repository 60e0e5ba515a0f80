//! A module as small as one can be: it holds no key and no cryptography, and still has a verifiable
//! random function.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use client::{Client, hex};
use serde_json::{Value, json};

const SUITES: [&str; 2] = ["ECVRF-EDWARDS25519-SHA512-TAI", "ECVRF-P256-SHA256-TAI"];
const ALPHA: &[u8] = b"basalt";
const PEER_WITHIN: Duration = Duration::from_secs(10);
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
        match word_of(peer) {
            Ok(word) => println!("demo: {peer} says {word}"),
            Err(error) => println!("demo: {peer} does not answer: {error}"),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Nobody is waited for without end: what is sent while networks change can be lost.
fn word_of(peer: &str) -> std::io::Result<String> {
    let address = peer.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, PEER_WITHIN)?;
    stream.set_read_timeout(Some(PEER_WITHIN))?;
    let mut word = String::new();
    stream.read_to_string(&mut word).map(|_| word)
}

fn prove() {
    if let Err(error) = run() {
        println!("demo: failed: {error}");
        std::process::exit(1);
    }
    // A module runs until it is stopped, and outlives a trustd that is started anew: its socket
    // comes back at the same place.
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
    let random = node()?.random(16).map_err(|e| e.to_string())?;
    println!("demo: random {}", hex(&random));
    println!("demo: done");
    Ok(())
}

fn node() -> Result<Client, String> {
    Client::connect().map_err(|e| e.to_string())
}

/// A proof with all that is needed to verify it elsewhere.
fn prove_and_verify(suite: &str) -> Result<Value, String> {
    let mut node = node()?;
    let proof = node.vrf_prove(suite, ALPHA).map_err(|e| e.to_string())?;
    let beta =
        node.vrf_verify(suite, &proof.public_key, ALPHA, &proof.pi).map_err(|e| e.to_string())?;
    if beta.as_ref() != Some(&proof.beta) {
        return Err("the proof does not verify".into());
    }
    Ok(
        json!({ "suite": suite, "alpha": hex(ALPHA), "public_key": proof.public_key, "pi": proof.pi, "beta": proof.beta }),
    )
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
