//! Transfers: ranges that are wrong, missing or refused, lengths that are wrong or missing, bodies
//! that break off, codings, and headers that lie.

use std::sync::Arc;

use crate::node::{Image, LIMIT, Node, STALL, plain, requested_range};
use crate::server::{Answer, Request, Server, Step};

/// Bytes of the layer after which a transfer breaks.
const CUT: usize = 150_000;

/// Starts a registry with another answer to requests for the layer.
async fn with_layer(
    image: &Arc<Image>,
    layer: impl Fn(&Image, &Request) -> Answer + Send + Sync + 'static,
) -> Server {
    let image = image.clone();
    Server::start(move |request| {
        if image.is_layer(request) { layer(&image, request) } else { image.serve(request) }
    })
    .await
}

/// Answers with the whole layer's length, and breaks off after [`CUT`] bytes of `body`.
fn break_off(image: &Image, status: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let length = image.layer.len().to_string();
    let headers = [headers, &[("Content-Length", length.as_str())]].concat();
    Answer::cut(status, &headers, &body[..CUT.min(body.len())])
}

/// Fetches the image with an empty store. Returns the error and the number of requests for the
/// layer.
async fn fetch(image: &Arc<Image>, registry: &Server) -> (Result<(), String>, usize) {
    let node = Node::new(&[plain(&registry.host())]);
    let result = node.fetch(&registry.host(), image).await;
    let requests = registry.requests().iter().filter(|request| image.is_layer(request)).count();
    (result, requests)
}

/// Asserts that the layer arrives with this many requests, if the answers to ranges are `part`.
async fn resumes(
    requests: usize,
    part: impl Fn(&Image, (usize, usize)) -> Answer + Send + Sync + 'static,
) {
    let image = Image::new();
    let registry = with_layer(&image, move |image, request| {
        match requested_range(request, image.layer.len()) {
            Some(range) => part(image, range),
            None if request.header("range").is_none() => {
                break_off(image, "200 OK", &[], &image.layer)
            }
            None => panic!("{}", request.head),
        }
    })
    .await;
    let (result, count) = fetch(&image, &registry).await;
    assert_eq!((result, count), (Ok(()), requests));
}

fn range(start: usize, last: usize, size: impl std::fmt::Display) -> String {
    format!("bytes {start}-{last}/{size}")
}

#[tokio::test]
async fn a_broken_transfer_resumes_with_a_closed_range() {
    let image = Image::new();
    let registry = with_layer(&image, |image, request| {
        if request.header("range").is_some() {
            assert!(
                request.header("range").unwrap().ends_with(&(image.layer.len() - 1).to_string())
            );
            image.serve(request)
        } else {
            break_off(image, "200 OK", &[], &image.layer)
        }
    })
    .await;
    assert_eq!(fetch(&image, &registry).await, (Ok(()), 2));
}

#[tokio::test]
async fn an_answer_with_an_earlier_or_a_shorter_range_is_used() {
    // The whole blob, as 200 and as 206.
    resumes(2, |image, _| Answer::ok(&image.layer)).await;
    resumes(2, |image, _| {
        let size = image.layer.len();
        let headers = [("Content-Range", range(0, size - 1, size))];
        Answer::new("206 Partial Content", &[(headers[0].0, &headers[0].1)], &image.layer)
    })
    .await;
    // A range that begins earlier, of a size that is not named.
    resumes(2, |image, (start, end)| {
        let headers = [("Content-Range", range(start - 1000, end - 1, "*"))];
        let body = &image.layer[start - 1000..end];
        Answer::new("206 Partial Content", &[(headers[0].0, &headers[0].1)], body)
    })
    .await;
    // Ranges of at most 70,000 bytes.
    resumes(4, |image, (start, end)| {
        let end = end.min(start + 70_000);
        let headers = [("Content-Range", range(start, end - 1, image.layer.len()))];
        let body = &image.layer[start..end];
        Answer::new("206 Partial Content", &[(headers[0].0, &headers[0].1)], body)
    })
    .await;
}

/// Asserts that an answer to a range is not used, and that the next request names no range.
async fn falls_back(part: impl Fn(&Image, (usize, usize)) -> Answer + Send + Sync + 'static) {
    let image = Image::new();
    let broken = std::sync::atomic::AtomicBool::new(false);
    let registry = with_layer(&image, move |image, request| {
        match requested_range(request, image.layer.len()) {
            Some(range) => part(image, range),
            // The first transfer breaks, the last one does not.
            None if broken.swap(true, std::sync::atomic::Ordering::SeqCst) => {
                Answer::ok(&image.layer)
            }
            None => break_off(image, "200 OK", &[], &image.layer),
        }
    })
    .await;
    let (result, count) = fetch(&image, &registry).await;
    assert_eq!((result, count), (Ok(()), 3));
    let last = registry.requests().pop().unwrap();
    assert_eq!(last.header("range"), None);
}

