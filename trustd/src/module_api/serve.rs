//! The thread of one module's socket, its connections and timeouts.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use api::ErrorCode;
use api::module::BatchAnswers;
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
use serde_json::value::RawValue;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tower_service::Service as _;

use super::caller::Caller;
use super::peer::{self, PeerError};
use super::service::Service;
use crate::audit::EventKind;
use crate::rest::drain::drain_bodies;
use crate::rest::{Answer, ApiError, unknown_call};
use crate::util::error_chain::error_chain;

/// Size of a request.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Bytes of a request that are discarded after its answer.
const MAX_DRAINED_BYTES: usize = 8 << 20;
/// Connections of one module. Further ones wait until one of these ends.
const MAX_CONNECTIONS: usize = 16;
/// Requests of one module that are read or answered at the same time. Together with the size of a
/// request, this bounds the module's memory in trustd.
const MAX_CONCURRENT_REQUESTS: usize = 4;
/// Time from the head of a request to its answer, and idle time of a connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, which most likely means that there are no file descriptors left.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Increment of the nice value: lower priority than the thread that reconciles modules, higher than
/// background work.
const NICE_INCREMENT: i32 = 5;
const OPENAPI: &str = include_str!("../../openapi-module.json");

/// The caller at the other end of a connection, or why it is not answered.
type Peer = Result<Arc<Caller>, Arc<PeerError>>;

/// Starts the thread of a module's socket. It ends when the returned handle is dropped.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn start(
    listener: StdListener,
    service: Service,
) -> std::io::Result<oneshot::Sender<()>> {
    let (handle, mut dropped) = oneshot::channel();
    let name = format!("m {}", service.module());
    std::thread::Builder::new().name(name).spawn(move || {
        // On Linux this applies to the calling thread only (setpriority(2), "C library/kernel
        // differences").
        let _ = rustix::process::setpriority_process(None, NICE_INCREMENT);
        let module = service.module().to_owned();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                logging::error!("module {module}: cannot start a runtime for its socket: {error}");
                return;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                _ = &mut dropped => {}
                error = accept_forever(listener, Arc::new(service)) => {
                    logging::error!("module {module}: cannot listen on its socket: {error}");
                }
            }
        });
    })?;
    Ok(handle)
}

/// Accepts connections. Returns only if the socket cannot be used.
async fn accept_forever(listener: StdListener, service: Arc<Service>) -> std::io::Error {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let router = router(service.clone());
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let requests = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return std::io::Error::other("the semaphore of the connections is closed");
        };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                logging::warn!("module {}: cannot accept: {error}", service.module());
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                continue;
            }
        };
        let (service, router, requests) = (service.clone(), router.clone(), requests.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let container = peer::container_of(&connection);
            let peer = match container.and_then(|id| service.identify(&id)) {
                Ok(caller) => Ok(Arc::new(caller)),
                // No process is left that could read an answer.
                Err(PeerError::Ended) => return,
                Err(error) => {
                    let (kind, reason) = (EventKind::ModuleSocketDenied, error_chain(&error));
                    service.record_denial(kind, "reason", reason).await;
                    Err(Arc::new(error))
                }
            };
            serve(connection, peer, router, requests).await;
        });
    }
}

/// Serves one connection until it ends or the gate of its container is closed.
async fn serve(connection: UnixStream, peer: Peer, router: Router, requests: Arc<Semaphore>) {
    let gate = peer.as_ref().ok().map(|caller| caller.gate.clone());
    let closed = {
        let gate = gate.clone();
        async move {
            match gate {
                Some(gate) => gate.closed().await,
                None => std::future::pending().await,
            }
        }
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (mut router, requests, gate) = (router.clone(), requests.clone(), gate.clone());
        request.extensions_mut().insert(peer.clone());
        async move {
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, async {
                let _permit = requests.acquire().await;
                router.call(request).await
            });
            let answer = answer.await.unwrap_or_else(|_| Ok(timeout_answer()));
            // The gate can be closed while an answer is computed, which does not yield.
            if gate.is_some_and(|gate| gate.is_closed()) {
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted));
            }
            let Ok(answer) = answer;
            Ok(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        biased;
        () = closed => {}
        // A broken connection concerns the module only.
        _ = serving => {}
    }
}

fn timeout_answer() -> Response {
    let seconds = REQUEST_TIMEOUT.as_secs();
    let message = format!("the request and its answer took longer than {seconds} s");
    ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Late, message).into_response()
}

fn router(service: Arc<Service>) -> Router {
    let router = Router::new()
        .route("/v1/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)))
        .route("/v1/identity", get(identity))
        .route("/v1/batch", post(batch))
        .route("/v1/{*call}", post(call))
        .fallback(unknown_call)
        .method_not_allowed_fallback(unknown_call)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES));
    drain_bodies(router, MAX_DRAINED_BYTES).with_state(service)
}

fn require_caller(peer: Peer) -> Result<Arc<Caller>, ApiError> {
    peer.map_err(|error| {
        let reason = error_chain(&*error);
        let message = format!("only this module's container is answered here: {reason}");
        ApiError::new(StatusCode::FORBIDDEN, ErrorCode::UnknownPeer, message)
    })
}

type Body = Result<Bytes, BytesRejection>;

fn to_text(body: &Body) -> Result<&str, ApiError> {
    match body {
        Ok(bytes) => std::str::from_utf8(bytes)
            .map_err(|_| ApiError::bad_request("the request is not UTF-8")),
        Err(rejection) => {
            let message = rejection.body_text();
            Err(ApiError::new(rejection.status(), ErrorCode::BadRequest, message))
        }
    }
}

async fn identity(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
) -> Answer<Box<RawValue>> {
    Ok(Json(service.call(&*require_caller(peer)?, "identity", "{}").await?))
}

async fn call(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    name: Result<Path<String>, PathRejection>,
    body: Body,
) -> Answer<Box<RawValue>> {
    let caller = require_caller(peer)?;
    let Ok(Path(name)) = name else { return Err(unknown_call().await) };
    Ok(Json(service.call(&caller, &name, to_text(&body)?).await?))
}

async fn batch(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Answer<BatchAnswers> {
    let caller = require_caller(peer)?;
    Ok(Json(service.batch(&caller, to_text(&body)?).await?))
}
