//! Calls about the ledger.
//!
//! A change of the ledger runs in a task of its own, so that it is not abandoned in the middle when
//! the client leaves.

use std::io::Read;
use std::sync::Arc;

use api::ErrorCode;
use api::owner::{BundleUpdate, LedgerReset, LedgerUpdate};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::StringRejection;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::json;
use tokio::sync::mpsc;

use super::modules::forward;
use super::route::Route;
use super::state::OwnerState;
use crate::admission::AdmissionError;
use crate::audit::EventKind;
use crate::images::fetch::ChunkReader;
use crate::rest::{Answer, ApiError};

/// Media type of a log.
const LOG_TYPE: &str = "text/plain; charset=utf-8";
/// Length of the pieces in which a log is sent, and how many of them can wait.
const CHUNK_BYTES: usize = 64 * 1024;
const QUEUE_LEN: usize = 4;

/// Returns the routes of this file.
pub(super) fn routes() -> Vec<Route<Arc<OwnerState>>> {
    vec![
        Route::new("/v1/ledger", &["get", "put"], get(log_text).put(extend_log)),
        Route::new("/v1/ledger/reset", &["post"], post(reset)),
        Route::new("/v1/ledger/bundle", &["put"], put(apply_bundle)),
    ]
}

/// Sends the log from its file.
async fn log_text(State(state): State<Arc<OwnerState>>) -> Result<Response, ApiError> {
    let mut text = state.admission.log_text().map_err(ApiError::failed)?;
    let (sender, receiver) = mpsc::channel(QUEUE_LEN);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let chunk = match text.read(&mut chunk) {
                Ok(0) => return,
                Ok(n) => {
                    chunk.truncate(n);
                    Ok(Bytes::from(chunk))
                }
                Err(error) => Err(error),
            };
            // The client left, or it gets the error as the end of its connection.
            let is_last = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk: std::io::Result<Bytes>| (chunk, receiver))
    });
    Ok(([(CONTENT_TYPE, LOG_TYPE)], Body::from_stream(chunks)).into_response())
}

/// Replaces the log by one that continues it. The log is verified while it is received.
async fn extend_log(State(state): State<Arc<OwnerState>>, body: Body) -> Answer<LedgerUpdate> {
    let (sender, reader) = ChunkReader::channel();
    let admission = state.admission.clone();
    let extending = tokio::spawn(async move { admission.extend_log_from(reader).await });
    forward(body, sender).await;
    let (statements, updated) = extending.await.map_err(ApiError::failed)?.map_err(to_api_error)?;
    state.modules.wake();
    Ok(Json(LedgerUpdate { statements, updated }))
}

/// Applies a bundle of the chain, as relays give it.
async fn apply_bundle(
    State(state): State<Arc<OwnerState>>,
    bundle: Result<String, StringRejection>,
) -> Answer<BundleUpdate> {
    let bundle = bundle.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let admission = state.admission.clone();
    let applying = tokio::spawn(async move { admission.apply_bundle(&bundle).await });
    let updated = applying.await.map_err(ApiError::failed)?.map_err(to_api_error)?;
    state.modules.wake();
    Ok(Json(BundleUpdate { updated }))
}

/// Uses the present log as the beginning. The event is extended into PCR 15 first, so that every
/// later quote of this boot shows it.
async fn reset(State(state): State<Arc<OwnerState>>) -> Answer<LedgerReset> {
    let audit = &state.node.audit;
    audit.record(EventKind::LedgerReset, &json!({})).await.map_err(ApiError::failed)?;
    let admission = state.admission.clone();
    let resetting = tokio::spawn(async move { admission.reset().await });
    let mark = resetting.await.map_err(ApiError::failed)?.map_err(to_api_error)?;
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
        AdmissionError::Input(_) => {
            return ApiError::from_error(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, &error);
        }
        AdmissionError::Io { .. }
        | AdmissionError::Tpm(_)
        | AdmissionError::NotPersisted { .. }
        | AdmissionError::Unusable(_)
        | AdmissionError::Foreign(_)
        | AdmissionError::Superseded
        | AdmissionError::Background(_)
        | AdmissionError::NotRead => return ApiError::failed(error),
    };
    ApiError::from_error(StatusCode::CONFLICT, code, &error)
}
