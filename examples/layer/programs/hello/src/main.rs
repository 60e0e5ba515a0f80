//! Requests a random number over the module's socket once a minute, and prints it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SOCKET: &str = "/run/basalt/trustd.sock";
const INTERVAL: Duration = Duration::from_secs(60);

fn main() {
    loop {
        match request_random() {
            Ok(number) => println!("hello: {number}"),
            Err(error) => println!("hello: {error}"),
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Requests 16 random bytes from trustd (`POST /v1/random`, docs/api.md) and returns them as hex.
fn request_random() -> Result<String, Box<dyn std::error::Error>> {
    let mut socket = UnixStream::connect(SOCKET)?;
    let body = r#"{"bytes":16}"#;
    write!(
        socket,
        "POST /v1/random HTTP/1.1\r\nHost: trustd\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (_, json) = answer.split_once("\r\n\r\n").ok_or("the answer has no body")?;
    let json: serde_json::Value = serde_json::from_str(json)?;
    Ok(json["random"].as_str().ok_or_else(|| json.to_string())?.to_owned())
}
