//! Certificates of a registry that are listed in node.toml.

use crate::node::{Image, Node, with_ca};
use crate::server::{Socket, certificate};

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_if_it_is_listed() {
    let image = Image::new();
    for is_ca in [true, false] {
        let (ca, tls) = certificate(is_ca);
        let served = image.clone();
        let socket = Socket::bind("127.0.0.1:0").await;
        let registry = socket.serve(Some(tls), move |request| served.serve(request));
        let node = Node::new(&[with_ca(&registry.host(), &ca)]);
        node.fetch(&registry.host(), &image).await.unwrap();
        assert_eq!(registry.count(), 3);
        // Another one of the same kind is not.
        let (other, _) = certificate(is_ca);
        let node = Node::new(&[with_ca(&registry.host(), &other)]);
        let error = node.fetch(&registry.host(), &image).await.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        // Without a listed one, the well-known authorities decide.
        let error = Node::new(&[]).fetch(&registry.host(), &image).await.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        assert_eq!(registry.count(), 3);
    }
}

#[tokio::test]
async fn a_listed_certificate_is_for_the_name_in_it() {
    let image = Image::new();
    let (ca, tls) = certificate(true);
    let socket = Socket::bind("127.0.0.1:0").await;
    let served = image.clone();
    let registry = socket.serve(Some(tls), move |request| served.serve(request));
    let host = format!("localhost:{}", registry.address.port());
    let error = Node::new(&[with_ca(&host, &ca)]).fetch(&host, &image).await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    assert_eq!(registry.count(), 0);
}
