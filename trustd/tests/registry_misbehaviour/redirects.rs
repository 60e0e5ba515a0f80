//! Redirects: to storage, to other registries, in every form, without end, and to where they must
//! not lead.

use std::sync::Arc;

use config::Registry;

use crate::node::{Image, Node, PASSWORD, plain, with_ca, with_password};
use crate::server::{Answer, Server, Socket, certificate};

/// Starts storage without TLS, which serves every path.
async fn storage(image: &Arc<Image>) -> Server {
    let image = image.clone();
    Server::start(move |request| image.serve(request)).await
}

/// Starts a registry that redirects blobs to what `location` returns for their path.
async fn redirecting(
    image: &Arc<Image>,
    status: &'static str,
    location: impl Fn(&str) -> String + Send + Sync + 'static,
) -> Server {
    let image = image.clone();
    Server::start(move |request| {
        if request.is_for_a_blob() && !request.target.starts_with("/moved") {
            Answer::redirect(status, &location(&request.target))
        } else {
            image.serve(request)
        }
    })
    .await
}

#[tokio::test]
async fn redirects_of_every_status_and_form_are_followed() {
    let image = Image::new();
    let storage = storage(&image).await;
    let host = storage.host();
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let host = host.clone();
        let registry =
            redirecting(&image, status, move |path| format!("http://{host}{path}")).await;
        Node::new(&[plain(&registry.host())]).fetch(&registry.host(), &image).await.unwrap();
        // The manifest, and one redirect for each of two blobs.
        assert_eq!(registry.count(), 3, "{status}");
    }
    assert_eq!(storage.count(), 10);
    let protocol_relative = move |path: &str| format!("//{host}{path}");
    let registry = redirecting(&image, "307 Temporary Redirect", protocol_relative).await;
    Node::new(&[plain(&registry.host())]).fetch(&registry.host(), &image).await.unwrap();
    assert_eq!((registry.count(), storage.count()), (3, 12));
    for relative in ["/moved", "../../../../moved"] {
        let moved = move |path: &str| format!("{relative}{path}#part");
        let registry = redirecting(&image, "302 Found", moved).await;
        Node::new(&[plain(&registry.host())]).fetch(&registry.host(), &image).await.unwrap();
        assert_eq!(registry.count(), 5, "{relative}");
    }
}

#[tokio::test]
async fn redirects_that_lead_nowhere_end() {
    let image = Image::new();
    for (status, location, message) in [
        ("307 Temporary Redirect", "", "there is no address"),
        ("307 Temporary Redirect", "file:///etc/passwd", "neither https nor http"),
        ("307 Temporary Redirect", "http://user:secret@127.0.0.1:1/", "contains a user name"),
        ("307 Temporary Redirect", "http://[", "the address is invalid"),
        // No redirects, although their status begins with 3.
        ("300 Multiple Choices", "/moved", "answered 300"),
        ("304 Not Modified", "/moved", "answered 304"),
    ] {
        let registry = redirecting(&image, status, move |_| location.to_owned()).await;
        let node = Node::new(&[plain(&registry.host())]);
        let error = node.fetch(&registry.host(), &image).await.unwrap_err();
        assert!(error.contains(message) && !error.contains("secret"), "{error}");
        assert_eq!(registry.count(), 2, "{error}");
    }
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let image = Image::new();
    let registry = redirecting(&image, "307 Temporary Redirect", str::to_owned).await;
    let node = Node::new(&[plain(&registry.host())]);
    let error = node.fetch(&registry.host(), &image).await.unwrap_err();
    assert!(error.contains("too many redirects"), "{error}");
    assert_eq!(registry.count(), 1 + 6);
}

#[tokio::test]
async fn a_redirect_does_not_leave_tls() {
    let image = Image::new();
    let storage = storage(&image).await;
    let (ca, tls) = certificate(false);
    let socket = Socket::bind("127.0.0.1:0").await;
    let host = socket.host();
    let (served, to) = (image.clone(), storage.host());
    socket.serve(Some(tls), move |request| {
        if request.is_for_a_blob() {
            Answer::redirect("307 Temporary Redirect", &format!("http://{to}{}", request.target))
        } else {
            served.serve(request)
        }
    });
    // Not even to a host that node.toml lists without TLS.
    let node = Node::new(&[with_ca(&host, &ca), plain(&storage.host())]);
    let error = node.fetch(&host, &image).await.unwrap_err();
    assert!(error.contains("would leave TLS"), "{error}");
    assert_eq!(storage.count(), 0);
}

