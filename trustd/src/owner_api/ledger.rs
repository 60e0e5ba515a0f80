//! Calls about the ledger.

use std::sync::Arc;

use api::ErrorCode;
use api::owner::{BundleUpdate, LedgerReset, LedgerUpdate, LogText};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::{JsonRejection, StringRejection};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use serde_json::json;

use super::route::Route;
use super::state::OwnerState;
use crate::admission::AdmissionError;
use crate::audit::EventKind;
use crate::rest::{Answer, ApiError};

/// Returns the routes of this file.
pub(super) fn routes() -> Vec<Route<Arc<OwnerState>>> {
    vec![
        Route::new("/v1/ledger", &["get", "put"], get(log_text).put(extend_log)),
        Route::new("/v1/ledger/reset", &["post"], post(reset)),
        Route::new("/v1/ledger/bundle", &["put"], put(apply_bundle)),
    ]
}

async fn log_text(State(state): State<Arc<OwnerState>>) -> Answer<LogText> {
    let log = state.admission.log_text().map_err(ApiError::failed)?;
    Ok(Json(LogText { log }))
}

/// Replaces the log by one that continues it.
async fn extend_log(
    State(state): State<Arc<OwnerState>>,
    request: Result<Json<LogText>, JsonRejection>,
) -> Answer<LedgerUpdate> {
    let (statements, updated) =
        state.admission.extend_log(&request?.0.log).await.map_err(to_api_error)?;
    state.modules.wake();
    Ok(Json(LedgerUpdate { statements, updated }))
}

/// Applies a bundle of the chain, as relays give it.
async fn apply_bundle(
    State(state): State<Arc<OwnerState>>,
    bundle: Result<String, StringRejection>,
) -> Answer<BundleUpdate> {
    let bundle = bundle.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let updated = state.admission.apply_bundle(&bundle).await.map_err(to_api_error)?;
    state.modules.wake();
    Ok(Json(BundleUpdate { updated }))
}

/// Uses the present log as the beginning. The event is extended into PCR 15 first, so that every
/// later quote of this boot shows it.
async fn reset(State(state): State<Arc<OwnerState>>) -> Answer<LedgerReset> {
    let audit = &state.node.audit;
    audit.record(EventKind::LedgerReset, &json!({})).await.map_err(ApiError::failed)?;
    let mark = state.admission.reset().await.map_err(to_api_error)?;
    state.modules.wake();
    Ok(Json(LedgerReset { statements: mark.seq }))
}

fn to_api_error(error: AdmissionError) -> ApiError {
    let code = match &error {
        AdmissionError::Log(_) | AdmissionError::Fork | AdmissionError::HighWaterMark { .. } => {
            ErrorCode::Ledger
        }
        AdmissionError::Chain(_) | AdmissionError::ChainState { .. } | AdmissionError::NoChain => {
            ErrorCode::Chain
        }
        AdmissionError::Io { .. }
        | AdmissionError::Tpm(_)
        | AdmissionError::NotPersisted { .. }
        | AdmissionError::NotRead => return ApiError::failed(error),
    };
    ApiError::from_error(StatusCode::CONFLICT, code, &error)
}
