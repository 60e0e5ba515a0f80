//! Registries that ask for a pause: 429 and 503, with and without `Retry-After`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use config::Registry;

use crate::node::{Image, Node, plain};
use crate::server::{Answer, Server};

/// Starts a registry that answers its first requests with a status and headers.
async fn busy(
    image: &Arc<Image>,
    answers: usize,
    status: &'static str,
    headers: Vec<(&'static str, String)>,
) -> Server {
    let image = image.clone();
    let left = AtomicUsize::new(answers);
    Server::start(move |request| {
        let take = |left: usize| left.checked_sub(1);
        if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            return image.serve(request);
        }
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Answer::new(status, &headers, b"{\"errors\":[{\"message\":\"slow down\"}]}")
    })
    .await
}

fn in_seconds(seconds: u64) -> String {
    httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds))
}

#[tokio::test]
async fn a_short_pause_is_waited_for() {
    let image = Image::new();
    for (status, headers) in [
        ("429 Too Many Requests", vec![("Retry-After", "1".to_owned())]),
        ("503 Service Unavailable", vec![("Retry-After", "1".to_owned())]),
        ("429 Too Many Requests", vec![("Retry-After", in_seconds(2))]),
        // The registry's clock is an hour behind.
        (
            "429 Too Many Requests",
            vec![
                ("Date", httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3600))),
                (
                    "Retry-After",
                    httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3599)),
                ),
            ],
        ),
    ] {
        let registry = busy(&image, 1, status, headers.clone()).await;
        let began = Instant::now();
        Node::new(&[plain(&registry.host())]).fetch(&registry.host(), &image).await.unwrap();
        assert_eq!(registry.count(), 4, "{headers:?}");
        if !headers[0].1.contains(':') {
            assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        }
    }
}

#[tokio::test]
async fn a_long_pause_ends_the_fetch_and_is_kept() {
    let image = Image::new();
    for wanted in ["120".to_owned(), "999999999999".to_owned(), in_seconds(3600 * 24 * 365)] {
        let headers = vec![("Retry-After", wanted.clone())];
        let registry = busy(&image, 1, "429 Too Many Requests", headers).await;
        let node = Node::new(&[plain(&registry.host())]);
        let first = node.fetch(&registry.host(), &image).await.unwrap_err();
        assert!(
            first.contains("answered 429 Too Many Requests and asks for a pause of"),
            "{first}"
        );
        // The module's next rollout asks again, and the registry is left alone.
        let second = node.fetch(&registry.host(), &image).await.unwrap_err();
        assert_eq!((second, registry.count()), (first, 1), "{wanted}");
    }
}

#[tokio::test]
async fn pauses_without_a_length_are_short_and_few() {
    let image = Image::new();
    for headers in [vec![], vec![("Retry-After", "soon".into())], vec![("Retry-After", "0".into())]]
    {
        let registry = busy(&image, 2, "503 Service Unavailable", headers.clone()).await;
        Node::new(&[plain(&registry.host())]).fetch(&registry.host(), &image).await.unwrap();
        assert_eq!(registry.count(), 5);
        let registry = busy(&image, usize::MAX, "429 Too Many Requests", headers).await;
        let node = Node::new(&[plain(&registry.host())]);
        let error = node.fetch(&registry.host(), &image).await.unwrap_err();
        assert!(error.contains("429 Too Many Requests: slow down"), "{error}");
        assert_eq!(registry.count(), 3);
    }
}

#[tokio::test]
async fn pauses_without_end_end() {
    let image = Image::new();
    let headers = vec![("Retry-After", "1".to_owned())];
    let registry = busy(&image, usize::MAX, "503 Service Unavailable", headers).await;
    let node = Node::new(&[plain(&registry.host())]);
    let error = node.fetch(&registry.host(), &image).await.unwrap_err();
    assert!(error.contains("answered 503 Service Unavailable and asks for a pause"), "{error}");
    assert_eq!(registry.count(), 3);
}

#[tokio::test]
async fn a_mirror_that_asks_for_a_pause_is_skipped() {
    let image = Image::new();
    let headers = vec![("Retry-After", "30".to_owned())];
    let mirror = busy(&image, usize::MAX, "429 Too Many Requests", headers).await;
    let registry = busy(&image, 0, "", Vec::new()).await;
    let settings = Registry { mirrors: vec![mirror.host()], ..plain(&registry.host()) };
    let began = Instant::now();
    Node::new(&[settings, plain(&mirror.host())]).fetch(&registry.host(), &image).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20));
    // It is not asked for the second blob.
    assert_eq!((mirror.count(), registry.count()), (1, 3));
}