/// Starts a registry with TLS and a password, and storage that it redirects blobs to. `answer` is
/// the storage's answer.
async fn with_storage(
    image: &Arc<Image>,
    answer: impl Fn(&crate::server::Request, &str) -> Answer + Send + Sync + 'static,
) -> (Server, Server, [Registry; 2]) {
    let (ca, tls) = certificate(false);
    let (socket, storage) = (Socket::bind("127.0.0.1:0").await, Socket::bind("127.0.0.1:0").await);
    let (host, storage_host) = (socket.host(), storage.host());
    let registries = [with_password(&host, &ca), with_ca(&storage_host, &ca)];
    let (served, to) = (image.clone(), storage_host);
    let registry = socket.serve(Some(tls.clone()), move |request| {
        if request.header("authorization") != Some(PASSWORD) {
            Answer::unauthorized(&["Basic realm=\"r\""])
        } else if request.is_for_a_blob() && !request.target.starts_with("/back") {
            let location = format!("https://{to}/bucket{}", request.target);
            Answer::redirect("307 Temporary Redirect", &location)
        } else {
            served.serve(request)
        }
    });
    let storage = storage.serve(Some(tls), move |request| answer(request, &host));
    (registry, storage, registries)
}

#[tokio::test]
async fn storage_gets_no_authorization() {
    let image = Image::new();
    let served = image.clone();
    let (registry, storage, registries) =
        with_storage(&image, move |request, _| served.serve(request)).await;
    Node::new(&registries).fetch(&registry.host(), &image).await.unwrap();
    assert_eq!(storage.authorizations(), [None, None]);
    // Only the first request had to be challenged.
    assert_eq!(registry.count(), 4);
}

#[tokio::test]
async fn a_redirect_that_returns_gets_no_authorization_either() {
    let image = Image::new();
    let (registry, _storage, registries) = with_storage(&image, |request, registry| {
        let location = format!("https://{registry}/back{}", request.target);
        Answer::redirect("307 Temporary Redirect", &location)
    })
    .await;
    let error = Node::new(&registries).fetch(&registry.host(), &image).await.unwrap_err();
    assert!(error.contains("a redirect led to this host"), "{error}");
    let returned = registry.requests().into_iter().filter(|r| r.target.starts_with("/back"));
    assert!(returned.into_iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_name_that_redirects_to_a_registry_with_tokens_works() {
    let image = Image::new();
    let socket = Socket::bind("127.0.0.1:0").await;
    let (real_host, served) = (socket.host(), image.clone());
    let challenge = format!(
        "Bearer realm=\"http://{real_host}/token\",service=\"real\",\
         scope=\"repository:user/image:pull\""
    );
    let real = socket.serve(None, move |request| {
        if request.target.starts_with("/token") {
            Answer::ok(b"{\"token\":\"abc\"}")
        } else if request.header("authorization") != Some("Bearer abc") {
            Answer::unauthorized(&[&challenge])
        } else {
            served.serve(request)
        }
    });
    let to = real_host.clone();
    let vanity = Server::start(move |request| {
        let path = request.target.replace("team/app", "user/image");
        Answer::redirect("307 Temporary Redirect", &format!("http://{to}{path}"))
    })
    .await;
    Node::new(&[plain(&vanity.host()), plain(&real_host)])
        .fetch(&vanity.host(), &image)
        .await
        .unwrap();
    // The name sees no authorization, and the registry one request for a token.
    assert_eq!(vanity.authorizations(), [None, None, None]);
    let targets: Vec<String> = real.requests().into_iter().map(|r| r.target).collect();
    assert_eq!(targets[1], "/token?scope=repository%3Auser%2Fimage%3Apull&service=real");
    assert_eq!(real.count(), 3 + 1 + 1);
    assert_eq!(real.authorizations()[1], None);
}
