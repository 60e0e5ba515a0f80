//! A relay's HTTP server: bounded in connections, in time and in what is made at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Ask, Relay};

/// Where nodes ask.
pub const PATH: &str = "/v1/bundle";
/// So many bundles are made at once; whoever comes then waits for his turn.
const AT_ONCE: usize = 4;
/// Connections at once; more are not taken.
const MOST_CONNECTIONS: usize = 256;
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Of a whole connection: nodes ask once and go.
const CONNECTION_WITHIN: Duration = Duration::from_secs(120);

/// Answers without end.
pub async fn serve(relay: Arc<Relay>, listener: TcpListener) -> Result<()> {
    let (turns, places) =
        (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (relay, turns) = (relay.clone(), turns.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                answer(relay.clone(), turns.clone(), request)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_WITHIN, connection).await;
            drop(place);
        });
    }
}

async fn answer(
    relay: Arc<Relay>,
    turns: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    if request.method() != Method::GET || request.uri().path() != PATH {
        return problem(
            StatusCode::NOT_FOUND,
            "expected GET /v1/bundle?checkpoint=ROOT|period=NUMBER&digest=DIGEST…",
        );
    }
    let ask = match Ask::parse(request.uri().query().unwrap_or_default()) {
        Ok(ask) => ask,
        Err(why) => return problem(StatusCode::BAD_REQUEST, &why),
    };
    let turn = turns.acquire_owned().await?;
    let made = tokio::task::spawn_blocking(move || {
        // Whoever goes away does not end the work: his turn lasts as long as it does.
        let _turn = turn;
        relay.bundle(&ask).and_then(|bundle| Ok(serde_json::to_vec(&bundle)?))
    });
    let made = made.await?;
    match made {
        Ok(bytes) => Ok(Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(bytes))?),
        Err(error) => {
            eprintln!("{error:#}");
            // An address of a node can have a secret in it.
            problem(
                StatusCode::BAD_GATEWAY,
                "the relay cannot make this bundle now; what it prints says why",
            )
        }
    }
}

fn problem(status: StatusCode, message: &str) -> Result<Response<Full<Bytes>>> {
    let body = serde_json::json!({ "message": message }).to_string();
    Ok(Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(body))?)
}