#[tokio::test]
async fn an_answer_with_a_wrong_range_is_followed_by_one_without() {
    falls_back(|image, (start, end)| {
        Answer::new("206 Partial Content", &[], &image.layer[start..end])
    })
    .await;
    falls_back(|image, (start, end)| {
        let headers = [("Content-Range", range(start + 1, end - 1, image.layer.len()))];
        let body = &image.layer[start + 1..end];
        Answer::new("206 Partial Content", &[(headers[0].0, &headers[0].1)], body)
    })
    .await;
    falls_back(|image, (start, _)| {
        let headers = [("Content-Range", range(0, start - 1, image.layer.len()))];
        Answer::new("206 Partial Content", &[(headers[0].0, &headers[0].1)], &image.layer[..start])
    })
    .await;
    falls_back(|image, (start, end)| {
        let headers = [("Content-Range", range(start, end - 1, image.layer.len() + 1))];
        let body = &image.layer[start..end];
        Answer::new("206 Partial Content", &[(headers[0].0, &headers[0].1)], body)
    })
    .await;
    falls_back(|image, _| {
        let header = format!("bytes */{}", image.layer.len());
        Answer::new("416 Range Not Satisfiable", &[("Content-Range", &header)], b"")
    })
    .await;
}

#[tokio::test]
async fn a_range_with_other_bytes_than_it_says_costs_one_more_transfer() {
    let image = Image::new();
    let broken = std::sync::atomic::AtomicBool::new(false);
    let registry = with_layer(&image, move |image, request| {
        match requested_range(request, image.layer.len()) {
            // The beginning of the blob under the name of its end.
            Some((start, end)) => {
                let header = range(start, end - 1, image.layer.len());
                let body = &image.layer[..end - start];
                Answer::new("206 Partial Content", &[("Content-Range", &header)], body)
            }
            None if broken.swap(true, std::sync::atomic::Ordering::SeqCst) => {
                Answer::ok(&image.layer)
            }
            None => break_off(image, "200 OK", &[], &image.layer),
        }
    })
    .await;
    assert_eq!(fetch(&image, &registry).await, (Ok(()), 3));
}

#[tokio::test]
async fn a_source_that_always_breaks_off_ends() {
    let image = Image::new();
    // It lies about the range after each interruption.
    let wrong = with_layer(&image, |image, request| {
        if request.header("range").is_some() {
            let header = range(0, image.layer.len() - 1, image.layer.len());
            let body: Vec<u8> = image.layer.iter().map(|byte| byte ^ 1).collect();
            Answer::new("206 Partial Content", &[("Content-Range", &header)], &body)
        } else {
            break_off(image, "200 OK", &[], &image.layer)
        }
    })
    .await;
    // It has no ranges, or rejects them, and never sends everything.
    let never = with_layer(&image, |image, _| break_off(image, "200 OK", &[], &image.layer)).await;
    let rejecting = with_layer(&image, |image, request| match request.header("range") {
        Some(_) => Answer::new("416 Range Not Satisfiable", &[], b""),
        None => break_off(image, "200 OK", &[], &image.layer),
    })
    .await;
    for (registry, most) in [(wrong, 5), (never, 5), (rejecting, 6)] {
        let (result, count) = fetch(&image, &registry).await;
        assert!(result.is_err() && count <= most, "{count}: {result:?}");
    }
}

#[tokio::test]
async fn a_206_without_a_request_for_a_range_is_read_as_a_whole() {
    let image = Image::new();
    for header in [None, Some("bytes 0-LAST/SIZE"), Some("bytes 0-LAST/*"), Some("nonsense")] {
        let registry = with_layer(&image, move |image, request| {
            assert_eq!(request.header("range"), None);
            let size = image.layer.len();
            let header = header.map(|text| {
                text.replace("LAST", &(size - 1).to_string()).replace("SIZE", &size.to_string())
            });
            let headers: Vec<_> = header.iter().map(|h| ("Content-Range", h.as_str())).collect();
            Answer::new("206 Partial Content", &headers, &image.layer)
        })
        .await;
        assert_eq!(fetch(&image, &registry).await, (Ok(()), 1), "{header:?}");
    }
}

