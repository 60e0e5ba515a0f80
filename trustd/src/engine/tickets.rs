//! The engine's authorization plugin: it allows each request that trustd just made, once, and
//! denies all others.
//!
//! The engine shows every request to this plugin before it acts (Docker Engine documentation,
//! "Access authorization plugin"). If trustd does not run, the engine denies every request.
//!
//! Invariants:
//! - A ticket stands for method, address and body of one request.
//! - A ticket is invalid once it was presented, whatever the answer was.
//! - Only a ticket makes the plugin allow a request. The plugin interprets nothing else in it.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bollard::BollardRequest;
use futures_util::{FutureExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Either};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::UnixListener;

use super::error::EngineError;
use crate::rest::drain::drain_bodies;
use crate::util::lock::lock;

/// Header of the nonce, in the form in which Go's HTTP server passes names to the plugin.
const HEADER: &str = "X-Basalt-Ticket";
/// Time after which a ticket expires. The engine presents it as soon as it gets the request.
const TICKET_LIFETIME: Duration = Duration::from_secs(60);
/// Longest request to the plugin. The engine shows at most 1 MiB of a body, which as base64 in JSON
/// is a third more.
const MAX_AUTHZ_REQUEST_BYTES: usize = 4 << 20;
/// Bytes of a request that are discarded after its answer: a denial that is not read is repeated.
const MAX_DRAINED_BYTES: usize = 64 << 20;

#[derive(Debug, PartialEq, Eq)]
struct Ticket {
    method: String,
    uri: String,
    /// SHA-256 of the body. The engine shows bodies of JSON and hides archives.
    body: Option<[u8; 32]>,
}

/// Tickets that were not presented yet, by nonce, and the number of denied requests.
#[derive(Default)]
pub struct Tickets {
    pending: Mutex<HashMap<String, (Ticket, Instant)>>,
    denied: AtomicU64,
}

impl Tickets {
    /// Adds a ticket to a request.
    pub fn stamp(&self, mut request: BollardRequest) -> BollardRequest {
        let mut nonce = [0; 32];
        // Without random numbers the request gets no ticket, so the plugin denies it.
        if rustls::crypto::ring::default_provider().secure_random.fill(&mut nonce).is_err() {
            return request;
        }
        let nonce = measure::hex(&nonce);
        let body = match request.body() {
            Either::Left(full) => {
                full.clone().collect().now_or_never().and_then(Result::ok).map(|b| b.to_bytes())
            }
            // The body is an archive, which the client calls JSON. The engine would show the first
            // part of it to the plugin.
            Either::Right(_) => {
                request
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
                None
            }
        };
        let ticket = Ticket {
            method: request.method().to_string(),
            uri: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            body: body.filter(|b| !b.is_empty()).map(|b| Sha256::digest(&b).into()),
        };
        let now = Instant::now();
        let mut pending = lock(&self.pending);
        pending.retain(|_, (_, issued)| now.duration_since(*issued) < TICKET_LIFETIME);
        pending.insert(nonce.clone(), (ticket, now));
        if let Ok(value) = HeaderValue::from_str(&nonce) {
            request.headers_mut().insert(HeaderName::from_static("x-basalt-ticket"), value);
        }
        request
    }

    /// Verifies the ticket that a request presents. The ticket is invalid afterwards.
    fn redeem(&self, request: &AuthzRequest) -> Result<(), &'static str> {
        let nonce = request
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(HEADER))
            .map(|(_, value)| value);
        let nonce = nonce.ok_or("it has no ticket")?;
        let found = lock(&self.pending).remove(nonce);
        let (ticket, issued) = found.ok_or("its ticket was never issued, or was used before")?;
        if issued.elapsed() >= TICKET_LIFETIME {
            return Err("its ticket has expired");
        }
        let body = match &request.body {
            Some(text) if !text.is_empty() => Some(
                Sha256::digest(BASE64_STANDARD.decode(text).map_err(|_| "its body is not base64")?)
                    .into(),
            ),
            _ => None,
        };
        if ticket.method != request.method || ticket.uri != request.uri {
            return Err("its ticket is for another request");
        }
        if ticket.body != body {
            return Err("its ticket is for another body");
        }
        Ok(())
    }

    /// Returns the number of requests that were denied so far.
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }
}

/// Request to the plugin (Docker Engine documentation, "Access authorization plugin").
#[derive(Deserialize)]
struct AuthzRequest {
    #[serde(rename = "RequestMethod")]
    method: String,
    #[serde(rename = "RequestUri", alias = "RequestURI")]
    uri: String,
    #[serde(rename = "RequestBody", default)]
    body: Option<String>,
    #[serde(rename = "RequestHeaders", default)]
    headers: BTreeMap<String, String>,
}

/// Answer of the plugin.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AuthzResponse {
    allow: bool,
    msg: String,
}

impl AuthzResponse {
    fn allow() -> Self {
        Self { allow: true, msg: String::new() }
    }
}

/// Starts to answer the engine's authorization requests on a socket.
///
/// # Errors
///
/// Returns [`EngineError::PluginSocket`] if the socket cannot be created.
pub fn serve_plugin(tickets: Arc<Tickets>, socket: &Path) -> Result<(), EngineError> {
    let failed = |source| EngineError::PluginSocket { path: socket.to_owned(), source };
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let router = Router::new()
        .route("/Plugin.Activate", post(async || Json(json!({ "Implements": ["authz"] }))))
        .route("/AuthZPlugin.AuthZReq", post(authorize))
        .route("/AuthZPlugin.AuthZRes", post(allow_response))
        .layer(DefaultBodyLimit::max(MAX_AUTHZ_REQUEST_BYTES));
    let router = drain_bodies(router, MAX_DRAINED_BYTES).with_state(tickets);
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(())
}

