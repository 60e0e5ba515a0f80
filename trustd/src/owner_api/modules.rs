//! Calls about modules and their images.

use std::sync::Arc;

use api::ErrorCode;
use api::owner::{
    AppliedSpec, DenialCode, LedgerDecision, Module, ModuleLog, Modules, RejectedSpec, StoredImage,
};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use deployment::SignedSpec;
use futures_util::StreamExt as _;
use ledger::Decision;
use oci::OciError;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::route::Route;
use super::state::OwnerState;
use crate::audit::EventKind;
use crate::images::fetch::ChunkReader;
use crate::modules::{ModuleError, ModuleView};
use crate::rest::{Answer, ApiError};
use crate::util::error_chain::error_chain;

const DEFAULT_LOG_LINES: u32 = 200;
const MAX_LOG_LINES: u32 = 10_000;

/// Returns the routes of this file.
pub(super) fn routes() -> Vec<Route<Arc<OwnerState>>> {
    vec![
        Route::new("/v1/modules", &["get"], get(list)),
        Route::new("/v1/modules/{name}", &["put"], put(apply)),
        Route::new("/v1/modules/{name}/log", &["get"], get(log)),
        Route::new("/v1/images", &["put"], put(upload)),
    ]
}

async fn list(State(state): State<Arc<OwnerState>>) -> Json<Modules> {
    let rejected = state.modules.rejected().into_iter();
    let rejected = rejected.map(|(module, reason)| RejectedSpec { module, reason }).collect();
    Json(Modules { modules: describe(&state), rejected })
}

/// Returns all modules with the ledger's decision on each.
pub(super) fn describe(state: &OwnerState) -> Vec<Module> {
    let views = state.modules.views().into_iter();
    views.map(|(view, decision)| to_module(view, decision)).collect()
}

fn to_module(view: ModuleView, decision: Decision) -> Module {
    Module {
        name: view.name,
        desired: view.desired,
        generation: view.generation,
        digest: view.digest,
        toml: view.toml,
        shipped: view.shipped,
        previous: view.previous,
        status: view.status,
        reconciled: view.reconciled,
        last_error: view.last_error,
        progress: view.progress,
        restarts: view.restarts,
        ledger: to_ledger_decision(decision),
    }
}

fn to_ledger_decision(decision: Decision) -> LedgerDecision {
    match decision {
        Decision::Allow(evidence) => LedgerDecision::Allow {
            statement: evidence.seq,
            until: evidence.exp,
            signers: evidence.signers,
        },
        Decision::Deny(reason) => LedgerDecision::Deny {
            code: DenialCode::from(reason.code().to_owned()),
            reason: error_chain(&reason),
        },
    }
}

async fn apply(
    State(state): State<Arc<OwnerState>>,
    Path(name): Path<String>,
    request: Result<Json<SignedSpec>, JsonRejection>,
) -> Answer<AppliedSpec> {
    let Json(signed) = request?;
    state.modules.apply(&name, &signed).map_err(|error| {
        let (status, code) = match &error {
            ModuleError::Config(_) => (StatusCode::BAD_REQUEST, ErrorCode::BadRequest),
            ModuleError::Signature(_) => (StatusCode::FORBIDDEN, ErrorCode::Signature),
            ModuleError::WrongNode { .. } => (StatusCode::FORBIDDEN, ErrorCode::WrongNode),
            ModuleError::StaleGeneration { .. } => {
                (StatusCode::CONFLICT, ErrorCode::StaleGeneration)
            }
            ModuleError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Failed),
        };
        ApiError::from_error(status, code, &error)
    })?;
    Ok(Json(AppliedSpec { applied: name }))
}

/// Stores the blobs of an archive. Whether the image may run is decided when a module needs it.
async fn upload(State(state): State<Arc<OwnerState>>, body: Body) -> Answer<StoredImage> {
    let (sender, chunks) = ChunkReader::channel();
    let fetcher = state.modules.fetcher().clone();
    let storing = tokio::spawn(async move { fetcher.upload(chunks).await });
    forward(body, sender).await;
    let blobs = match storing.await.map_err(ApiError::failed)? {
        Ok(blobs) => blobs,
        Err(OciError::Io(error)) => return Err(to_storage_error(error)),
        Err(error) => {
            logging::warn!("rejected an uploaded image: {}", error_chain(&error));
            let event = json!({ "reason": error.code() });
            let audit = &state.node.audit;
            audit.record(EventKind::ImageRejected, &event).await.map_err(ApiError::failed)?;
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(ApiError::from_error(status, ErrorCode::Image, &error));
        }
    };
    state.modules.wake();
    Ok(Json(StoredImage { blobs }))
}

