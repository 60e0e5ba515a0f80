//! Challenges: who gets the password and the tokens, and the forms that challenges and the answers
//! of token services have.

use std::sync::Arc;

use config::Registry;

use crate::node::{Image, Node, PASSWORD, plain, with_ca, with_password};
use crate::server::{Answer, Request, Server, Socket, certificate};

/// Answers like a registry that demands the token `abc`, with these challenges.
fn demand_token(image: &Image, request: &Request, challenges: &[&str]) -> Answer {
    if request.target.starts_with("/token") {
        Answer::ok(b"{\"token\":\"abc\"}")
    } else if request.header("authorization") != Some("Bearer abc") {
        Answer::unauthorized(challenges)
    } else {
        image.serve(request)
    }
}

#[tokio::test]
async fn the_challenge_that_can_be_answered_is_found_among_several() {
    let image = Image::new();
    for challenges in [
        vec!["Negotiate", "Bearer realm=\"TOKEN\",service=\"s\""],
        vec!["Basic realm=\"r\", Bearer realm=\"TOKEN\",service=\"s\""],
        vec!["Bearer realm=\"TOKEN\", service=\"s\", Basic realm=\"a, Bearer realm=b\""],
        vec!["NTLM TlRMTVNTUAAB=, Bearer service=s , realm = TOKEN"],
        vec!["bearer REALM=\"TOKEN\",error=\"a, \\\"b\\\"\",service=s"],
        // The address of the first realm cannot be used.
        vec!["Bearer realm=\"ftp://x/\"", "Bearer realm=\"TOKEN\",service=s"],
        vec!["Bearer realm=\"/token?service=s\""],
    ] {
        let socket = Socket::bind("127.0.0.1:0").await;
        let realm = format!("http://{}/token", socket.host());
        let texts: Vec<_> = challenges.iter().map(|text| text.replace("TOKEN", &realm)).collect();
        let served = image.clone();
        let registry = socket.serve(None, move |request| {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            demand_token(&served, request, &texts)
        });
        let node = Node::new(&[plain(&registry.host())]);
        node.fetch(&registry.host(), &image)
            .await
            .unwrap_or_else(|e| panic!("{challenges:?}: {e}"));
        let token = registry.requests().remove(1).target;
        assert!(token.contains("service=s") && token.contains("scope=repository%3A"), "{token}");
        // The token is used for the blobs too.
        assert_eq!(registry.count(), 3 + 2, "{challenges:?}");
    }
}

