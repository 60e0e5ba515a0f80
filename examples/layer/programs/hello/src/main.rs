//! Asks the module's socket for a random number and says it, again and again.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn main() {
    loop {
        match random() {
            Ok(number) => println!("hello: {number}"),
            Err(error) => println!("hello: {error}"),
        }
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn random() -> Result<String, Box<dyn std::error::Error>> {
    let mut socket = UnixStream::connect("/run/basalt/trustd.sock")?;
    let body = r#"{"bytes":16}"#;
    write!(
        socket,
        "POST /v1/random HTTP/1.1\r\nHost: trustd\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (_, json) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let json: serde_json::Value = serde_json::from_str(json)?;
    Ok(json["random"].as_str().ok_or_else(|| json.to_string())?.to_owned())
}