/// Sends the chunks of a body to their reader until the body ends, breaks off, or the reader needs
/// no more. The reader then knows the reason.
pub(super) async fn forward(body: Body, sender: mpsc::Sender<std::io::Result<Bytes>>) {
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        // An empty chunk would mark the end.
        if chunk.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        let is_broken = chunk.is_err();
        if sender.send(chunk.map_err(std::io::Error::other)).await.is_err() || is_broken {
            return;
        }
    }
    let _ = sender.send(Ok(Bytes::new())).await;
}

fn to_storage_error(error: std::io::Error) -> ApiError {
    match error.kind() {
        std::io::ErrorKind::QuotaExceeded => {
            ApiError::from_error(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::StoreFull, &error)
        }
        _ => ApiError::failed(error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    #[serde(default = "default_log_lines")]
    lines: u32,
}

fn default_log_lines() -> u32 {
    DEFAULT_LOG_LINES
}

async fn log(
    State(state): State<Arc<OwnerState>>,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Answer<ModuleLog> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let status = state.modules.status(&name);
    let status = status.ok_or_else(|| ApiError::not_found(format!("there is no module {name}")))?;
    let container = status.container().ok_or_else(|| {
        let message = format!("the module {name} does not run; trustctl module list shows why");
        ApiError::not_found(message)
    })?;
    let engine = state.modules.engine().ok_or_else(|| {
        let message = "the engine does not answer";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Failed, message)
    })?;
    let lines = query.lines.min(MAX_LOG_LINES);
    let log = engine.logs(container, lines).await.map_err(ApiError::failed)?;
    Ok(Json(ModuleLog { log }))
}

#[cfg(test)]
mod tests {
    use ledger::{ChainReason, Reason};

    use super::*;

    /// The reasons of the ledger, each with its successor, so that a new one cannot be left out.
    fn next(reason: &Reason) -> Option<Reason> {
        let (digest, seq, now) = (String::new(), 1, 2);
        let chain = |reason| Reason::Chain { digest: String::new(), reason };
        Some(match reason {
            Reason::Unknown { .. } => Reason::Revoked { digest, seq },
            Reason::Revoked { .. } => Reason::Expired { digest, seq, exp: 1, now },
            Reason::Expired { .. } => Reason::NotYet { digest, seq, iat: 3, now },
            Reason::NotYet { .. } => Reason::Clock { now, floor: 3 },
            Reason::Clock { .. } => Reason::Stale { witnessed: 0, now, max_age: 1 },
            Reason::Stale { .. } => Reason::Ledger(String::new()),
            Reason::Ledger(_) => chain(ChainReason::NotFollowed),
            Reason::Chain { reason, .. } => chain(match reason {
                ChainReason::NotFollowed => ChainReason::NotAsked,
                ChainReason::NotAsked => ChainReason::Absent { block: 1 },
                ChainReason::Absent { .. } => ChainReason::Revoked { seq, block: 1 },
                ChainReason::Revoked { .. } => ChainReason::Expired { seq, not_after: 1, now },
                ChainReason::Expired { .. } => ChainReason::NoProof { block: 1 },
                ChainReason::NoProof { .. } => {
                    ChainReason::Stale { block: 1, time: 0, now, max_age: 1 }
                }
                ChainReason::Stale { .. } => ChainReason::Clock { now, floor: 3 },
                ChainReason::Clock { .. } => ChainReason::Unusable(String::new()),
                ChainReason::Unusable(_) => return None,
            }),
        })
    }

    #[test]
    fn the_api_has_every_code_of_the_ledger_and_no_other() {
        let first = Reason::Unknown { digest: String::new() };
        let mut found: Vec<String> = std::iter::successors(Some(first), next)
            .map(|reason| reason.code().to_owned())
            .collect();
        found.sort();
        found.dedup();
        let expected: Vec<&str> = DenialCode::ALL.iter().map(DenialCode::as_str).collect();
        assert_eq!(found, expected);
    }
}