#[tokio::test]
async fn bodies_without_a_length_are_read() {
    let image = Image::new();
    // The end of the connection is the end of the body.
    let closed = with_layer(&image, |image, _| Answer::cut("200 OK", &[], &image.layer)).await;
    assert_eq!(fetch(&image, &closed).await, (Ok(()), 1));
    let in_chunks = with_layer(&image, |image, _| chunked(&image.layer, true)).await;
    assert_eq!(fetch(&image, &in_chunks).await, (Ok(()), 1));
    // A body that ends early is resumed if its end cannot be told from a broken connection.
    for is_chunked in [false, true] {
        let registry = with_layer(&image, move |image, request| {
            let body = &image.layer[..CUT];
            match (request.header("range"), is_chunked) {
                (Some(_), _) => image.serve(request),
                (None, true) => chunked(body, false),
                (None, false) => Answer::cut("200 OK", &[], body),
            }
        })
        .await;
        assert_eq!(fetch(&image, &registry).await, (Ok(()), 2), "{is_chunked}");
    }
}

/// Returns an answer in chunks, and without the last one if it breaks off.
fn chunked(body: &[u8], is_complete: bool) -> Answer {
    let mut bytes = Vec::new();
    for chunk in body.chunks(7000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    if is_complete {
        bytes.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
    }
    Answer::cut("200 OK", &[("Transfer-Encoding", "chunked")], &bytes)
}

#[tokio::test]
async fn bodies_of_another_length_than_the_blob_are_rejected() {
    let image = Image::new();
    let long = with_layer(&image, |image, _| Answer::ok(&[image.layer.as_slice(), b"x"].concat()));
    let long_chunked =
        with_layer(&image, |image, _| chunked(&[image.layer.as_slice(), b"x"].concat(), true));
    let short = with_layer(&image, |image, _| Answer::ok(&image.layer[1..]));
    let short_chunked = with_layer(&image, |image, _| chunked(&image.layer[1..], true));
    let empty = with_layer(&image, |_, _| Answer::ok(b""));
    for registry in [long.await, long_chunked.await, short.await, short_chunked.await, empty.await]
    {
        let (result, count) = fetch(&image, &registry).await;
        let error = result.unwrap_err();
        assert!(error.contains("sent something else than requested"), "{error}");
        assert_eq!(count, 1, "{error}");
    }
}

#[tokio::test]
async fn a_body_without_end_ends() {
    let image = Image::new();
    for headers in [&[][..], &[("Content-Length", "99999999999999")]] {
        let registry = with_layer(&image, move |_, _| {
            let endless = Step::Repeat(vec![b'x'; 65536], std::time::Duration::ZERO);
            Answer::cut("200 OK", headers, b"").then(endless)
        })
        .await;
        let (result, count) = fetch(&image, &registry).await;
        assert!(result.unwrap_err().contains("something else") && count == 1);
    }
}

#[tokio::test]
async fn a_content_encoding_is_reported_only_if_the_bytes_are_not_the_blob() {
    let image = Image::new();
    let encoding = [("Content-Encoding", "gzip")];
    // Storage that names the compression of the blob itself.
    let named =
        with_layer(&image, move |image, _| Answer::new("200 OK", &encoding, &image.layer)).await;
    assert_eq!(fetch(&image, &named).await, (Ok(()), 1));
    assert_eq!(named.requests()[0].header("accept-encoding"), Some("identity"));
    let packed = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, bytes).unwrap();
        gz.finish().unwrap()
    };
    let layer =
        with_layer(&image, move |image, _| Answer::new("200 OK", &encoding, &packed(&image.layer)))
            .await;
    let served = image.clone();
    let manifest =
        Server::start(move |_| Answer::new("200 OK", &encoding, &packed(&served.manifest))).await;
    for registry in [layer, manifest] {
        let error = fetch(&image, &registry).await.0.unwrap_err();
        assert!(error.contains("with a Content-Encoding"), "{error}");
        assert!(registry.count() <= 3);
    }
}

