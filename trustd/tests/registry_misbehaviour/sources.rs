//! Names of registries, and the order of a registry's sources.

use config::Registry;

use crate::node::{Image, Node, plain, sha};
use crate::server::{Answer, Server, Socket};

#[tokio::test]
async fn every_name_of_a_host_finds_its_settings() {
    let image = Image::new();
    for (address, name, listed) in [
        ("127.0.0.1:0", "LocalHost", "localhost"),
        ("127.0.0.1:0", "localhost", "LOCALHOST"),
        ("[::1]:0", "[::1]", "[0:0::1]"),
    ] {
        let Ok(listener) = tokio::net::TcpListener::bind(address).await else { continue };
        drop(listener);
        let socket = Socket::bind(address).await;
        let port = socket.host().rsplit_once(':').unwrap().1.to_owned();
        let served = image.clone();
        let registry = socket.serve(None, move |request| served.serve(request));
        let node = Node::new(&[plain(&format!("{listed}:{port}"))]);
        node.fetch(&format!("{name}:{port}"), &image).await.unwrap();
        let host = registry.requests()[0].header("host").unwrap().to_owned();
        assert_eq!(host, format!("{}:{port}", name.to_lowercase()));
    }
}

#[tokio::test]
async fn short_names_of_docker_hub_lead_to_its_registry_and_its_mirrors() {
    let image = Image::new();
    let served = image.clone();
    let mirror = Server::start(move |request| served.serve(request)).await;
    let settings = |host: &str| Registry {
        host: host.into(),
        plain: true,
        mirrors: vec![mirror.host()],
        ..Registry::default()
    };
    for (listed, name) in [
        ("docker.io", "docker.io/app"),
        ("docker.io", "Index.docker.io/library/app"),
        ("registry-1.docker.io", "docker.io/app"),
    ] {
        let node = Node::new(&[settings(listed)]);
        node.fetch_as(name, &image.digest()).await.unwrap();
        let target = mirror.requests().pop().unwrap().target;
        assert_eq!(target, format!("/v2/library/app/blobs/{}", sha(&image.layer)), "{name}");
    }
}

#[tokio::test]
async fn the_next_source_delivers_what_the_first_does_not() {
    let image = Image::new();
    let bad = Server::start(|_| Answer::not_found()).await;
    let served = image.clone();
    let good = Server::start(move |request| served.serve(request)).await;
    let mirrors = vec!["127.0.0.1:1".into(), bad.host(), good.host()];
    let node = Node::new(&[Registry { mirrors, ..plain("127.0.0.1:2") }]);
    node.fetch("127.0.0.1:2", &image).await.unwrap();
    assert_eq!((bad.count(), good.count()), (3, 3));
    // Each source is one problem.
    let mirrors = vec![bad.host(); 5];
    let node = Node::new(&[Registry { mirrors, ..plain("127.0.0.1:2") }]);
    let error = node.fetch("127.0.0.1:2", &image).await.unwrap_err();
    assert_eq!(error.matches("not here").count(), 5, "{error}");
}
