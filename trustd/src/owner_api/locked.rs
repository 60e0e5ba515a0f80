//! A node without its root key: it says what it is and what it needs. It runs no module, for it
//! could not say whose keys are whose.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::common::{Base, add, routes};
use super::routes as owner;
use crate::rest::{ApiError, unknown};

/// What an owner can ask for meanwhile; `why` is what stands between the node and its key.
pub fn router(base: Arc<Base>, why: &str) -> Router {
    let (this, reason) = (base.clone(), why.to_owned());
    let status = async move || Json(status(&this, &reason));
    let refused = why.to_owned();
    let locked = async move || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "locked", refused);
    let router = routes().into_iter().fold(Router::new(), add);
    let router = router.route("/v1/status", get(status));
    owner::guarded(router.fallback(locked).method_not_allowed_fallback(unknown)).with_state(base)
}

fn status(base: &Base, why: &str) -> Value {
    json!({
        "machine": base.machine,
        "variant": base.boot.variant,
        "version": base.boot.version,
        "hostname": owner::hostname(),
        "uptime_s": owner::since_boot(),
        "locked": why,
    })
}