#[tokio::test]
async fn challenges_without_an_answer_are_reported() {
    let image = Image::new();
    for (challenges, message) in [
        (vec![], "expected a challenge of the scheme Basic or Bearer, found none"),
        (vec!["Negotiate, NTLM"], "found negotiate, ntlm"),
        (vec!["Basic realm=\"r\""], "set its user and password under [[registries]]"),
        (vec!["Bearer service=\"s\""], "names no realm"),
        (vec!["Bearer realm=\"\""], "the realm of its challenge cannot be used"),
        (vec!["Bearer realm=\"http://u:secret@127.0.0.1/\""], "contains a user name"),
    ] {
        let sent = challenges.clone();
        let registry = Server::start(move |_| Answer::unauthorized(&sent)).await;
        let node = Node::new(&[plain(&registry.host())]);
        let error = node.fetch(&registry.host(), &image).await.unwrap_err();
        assert!(error.contains(message) && error.contains("401"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(registry.count(), 1, "{error}");
    }
}

#[tokio::test]
async fn answers_of_token_services_have_several_forms() {
    let image = Image::new();
    for (status, body, message) in [
        ("200 OK", r#"{"token":"abc"}"#, None),
        ("200 OK", r#"{"access_token":"abc"}"#, None),
        ("200 OK", r#"{"token":"abc","access_token":"x","expires_in":"never"}"#, None),
        ("200 OK", r#"{"token":"","access_token":"abc","expires_in":0}"#, None),
        ("200 OK", r#"{"token":"other"}"#, Some("it rejects the token")),
        ("200 OK", "{}", Some("invalid token response")),
        ("200 OK", "<html>", Some("invalid token response")),
        ("403 Forbidden", "{}", Some("answered 403 Forbidden; set user and password")),
        ("404 Not Found", "{}", Some("answered 404")),
        ("200 OK", "LONG", Some("sends more than 65536 bytes")),
    ] {
        let body = body.replace("LONG", &" ".repeat(70_000));
        let served = image.clone();
        let registry = Server::start(move |request| {
            if request.target.starts_with("/token") {
                Answer::new(status, &[], body.as_bytes())
            } else {
                demand_token(&served, request, &["Bearer realm=/token"])
            }
        })
        .await;
        let node = Node::new(&[plain(&registry.host())]);
        match (node.fetch(&registry.host(), &image).await, message) {
            (Ok(()), None) => assert!(registry.count() <= 3 + 3 * 2),
            (Err(error), Some(message)) => {
                assert!(error.contains(message), "{error}");
                assert!(registry.count() <= 3, "{error}");
            }
            (result, message) => panic!("{result:?}, expected {message:?}"),
        }
    }
}

#[tokio::test]
async fn an_expired_token_is_replaced_in_the_middle_of_a_transfer() {
    let image = Image::new();
    let served = image.clone();
    let issued = std::sync::atomic::AtomicUsize::new(0);
    let used = std::sync::atomic::AtomicUsize::new(0);
    let registry = Server::start(move |request| {
        use std::sync::atomic::Ordering::SeqCst;
        if request.target.starts_with("/token") {
            used.store(0, SeqCst);
            let token = issued.fetch_add(1, SeqCst) + 1;
            return Answer::ok(format!("{{\"token\":\"t{token}\"}}").as_bytes());
        }
        // Each token is good for one request.
        let token = format!("Bearer t{}", issued.load(SeqCst));
        if request.header("authorization") != Some(&token) || used.fetch_add(1, SeqCst) > 0 {
            return Answer::unauthorized(&["Bearer realm=/token"]);
        }
        if served.is_layer(request) && request.header("range").is_none() {
            let length = served.layer.len().to_string();
            return Answer::cut("200 OK", &[("Content-Length", &length)], &served.layer[..100_000]);
        }
        served.serve(request)
    })
    .await;
    Node::new(&[plain(&registry.host())]).fetch(&registry.host(), &image).await.unwrap();
    // Manifest, config and two parts of the layer: a challenge, a token and a request each.
    assert_eq!(registry.count(), 4 * 3);
}

/// Starts a registry with TLS whose challenge names a token service on another port.
async fn with_token_service(image: &Arc<Image>) -> (Server, Server, String) {
    let (ca, tls) = certificate(false);
    let (socket, service) = (Socket::bind("127.0.0.1:0").await, Socket::bind("127.0.0.1:0").await);
    let realm = format!("https://{}/token", service.host());
    let served = image.clone();
    let registry = socket.serve(Some(tls.clone()), move |request| {
        demand_token(&served, request, &[&format!("Bearer realm=\"{realm}\"")])
    });
    let service = service.serve(Some(tls), |_| Answer::ok(b"{\"token\":\"abc\"}"));
    (registry, service, ca)
}

#[tokio::test]
async fn a_password_leaves_its_registry_only_if_node_toml_says_so() {
    let image = Image::new();
    let (registry, service, ca) = with_token_service(&image).await;
    let own = with_password(&registry.host(), &ca);
    let other = with_ca(&service.host(), &ca);
    let error = Node::new(&[own.clone(), other]).fetch(&registry.host(), &image).await.unwrap_err();
    let key = format!("add {:?} to token-hosts", service.host());
    assert!(error.contains(&key) && error.contains("node.toml"), "{error}");
    assert_eq!((registry.count(), service.count()), (1, 0));
    // A host in token-hosts has the registry's certificates.
    let allowed = Registry { token_hosts: vec![service.host()], ..own };
    Node::new(&[allowed]).fetch(&registry.host(), &image).await.unwrap();
    assert_eq!(service.authorizations(), [Some(PASSWORD.to_owned())]);
    // The registry sees the token and never the password.
    let seen: Vec<_> = registry.authorizations().into_iter().flatten().collect();
    assert_eq!(seen, vec!["Bearer abc"; 3]);
}

#[tokio::test]
async fn without_a_password_tokens_may_come_from_elsewhere() {
    let image = Image::new();
    let (registry, service, ca) = with_token_service(&image).await;
    let settings = [with_ca(&registry.host(), &ca), with_ca(&service.host(), &ca)];
    Node::new(&settings).fetch(&registry.host(), &image).await.unwrap();
    assert_eq!(service.authorizations(), [None]);
}

#[tokio::test]
async fn a_realm_is_not_followed_out_of_tls() {
    let image = Image::new();
    let service = Server::start(|_| Answer::ok(b"{\"token\":\"abc\"}")).await;
    let (ca, tls) = certificate(false);
    let challenge = format!("Bearer realm=\"http://{}/token\"", service.host());
    let socket = Socket::bind("127.0.0.1:0").await;
    let registry = socket.serve(Some(tls), move |_| Answer::unauthorized(&[&challenge]));
    for settings in [with_ca(&registry.host(), &ca), with_password(&registry.host(), &ca)] {
        let error = Node::new(&[settings]).fetch(&registry.host(), &image).await.unwrap_err();
        assert!(error.contains("would leave TLS"), "{error}");
    }
    assert_eq!(service.count(), 0);
}

/// Starts a registry with a password, storage that it redirects blobs to, and a host that the
/// storage names as its token service.
async fn with_hostile_storage(image: &Arc<Image>) -> ([Server; 3], Vec<Registry>) {
    let (ca, tls) = certificate(false);
    let [first, second, third] = [
        Socket::bind("127.0.0.1:0").await,
        Socket::bind("127.0.0.1:0").await,
        Socket::bind("127.0.0.1:0").await,
    ];
    let hosts = [first.host(), second.host(), third.host()];
    // Even if the storage and the other host have passwords of their own.
    let settings = hosts.iter().map(|host| with_password(host, &ca)).collect();
    let (served, to) = (image.clone(), hosts[1].clone());
    let registry = first.serve(Some(tls.clone()), move |request| {
        if request.is_for_a_blob() {
            Answer::redirect("307 Temporary Redirect", &format!("https://{to}{}", request.target))
        } else {
            served.serve(request)
        }
    });
    let realm = format!("https://{}/t", hosts[2]);
    let storage = second.serve(Some(tls.clone()), move |_| {
        let bearer = format!("Bearer realm=\"{realm}\",service=\"x\"");
        Answer::unauthorized(&[&bearer, "Basic realm=\"r\""])
    });
    let evil = third.serve(Some(tls), |_| Answer::ok(b"{\"token\":\"stolen\"}"));
    ([registry, storage, evil], settings)
}

#[tokio::test]
async fn a_host_behind_a_redirect_gets_no_password() {
    let image = Image::new();
    let ([registry, storage, evil], settings) = with_hostile_storage(&image).await;
    let error = Node::new(&settings).fetch(&registry.host(), &image).await.unwrap_err();
    assert!(error.contains("a redirect led to this host, which rejects"), "{error}");
    assert_eq!(evil.authorizations(), [None]);
    // The anonymous token goes to the host whose challenge it answers.
    assert_eq!(storage.authorizations(), [None, Some("Bearer stolen".into())]);
    assert!(registry.authorizations().iter().all(Option::is_none));
}

#[tokio::test]
async fn a_password_is_not_sent_along_a_redirect_of_the_token_service() {
    let image = Image::new();
    let (ca, tls) = certificate(false);
    let socket = Socket::bind("127.0.0.1:0").await;
    let thief = Socket::bind("127.0.0.1:0").await;
    let to = format!("https://{}/t", thief.host());
    let registry = socket.serve(Some(tls.clone()), move |request| {
        if request.target.starts_with("/token") {
            Answer::redirect("307 Temporary Redirect", &to)
        } else {
            Answer::unauthorized(&["Bearer realm=/token"])
        }
    });
    let thief = thief.serve(Some(tls), |_| Answer::ok(b"{\"token\":\"abc\"}"));
    let settings = [with_password(&registry.host(), &ca), with_ca(&thief.host(), &ca)];
    Node::new(&settings).fetch(&registry.host(), &image).await.unwrap_err();
    assert_eq!(thief.authorizations(), [None]);
}

#[tokio::test]
async fn a_mirror_does_not_get_the_password_of_its_registry() {
    let image = Image::new();
    let (ca, tls) = certificate(false);
    let (mirror, socket) = (Socket::bind("127.0.0.1:0").await, Socket::bind("127.0.0.1:0").await);
    let mirror = mirror.serve(Some(tls.clone()), |_| Answer::unauthorized(&["Basic realm=\"r\""]));
    let served = image.clone();
    let registry = socket.serve(Some(tls), move |request| {
        if request.header("authorization") == Some(PASSWORD) {
            served.serve(request)
        } else {
            Answer::unauthorized(&["Basic realm=\"r\""])
        }
    });
    let own = with_password(&registry.host(), &ca);
    let settings = Registry { mirrors: vec![mirror.host()], ..own };
    Node::new(&[settings]).fetch(&registry.host(), &image).await.unwrap();
    assert!(mirror.count() == 3 && mirror.authorizations().iter().all(Option::is_none));
    assert_eq!(registry.count(), 3 + 1);
}