#[tokio::test]
async fn headers_about_the_content_do_not_count() {
    let image = Image::new();
    let served = image.clone();
    let lies = [
        (
            "Docker-Content-Digest",
            "sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ),
        ("Content-Type", "text/html"),
        ("ETag", "\"x\""),
    ];
    let registry = Server::start(move |request| {
        Answer::new("200 OK", &lies, served.blob(&request.target).unwrap())
    })
    .await;
    fetch(&image, &registry).await.0.unwrap();
    assert_eq!(registry.count(), 3);
}

#[tokio::test]
async fn requests_are_get_with_an_agent_and_the_types_of_manifests() {
    let image = Image::new();
    let served = image.clone();
    let registry = Server::start(move |request| {
        let has_agent =
            request.header("user-agent").is_some_and(|a| a.starts_with("basalt-trustd/"));
        // HEAD is refused, and so is a client that does not say what it is.
        if !request.head.starts_with("GET ") || !has_agent {
            return Answer::new("405 Method Not Allowed", &[], b"");
        }
        let accept = request.header("accept").unwrap_or_default();
        let types = [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        ];
        if request.target.contains("/manifests/") && !types.iter().all(|t| accept.contains(t)) {
            return Answer::not_found();
        }
        served.serve(request)
    })
    .await;
    fetch(&image, &registry).await.0.unwrap();
}

#[tokio::test]
async fn a_slow_first_byte_is_waited_for() {
    let image = Image::new();
    let slow = with_layer(&image, |image, request| image.serve(request).after(STALL * 2)).await;
    assert_eq!(fetch(&image, &slow).await, (Ok(()), 1));
    let silent = with_layer(&image, |_, _| Answer::silence()).await;
    let (result, count) = fetch(&image, &silent).await;
    assert!(result.unwrap_err().contains("stalled") && count == 1);
}

#[tokio::test]
async fn transfers_that_stall_or_drip_end() {
    let image = Image::new();
    let drip = || Step::Repeat(b"x".to_vec(), STALL / 4);
    let stalled = with_layer(&image, |image, _| {
        break_off(image, "200 OK", &[], &image.layer[..1000]).then(Step::Wait(LIMIT))
    });
    let dripping = with_layer(&image, move |_, _| Answer::cut("200 OK", &[], b"").then(drip()));
    let served = image.clone();
    let manifest = Server::start(move |request| {
        if request.is_for_a_blob() {
            served.serve(request)
        } else {
            Answer::cut("200 OK", &[("Content-Length", "1000000")], b"").then(drip())
        }
    });
    // The text of an error is not worth the wait.
    let error = with_layer(&image, move |_, _| Answer::cut("403 Forbidden", &[], b"").then(drip()));
    for (registry, message) in [
        (stalled.await, "stalled"),
        (dripping.await, "stalled"),
        (manifest.await, "stalled"),
        (error.await, "answered 403"),
    ] {
        let (result, count) = fetch(&image, &registry).await;
        let error = result.unwrap_err();
        assert!(error.contains(message) && count <= 1, "{count}: {error}");
    }
}

#[tokio::test]
async fn what_the_store_has_survives_a_source_without_ranges() {
    let image = Image::new();
    let cut = std::sync::atomic::AtomicUsize::new(2 * CUT - 50_000);
    // It never has ranges; its second and third answers break off before the known part ends.
    let registry = with_layer(&image, move |image, _| {
        let length = image.layer.len().to_string();
        let bytes = cut.swap(50_000, std::sync::atomic::Ordering::SeqCst);
        Answer::cut("200 OK", &[("Content-Length", &length)], &image.layer[..bytes])
    })
    .await;
    let node = Node::new(&[plain(&registry.host())]);
    node.fetch(&registry.host(), &image).await.unwrap_err();
    let digest = crate::node::sha(&image.layer);
    assert_eq!(node.fetcher.store.partial_size(&digest), 250_000);
    // Another fetch, such as one from another source, continues there.
    let served = image.clone();
    let good = Server::start(move |request| served.serve(request)).await;
    let other = config::Registry { mirrors: vec![], ..plain(&good.host()) };
    let next = Node::new(&[other]);
    let copied = next.fetcher.store.receive(
        &digest,
        image.layer.len() as u64,
        0,
        Broken(&image.layer[..250_000]),
    );
    assert!(copied.is_err());
    next.fetch(&good.host(), &image).await.unwrap();
    let range = good.requests().pop().unwrap();
    assert!(range.header("range").unwrap().starts_with("bytes=250000-"), "{}", range.head);
}

/// Content that breaks off after these bytes.
struct Broken<'a>(&'a [u8]);

impl std::io::Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::ErrorKind::ConnectionReset.into()),
            n => Ok(n),
        }
    }
}

#[tokio::test]
async fn a_complete_part_is_verified_without_a_request() {
    let image = Image::new();
    let served = image.clone();
    let registry = Server::start(move |request| served.serve(request)).await;
    let digest = crate::node::sha(&image.layer);
    for (bytes, requests) in [
        (image.layer.clone(), 0),
        (vec![7; image.layer.len()], 1),
        (vec![7; image.layer.len() + 1], 1),
    ] {
        let node = Node::new(&[plain(&registry.host())]);
        let size = bytes.len() as u64 + 1;
        let store = &node.fetcher.store;
        assert!(store.receive(&digest, size, 0, Broken(&bytes)).is_err());
        assert_eq!(store.partial_size(&digest), bytes.len() as u64);
        let before = registry.requests().iter().filter(|r| image.is_layer(r)).count();
        node.fetch(&registry.host(), &image).await.unwrap();
        let after = registry.requests().iter().filter(|r| image.is_layer(r)).count();
        assert_eq!(after - before, requests);
    }
}
