//! The routes for owners, on a Unix socket that only root and trustd can access, and over TLS for
//! pinned certificates.

use std::sync::Arc;

use api::ErrorCode;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::route::Route;
use super::state::{NodeState, OwnerState};
use super::{attest, common, ledger, modules, status};
use crate::rest::drain::drain_bodies;
use crate::rest::{ApiError, unknown_call};

/// Size of a request that is read into memory. Images are streamed.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// Bytes of a request that are discarded after its answer, such as the rest of an image that was
/// rejected.
const MAX_DRAINED_BYTES: usize = 256 << 20;

/// Returns the routes that every node has, with or without its root key.
pub(super) fn shared_routes() -> Vec<Route<Arc<NodeState>>> {
    attest::routes().into_iter().chain(common::routes()).collect()
}

/// Returns the routes of a node that has its root key.
fn owner_routes() -> Vec<Route<Arc<OwnerState>>> {
    status::routes().into_iter().chain(modules::routes()).chain(ledger::routes()).collect()
}

/// Returns the path and methods of every route. A test compares them with trustd/openapi.json.
pub fn list() -> Vec<(&'static str, &'static [&'static str])> {
    let shared = shared_routes().into_iter().map(|route| (route.path, route.methods));
    let owner = owner_routes().into_iter().map(|route| (route.path, route.methods));
    shared.chain(owner).collect()
}

/// Returns the router for owners of a node that has its root key.
pub fn router(state: Arc<OwnerState>) -> Router {
    let shared = Route::collect(shared_routes()).with_state(state.node.clone());
    let router = Route::collect(owner_routes()).with_state(state).merge(shared);
    guard(router.fallback(unknown_call).method_not_allowed_fallback(unknown_call))
}

/// Adds the checks that every request of an owner passes.
pub(super) fn guard<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    let router = router
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(axum::middleware::from_fn(reject_cross_site));
    drain_bodies(router, MAX_DRAINED_BYTES)
}

/// Rejects requests that a web page made. A browser presents the owner's certificate for every page
/// that sends a request to the node, so a page may only read.
async fn reject_cross_site(request: Request, next: Next) -> Response {
    if is_cross_site(request.method(), request.headers()) {
        let message = "a web page may only send GET requests; use trustctl";
        return ApiError::new(StatusCode::FORBIDDEN, ErrorCode::CrossSite, message).into_response();
    }
    next.run(request).await
}

/// Returns whether a page caused the request (Fetch Metadata Request Headers, section 2.3).
fn is_cross_site(method: &Method, headers: &HeaderMap) -> bool {
    let same_site =
        headers.get("sec-fetch-site").is_none_or(|site| site == "none" || site == "same-origin");
    method != Method::GET && (headers.contains_key("origin") || !same_site)
}
