//! The API of a locked node, which cannot unseal its root key. It reports its state and what it
//! needs, and runs no modules, because it could not derive their keys.

use std::sync::Arc;

use api::ErrorCode;
use api::owner::{LockedStatus, NodeStatus};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};

use super::host;
use super::route::Route;
use super::routes::{guard, shared_routes};
use super::state::NodeState;
use crate::rest::{ApiError, unknown_call};

/// Returns the router for owners of a locked node. `reason` says why the node is locked.
pub fn router(node: Arc<NodeState>, reason: &str) -> Router {
    let (state, locked) = (node.clone(), reason.to_owned());
    let status = async move || Json(NodeStatus::Locked(describe(&state, &locked)));
    let locked = reason.to_owned();
    let fallback =
        async move || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Locked, locked);
    let router = Route::collect(shared_routes()).route("/v1/status", get(status));
    guard(router.fallback(fallback).method_not_allowed_fallback(unknown_call)).with_state(node)
}

fn describe(node: &NodeState, reason: &str) -> LockedStatus {
    LockedStatus {
        machine: node.machine.clone(),
        variant: node.boot.variant.clone(),
        version: node.boot.version.clone(),
        hostname: host::hostname(),
        certificate: node.certificate.clone(),
        uptime_s: host::uptime_seconds(),
        locked: reason.to_owned(),
    }
}
