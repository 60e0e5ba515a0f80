//! Sources that never end: each one has a budget of requests, bytes and time, and the next source
//! delivers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use config::Registry;

use crate::node::{Image, Node, STALL, plain, requested_range};
use crate::server::{Answer, Request, Server, Step};

/// Fetches through a mirror and a registry that works. Returns the mirror's requests for the layer,
/// and those of the registry.
async fn fetch_behind(image: &Arc<Image>, mirror: &Server) -> (usize, usize) {
    let served = image.clone();
    let registry = Server::start(move |request| served.serve(request)).await;
    let settings = Registry { mirrors: vec![mirror.host()], ..plain(&registry.host()) };
    Node::new(&[settings]).fetch(&registry.host(), image).await.unwrap();
    let layer = |server: &Server| {
        server.requests().iter().filter(|request| image.is_layer(request)).count()
    };
    (layer(mirror), layer(&registry))
}

#[tokio::test]
async fn a_source_has_64_requests_for_a_blob() {
    let image = Image::new();
    let served = image.clone();
    // Each attempt takes 18 requests: a challenge, a token and another request for each of six
    // hosts in a row. And each one makes progress.
    let mirror = Server::start(move |request| {
        if request.target.starts_with("/token") {
            return Answer::ok(b"{\"token\":\"abc\",\"expires_in\":0}");
        }
        if !served.is_layer(request) {
            return served.serve(request);
        }
        if request.header("authorization").is_none() {
            return Answer::unauthorized(&["Bearer realm=/token"]);
        }
        if request.target.matches("/hop").count() < 5 {
            return Answer::redirect("307 Temporary Redirect", &format!("/hop{}", request.target));
        }
        let size = served.layer.len();
        let start = requested_range(request, size).map_or(0, |(start, _)| start);
        let (end, length) = (size.min(start + 66_000), (size - start).to_string());
        let range = format!("bytes {start}-{}/{size}", size - 1);
        let headers = [("Content-Range", range.as_str()), ("Content-Length", &length)];
        Answer::cut("206 Partial Content", &headers, &served.layer[start..end])
    })
    .await;
    let (_, registry) = fetch_behind(&image, &mirror).await;
    let requests = mirror.requests();
    let layer = requests.iter().skip_while(|request| !image.is_layer(request)).count();
    assert_eq!((layer, registry), (64, 1));
}

#[tokio::test]
async fn a_source_has_a_multiple_of_the_size_in_bytes() {
    let image = Image::with_file_of(1_000_000);
    let served = image.clone();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    // Each answer begins at the start and gets a little farther. All of them would be 8 MB.
    let mirror = Server::start(move |request| {
        if !served.is_layer(request) {
            return served.serve(request);
        }
        let size = served.layer.len();
        let start = requested_range(request, size).map_or(0, |(start, _)| start);
        let end = (start + 66_000).min(size - 1);
        counted.fetch_add(end, Ordering::SeqCst);
        Answer::cut("200 OK", &[("Content-Length", &size.to_string())], &served.layer[..end])
    })
    .await;
    let (_, registry) = fetch_behind(&image, &mirror).await;
    let most = 3 * image.layer.len() + (1 << 20) + image.layer.len();
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent <= most && registry == 1, "{sent}, {registry}");
}

#[tokio::test]
async fn a_source_has_a_time_for_a_blob() {
    let image = Image::new();
    let served = image.clone();
    // Every redirect is slow.
    let mirror = Server::start(move |request: &Request| {
        if request.is_for_a_blob() && !served.is_layer(request) {
            return Answer::redirect("307 Temporary Redirect", &request.target).after(STALL * 3);
        }
        served.serve(request)
    })
    .await;
    fetch_behind(&image, &mirror).await;
    // Ten seconds for a small blob. A circle of redirects alone would end after six requests.
    let requests = mirror.requests();
    let config = requests.iter().filter(|r| r.is_for_a_blob() && !image.is_layer(r)).count();
    assert!((2..=4).contains(&config), "{config}");
}

#[tokio::test]
async fn a_source_that_fails_is_asked_three_times() {
    let image = Image::new();
    for answer in [
        (|| Answer::new("500 Internal Server Error", &[], b"")) as fn() -> Answer,
        || Answer::cut("200 OK", &[("Content-Length", "10")], b""),
        || Answer(Vec::new()),
        || Answer(vec![Step::Send(b"220 mail.example ESMTP\r\n\r\n".to_vec())]),
    ] {
        let served = image.clone();
        let mirror =
            Server::start(
                move |request| {
                    if served.is_layer(request) { answer() } else { served.serve(request) }
                },
            )
            .await;
        let (requests, registry) = fetch_behind(&image, &mirror).await;
        assert_eq!((requests, registry), (3, 1));
    }
}

#[tokio::test]
async fn heads_without_end_end() {
    let image = Image::new();
    for bytes in
        [&b"HTTP/1.1 200 OK\r\nX: "[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
    {
        let served = image.clone();
        let mirror = Server::start(move |request| {
            if !served.is_layer(request) {
                return served.serve(request);
            }
            let more = if bytes.ends_with(b"\n") { bytes } else { b"aaaaaaaaaaaaaaaa" };
            let more = if bytes.ends_with(b"OK\r\n") { b"A: b\r\n" } else { more };
            Answer(vec![Step::Send(bytes.to_vec()), Step::Repeat(more.repeat(500), Duration::ZERO)])
        })
        .await;
        let (requests, registry) = fetch_behind(&image, &mirror).await;
        assert!(requests <= 3 && registry == 1, "{requests}");
    }
}