/// Allows or denies one request. The engine sends no content type, so the body is parsed here.
async fn authorize(State(tickets): State<Arc<Tickets>>, body: Bytes) -> Json<AuthzResponse> {
    let request: Result<AuthzRequest, _> = serde_json::from_slice(&body);
    let result = match &request {
        Ok(request) => tickets
            .redeem(request)
            .map_err(|reason| format!("{} {}: {reason}", request.method, request.uri)),
        Err(error) => Err(format!("malformed authorization request: {error}")),
    };
    Json(match result {
        Ok(()) => AuthzResponse::allow(),
        Err(reason) => {
            tickets.denied.fetch_add(1, Ordering::Relaxed);
            logging::warn!("denied a request to the engine that trustd did not make: {reason}");
            AuthzResponse {
                allow: false,
                msg: format!("only trustd may use this engine: {reason}"),
            }
        }
    })
}

/// Allows the engine's answer to a request that had a ticket: it goes to trustd.
///
/// The body is read to its end first. After an answer in the middle of a request, the server closes
/// the connection, and the engine reports a broken pipe and sends the request again a second later.
async fn allow_response(body: Body) -> Json<AuthzResponse> {
    let mut body = body.into_data_stream();
    while let Some(Ok(_)) = body.next().await {}
    Json(AuthzResponse::allow())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    fn request(uri: &str, body: &str) -> BollardRequest {
        let request =
            Request::post(format!("unix://x{uri}")).header("content-type", "application/json");
        request.body(bollard::body_full(Bytes::from(body.to_owned()))).unwrap()
    }

    fn presented(request: &BollardRequest, body: &str) -> AuthzRequest {
        let nonce = request.headers()["x-basalt-ticket"].to_str().unwrap().to_owned();
        let value = json!({
            "RequestMethod": "POST",
            "RequestUri": request.uri().path_and_query().unwrap().as_str(),
            "RequestBody": BASE64_STANDARD.encode(body),
            "RequestHeaders": { "X-Basalt-Ticket": nonce },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_ticket_is_valid_once_and_for_one_request() {
        let tickets = Tickets::default();
        let sent = tickets.stamp(request("/v1.45/containers/create?name=a", "{}"));
        let good = presented(&sent, "{}");
        assert_eq!(tickets.redeem(&good), Ok(()));
        assert!(tickets.redeem(&good).unwrap_err().contains("used before"));

        let denied = |change: fn(&mut AuthzRequest), message: &str| {
            let mut request =
                presented(&tickets.stamp(request("/v1.45/containers/create?name=a", "{}")), "{}");
            change(&mut request);
            assert!(tickets.redeem(&request).unwrap_err().contains(message), "{message}");
        };
        denied(|r| r.uri = "/v1.45/containers/create?name=b".into(), "another request");
        denied(|r| r.method = "GET".into(), "another request");
        denied(|r| r.body = Some(BASE64_STANDARD.encode("{\"Privileged\":true}")), "another body");
        denied(|r| r.body = None, "another body");
        denied(|r| r.body = Some("%".into()), "base64");
        denied(|r| r.headers.clear(), "no ticket");
        denied(|r| *r.headers.get_mut("X-Basalt-Ticket").unwrap() = "00".into(), "never issued");
        // A ticket that was presented with another request is invalid too.
        let sent = tickets.stamp(request("/a", "{}"));
        let mut wrong = presented(&sent, "{}");
        wrong.uri = "/b".into();
        assert!(tickets.redeem(&wrong).is_err());
        assert!(tickets.redeem(&presented(&sent, "{}")).is_err());
    }
    /// Longer than the bytes that a server reads ahead.
    const RESPONSE_BODY_BYTES: usize = 2 << 20;

    #[tokio::test]
    async fn a_response_is_allowed_after_its_body_and_the_connection_stays_open() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("plugin.sock");
        serve_plugin(Arc::default(), &socket).unwrap();
        let mut engine = UnixStream::connect(&socket).await.unwrap();
        let head = format!(
            "POST /AuthZPlugin.AuthZRes HTTP/1.1\r\nhost: plugin\r\ncontent-length: {}\r\n\r\n",
            2 * RESPONSE_BODY_BYTES
        );
        let half = vec![b' '; RESPONSE_BODY_BYTES];
        let mut answer = [0; 4096];
        for _ in 0..3 {
            engine.write_all(head.as_bytes()).await.unwrap();
            engine.write_all(&half).await.unwrap();
            let early = engine.read(&mut answer);
            let early = tokio::time::timeout(Duration::from_millis(100), early).await;
            assert!(early.is_err(), "the plugin answered before the end of the body");
            engine.write_all(&half).await.unwrap();
            let length = engine.read(&mut answer).await.unwrap();
            let text = String::from_utf8_lossy(&answer[..length]);
            assert!(
                text.starts_with("HTTP/1.1 200 OK") && text.contains("\"Allow\":true"),
                "{text}"
            );
        }
    }
}
