//! What a registry, a mirror or a source of the ledger answers, from its first byte on.
#![no_main]
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::header::{HOST, LOCATION};
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt as _;

// The file alone: with all of trustd this would need the TPM's libraries.
#[path = "../../trustd/src/fetch/answer.rs"]
mod answer;

const LIMIT: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        return;
    };
    runtime.block_on(ask(data.to_vec()));
});

async fn ask(bytes: Vec<u8>) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let _ = theirs.write_all(&bytes).await;
        let _ = theirs.shutdown().await;
        // Open until the other side has had enough, so that the request is not refused for that.
        let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
    });
    let Ok(request) = Request::get("/x").header(HOST, "h").body(Empty::new()) else { return };
    let Ok(response) = answer::exchange(ours, request).await else { return };
    let host = response
        .headers()
        .get(LOCATION)
        .and_then(|v| v.to_str().ok())
        .map(answer::shown)
        .unwrap_or_default();
    if let Ok(whole) =
        answer::Answer::new(response, &host, Duration::from_secs(1)).whole(LIMIT).await
    {
        assert!(whole.len() as u64 <= LIMIT);
    }
}
