//! The second lock: an authorization plugin that lets through what trustd itself just asked for,
//! once, and nothing else.
//!
//! The engine shows every request to this plugin before it acts (Docker Engine documentation,
//! "Access authorization plugin"). Invariants: a ticket names method, address and body of one
//! request and is gone once it was shown; there is no other way to a yes; nothing that a request
//! says about itself is interpreted. With trustd away, the engine refuses everything.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bollard::BollardRequest;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Either};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::UnixListener;

/// As Go's HTTP server writes header names, which is how they reach the plugin.
const HEADER: &str = "X-Basalt-Ticket";
/// A ticket that was not shown by then never will be.
const VALID: Duration = Duration::from_secs(60);
/// The engine shows at most 1 MiB of a body; as base64 in JSON that is a third more.
const LARGEST_QUESTION: usize = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
struct Ticket {
    method: String,
    uri: String,
    /// SHA-256 of the body, of those that the engine shows: JSON, not archives.
    body: Option<[u8; 32]>,
}

/// The tickets that were made and not shown yet.
#[derive(Default)]
pub struct Tickets {
    open: Mutex<HashMap<String, (Ticket, Instant)>>,
    refused: std::sync::atomic::AtomicU64,
}

impl Tickets {
    /// Gives a request its ticket.
    pub fn stamp(&self, mut request: BollardRequest) -> BollardRequest {
        let mut nonce = [0; 32];
        // Without a ticket the engine refuses the request, which is what should happen without
        // random numbers.
        if rustls::crypto::ring::default_provider().secure_random.fill(&mut nonce).is_err() {
            return request;
        }
        let nonce = measure::hex(&nonce);
        let body = match request.body() {
            Either::Left(full) => {
                full.clone().collect().now_or_never().and_then(Result::ok).map(|b| b.to_bytes())
            }
            // An archive. Named JSON, as the client names everything, the beginning of it would be
            // shown.
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
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (_, made)| now.duration_since(*made) < VALID);
        open.insert(nonce.clone(), (ticket, now));
        if let Ok(value) = HeaderValue::from_str(&nonce) {
            request.headers_mut().insert(HeaderName::from_static("x-basalt-ticket"), value);
        }
        request
    }

    /// Takes the ticket that a request shows; whatever it turns out to be, it cannot be shown
    /// again.
    fn take(&self, question: &Question) -> Result<(), &'static str> {
        let shown = question
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(HEADER))
            .map(|(_, value)| value);
        let shown = shown.ok_or("it has no ticket")?;
        let found = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(shown);
        let (ticket, made) = found.ok_or("its ticket was never made, or shown before")?;
        if made.elapsed() >= VALID {
            return Err("its ticket is too old");
        }
        let body = match &question.body {
            Some(text) if !text.is_empty() => Some(
                Sha256::digest(BASE64_STANDARD.decode(text).map_err(|_| "its body is not base64")?)
                    .into(),
            ),
            _ => None,
        };
        if ticket.method != question.method || ticket.uri != question.uri {
            return Err("its ticket is for another request");
        }
        if ticket.body != body {
            return Err("its ticket is for another body");
        }
        Ok(())
    }

    /// How many requests were refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[derive(Deserialize)]
struct Question {
    #[serde(rename = "RequestMethod")]
    method: String,
    #[serde(rename = "RequestUri", alias = "RequestURI")]
    uri: String,
    #[serde(rename = "RequestBody", default)]
    body: Option<String>,
    #[serde(rename = "RequestHeaders", default)]
    headers: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Verdict {
    allow: bool,
    msg: String,
}

/// Answers the engine on a socket, without end.
pub fn serve(tickets: Arc<Tickets>, socket: &Path) -> Result<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/Plugin.Activate", post(async || Json(json!({ "Implements": ["authz"] }))))
        .route("/AuthZPlugin.AuthZReq", post(request))
        // What the engine answers to a request that had a ticket is trustd's to read.
        .route(
            "/AuthZPlugin.AuthZRes",
            post(async || Json(Verdict { allow: true, msg: String::new() })),
        )
        .layer(DefaultBodyLimit::max(LARGEST_QUESTION))
        .with_state(tickets);
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(())
}

/// The engine names no content type, so the body is taken as it is.
async fn request(State(tickets): State<Arc<Tickets>>, body: axum::body::Bytes) -> Json<Verdict> {
    let question: Result<Question, _> = serde_json::from_slice(&body);
    let verdict = match &question {
        Ok(question) => tickets
            .take(question)
            .map_err(|why| format!("{} {}: {why}", question.method, question.uri)),
        Err(error) => Err(format!("a question that is none: {error}")),
    };
    Json(match verdict {
        Ok(()) => Verdict { allow: true, msg: String::new() },
        Err(why) => {
            tickets.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            println!("engine: refused a request that is not trustd's: {why}");
            Verdict { allow: false, msg: format!("only trustd may use this engine: {why}") }
        }
    })
}

/// For the tests of other modules: what the engine would show of a request.
#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;
    use bytes::Bytes;

    fn request(uri: &str, body: &str) -> BollardRequest {
        let request =
            Request::post(format!("unix://x{uri}")).header("content-type", "application/json");
        request.body(bollard::body_full(Bytes::from(body.to_owned()))).unwrap()
    }

    fn shown(request: &BollardRequest, body: &str) -> Question {
        let header = request.headers()["x-basalt-ticket"].to_str().unwrap().to_owned();
        let value = json!({
            "RequestMethod": "POST", "RequestUri": request.uri().path_and_query().unwrap().as_str(),
            "RequestBody": BASE64_STANDARD.encode(body), "RequestHeaders": { "X-Basalt-Ticket": header },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_ticket_is_good_once_for_one_request() {
        let tickets = Tickets::default();
        let sent = tickets.stamp(request("/v1.45/containers/create?name=a", "{}"));
        let good = shown(&sent, "{}");
        assert_eq!(tickets.take(&good), Ok(()));
        assert!(tickets.take(&good).unwrap_err().contains("shown before"));

        let other = |change: fn(&mut Question), says: &str| {
            let mut question =
                shown(&tickets.stamp(request("/v1.45/containers/create?name=a", "{}")), "{}");
            change(&mut question);
            assert!(tickets.take(&question).unwrap_err().contains(says), "{says}");
        };
        other(|q| q.uri = "/v1.45/containers/create?name=b".into(), "another request");
        other(|q| q.method = "GET".into(), "another request");
        other(|q| q.body = Some(BASE64_STANDARD.encode("{\"Privileged\":true}")), "another body");
        other(|q| q.body = None, "another body");
        other(|q| q.body = Some("%".into()), "base64");
        other(|q| q.headers.clear(), "no ticket");
        other(|q| *q.headers.get_mut("X-Basalt-Ticket").unwrap() = "00".into(), "never made");
        // Shown with something else, a ticket is gone too.
        let sent = tickets.stamp(request("/a", "{}"));
        let mut wrong = shown(&sent, "{}");
        wrong.uri = "/b".into();
        assert!(tickets.take(&wrong).is_err());
        assert!(tickets.take(&shown(&sent, "{}")).is_err());
    }
}
