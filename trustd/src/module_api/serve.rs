//! The thread of one module, its connections and its deadlines.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tower_service::Service as _;

use super::peer::{self, NoContainer};
use super::{Caller, Service};
use crate::rest::{Answer, ApiError, unknown};

const LARGEST_REQUEST: usize = 1 << 20;
/// Further ones wait until one of these ends.
const MOST_CONNECTIONS: usize = 16;
/// Requests of one module that are read or answered at the same time; with the size of one this
/// bounds what they take.
const AT_ONCE: usize = 4;
/// From a request's head to its answer, and how long a connection may wait for its next request.
const WITHIN: Duration = Duration::from_secs(30);
/// Behind the thread that watches the containers, before what only fetches.
const NICE: i32 = 5;
const OPENAPI: &str = include_str!("../../openapi-module.json");

/// Who connected; or why it gets no answers.
type Peer = Result<Arc<Caller>, String>;

/// Serves until what is returned is dropped.
pub(super) fn start(
    listener: StdListener,
    service: Service,
) -> std::io::Result<oneshot::Sender<()>> {
    let (keep, mut ended) = oneshot::channel();
    std::thread::Builder::new().name(format!("m {}", service.module)).spawn(move || {
        // On Linux it is the calling thread's (setpriority(2), "C library/kernel differences").
        let _ = rustix::process::setpriority_process(None, NICE);
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return println!("module {}: no runtime for its socket: {error}", service.module),
        };
        runtime.block_on(async {
            tokio::select! {
                _ = &mut ended => {}
                error = accept(listener, Arc::new(service)) => println!("a module's socket ends: {error}"),
            }
        });
    })?;
    Ok(keep)
}

/// Comes back only if there is no socket to accept from.
async fn accept(listener: StdListener, service: Arc<Service>) -> std::io::Error {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let router = router(service.clone());
    let (room, working) =
        (Arc::new(Semaphore::new(MOST_CONNECTIONS)), Arc::new(Semaphore::new(AT_ONCE)));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return std::io::Error::other("the room is closed");
        };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                // Out of descriptors, most likely: others must end first.
                println!("module {}: {error}", service.module);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (service, router, working) = (service.clone(), router.clone(), working.clone());
        tokio::spawn(async move {
            let _place = place;
            let peer = match peer::container(&connection) {
                Ok(container) => service.caller(&container).map(Arc::new),
                Err(NoContainer::Other(problem)) => Err(problem),
                // There is nobody to be answered any more.
                Err(NoContainer::Gone) => return,
            };
            if let Err(reason) = &peer {
                service.refuse("module-socket-denied", "reason", reason.clone()).await;
            }
            serve(connection, peer, router, working).await;
        });
    }
}

async fn serve(connection: UnixStream, peer: Peer, router: Router, working: Arc<Semaphore>) {
    let answer = service_fn(move |mut request: Request<Incoming>| {
        let (mut router, working) = (router.clone(), working.clone());
        request.extensions_mut().insert(peer.clone());
        async move {
            let answered = tokio::time::timeout(WITHIN, async {
                let _turn = working.acquire().await;
                router.call(request).await
            });
            answered.await.unwrap_or_else(|_| Ok(late()))
        }
    });
    // What goes wrong with a connection is the module's affair.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(WITHIN)
        .serve_connection(TokioIo::new(connection), answer)
        .await;
}

fn late() -> Response {
    let message = format!("the request and its answer took longer than {} s", WITHIN.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "late", message).into_response()
}

fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)))
        .route("/v1/identity", get(identity))
        .route("/v1/batch", post(batch))
        .route("/v1/{*call}", post(single))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(service)
}

fn known(peer: Peer) -> Result<Arc<Caller>, ApiError> {
    peer.map_err(|reason| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "unknown-peer",
            format!("only this module's container is answered here: {reason}"),
        )
    })
}

type Body = Result<Bytes, BytesRejection>;

fn text(body: &Body) -> Result<&str, ApiError> {
    match body {
        Ok(bytes) => {
            std::str::from_utf8(bytes).map_err(|_| ApiError::request("the request is not UTF-8"))
        }
        Err(rejection) => {
            Err(ApiError::new(rejection.status(), "bad-request", rejection.body_text()))
        }
    }
}

async fn identity(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
) -> Answer<Value> {
    Ok(Json(service.call(&*known(peer)?, "identity", "{}").await?))
}

async fn single(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    name: Result<Path<String>, PathRejection>,
    body: Body,
) -> Answer<Value> {
    let caller = known(peer)?;
    let Ok(Path(name)) = name else { return Err(unknown().await) };
    Ok(Json(service.call(&caller, &name, text(&body)?).await?))
}

async fn batch(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Answer<Value> {
    let caller = known(peer)?;
    Ok(Json(service.batch(&caller, text(&body)?).await?))
}
