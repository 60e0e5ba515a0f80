//! HTTP server of a relay, with bounds on connections, time and concurrent work.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::query::BundleRequest;
use super::relay::Relay;

/// Path of the URL at which nodes request bundles.
pub const BUNDLE_PATH: &str = "/v1/bundle";
/// Bundles that are made at the same time; further requests wait.
const MAX_CONCURRENT_BUNDLES: usize = 4;
/// Open connections; further ones are closed.
const MAX_CONNECTIONS: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Lifetime of a connection: a node sends one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of a body that are read, and time for it, before a request is rejected. Otherwise the
/// connection is closed while the client still sends, and the answer can be lost.
const MAX_IGNORED_BYTES: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the system could not accept a connection.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Serves requests for bundles and never returns.
pub async fn serve(relay: Arc<Relay>, listener: TcpListener) -> Infallible {
    let bundles = Arc::new(Semaphore::new(MAX_CONCURRENT_BUNDLES));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
            continue;
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (relay, bundles) = (relay.clone(), bundles.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                answer(relay.clone(), bundles.clone(), request)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

async fn answer(
    relay: Arc<Relay>,
    bundles: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    if request.method() != Method::GET || request.uri().path() != BUNDLE_PATH {
        let rest = Limited::new(request.into_body(), MAX_IGNORED_BYTES).collect();
        let _ = tokio::time::timeout(BODY_TIMEOUT, rest).await;
        return error_response(
            StatusCode::NOT_FOUND,
            "expected GET /v1/bundle?checkpoint=ROOT|period=NUMBER&digest=DIGEST…",
        );
    }
    let query = request.uri().query().unwrap_or_default();
    let request = match BundleRequest::parse(query) {
        Ok(request) => request,
        Err(error) => return error_response(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let permit = bundles.acquire_owned().await?;
    let bundle = tokio::task::spawn_blocking(move || {
        // The work continues after the client disconnects, so the permit lasts as long as the work.
        let _permit = permit;
        relay.bundle(&request).and_then(|bundle| Ok(serde_json::to_vec(&bundle)?))
    });
    match bundle.await? {
        Ok(bytes) => Ok(Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(bytes))?),
        Err(error) => {
            eprintln!("cannot make a bundle: {error:#}");
            // The reason can name an address with a secret in it, so it stays here.
            error_response(
                StatusCode::BAD_GATEWAY,
                "the relay cannot make this bundle now; its own log has the reason",
            )
        }
    }
}

fn error_response(status: StatusCode, message: &str) -> Result<Response<Full<Bytes>>> {
    let body = serde_json::json!({ "message": message }).to_string();
    Ok(Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(body))?)
}
