//! Responses of a registry, a mirror or a log source, from their first byte.
#![no_main]
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::header::{HOST, LOCATION};
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt as _;

// trustd does not export these files.
#[path = "../../trustd/src/images/fetch/challenge.rs"]
mod challenge;
#[path = "../../trustd/src/images/fetch/response.rs"]
mod response;

/// The module from which `response.rs` imports its error.
mod error {
    pub(super) use basalt_trustd::images::fetch::HttpError;
}

const MAX_BODY_BYTES: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        return;
    };
    runtime.block_on(request(data.to_vec()));
});

/// Sends a request to a host that answers with these bytes, and reads the response.
async fn request(bytes: Vec<u8>) {
    let (client, mut host) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let _ = host.write_all(&bytes).await;
        let _ = host.shutdown().await;
        // The host reads until the client closes, so that the request itself cannot fail.
        let _ = tokio::io::copy(&mut host, &mut tokio::io::sink()).await;
    });
    let Ok(request) = Request::get("/x").header(HOST, "h").body(Empty::new()) else { return };
    let Ok(head) = response::send_request(client, request).await else { return };
    for challenge in challenge::challenges(head.headers()) {
        assert!(!challenge.scheme.is_empty());
    }
    let location = head.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let host = location.map(response::redact).unwrap_or_default();
    let response = response::Response::new(head, &host, Duration::from_secs(1));
    if let Ok(body) = response.read_all(MAX_BODY_BYTES).await {
        assert!(body.len() as u64 <= MAX_BODY_BYTES);
    }
}
