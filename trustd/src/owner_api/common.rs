//! Calls that every node answers, with or without its root key: the audit log, policies, recovery
//! of the root key, services and power.

use std::sync::Arc;

use api::ErrorCode;
use api::owner::{
    AcceptedPolicies, AcceptedRequest, AuditLog, PolicyRequirement, RestoredRootKey, RootKey,
};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use policy::{Escrow, Policies};
use serde_json::json;
use zeroize::Zeroizing;

use super::route::Route;
use super::state::NodeState;
use crate::audit::EventKind;
use crate::keys::error::{ProvisionError, VaultError};
use crate::rest::{Answer, ApiError, parse_hex};
use crate::util::init_client;

const OPENAPI: &str = include_str!("../../openapi.json");

/// Returns the routes of this file.
pub(super) fn routes() -> Vec<Route<Arc<NodeState>>> {
    let document = async || ([(CONTENT_TYPE, "application/json")], OPENAPI);
    vec![
        Route::new("/v1/openapi.json", &["get"], get(document)),
        Route::new("/v1/audit", &["get"], get(audit_log)),
        Route::new("/v1/policies", &["get", "put"], get(required_policy).put(accept_policies)),
        Route::new("/v1/recovery", &["get", "put"], get(escrow).put(restore_root_key)),
        Route::new("/v1/services/{name}/{verb}", &["post"], post(control_service)),
        Route::new("/v1/node/{verb}", &["post"], post(control_node)),
    ]
}

async fn audit_log(State(node): State<Arc<NodeState>>) -> Json<AuditLog> {
    Json(AuditLog { events: node.audit.records().await })
}

async fn required_policy(State(node): State<Arc<NodeState>>) -> Answer<PolicyRequirement> {
    let signer = node.vault.signer().map_err(ApiError::failed)?.hex();
    Ok(Json(PolicyRequirement { signer, pcr14: measure::hex(&node.vault.pcr14().0) }))
}

/// Stores policies of this node's signer, for this boot or for a later one.
async fn accept_policies(
    State(node): State<Arc<NodeState>>,
    request: Result<Json<Policies>, JsonRejection>,
) -> Answer<AcceptedPolicies> {
    let policies = request?.0.text();
    let pcr14 = node.vault.accept_policies(policies.as_bytes()).map_err(to_api_error)?;
    node.unlock.notify_one();
    let this_boot = pcr14.contains(&measure::hex(&node.vault.pcr14().0));
    Ok(Json(AcceptedPolicies { pcr14, this_boot }))
}

fn to_api_error(error: ProvisionError) -> ApiError {
    let (status, code) = match &error {
        ProvisionError::Policy(_) | ProvisionError::KeyLength(_) => {
            (StatusCode::BAD_REQUEST, ErrorCode::BadRequest)
        }
        ProvisionError::Signer(_) => (StatusCode::FORBIDDEN, ErrorCode::Signer),
        ProvisionError::NoRecoveryKey => (StatusCode::CONFLICT, ErrorCode::NoRecovery),
        ProvisionError::AlreadyPresent => (StatusCode::CONFLICT, ErrorCode::AlreadyPresent),
        ProvisionError::Vault(VaultError::Locked(_)) => (StatusCode::CONFLICT, ErrorCode::Locked),
        ProvisionError::Vault(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Failed),
    };
    ApiError::from_error(status, code, &error)
}

/// Returns the root key in escrow, which only the recovery key decrypts.
async fn escrow(State(node): State<Arc<NodeState>>) -> Answer<Escrow> {
    match node.vault.escrow().map_err(ApiError::failed)? {
        Some(escrow) => Ok(Json(escrow)),
        None => Err(ApiError::not_found(
            "there is no escrow: node.toml names no keys.recovery, or the node has no root key yet",
        )),
    }
}

/// Restores a root key. The event is extended into PCR 15 first, so that every later quote of this
/// boot shows it.
async fn restore_root_key(
    State(node): State<Arc<NodeState>>,
    request: Result<Json<RootKey>, JsonRejection>,
) -> Answer<RestoredRootKey> {
    let root = Zeroizing::new(parse_hex("root", &request?.0.root)?);
    node.vault.check_restorable().await.map_err(to_api_error)?;
    let event = json!({ "recovery": node.vault.recovery_key() });
    node.audit.record(EventKind::RootKeyRestored, &event).await.map_err(ApiError::failed)?;
    node.vault.restore(&root).await.map_err(to_api_error)?;
    node.unlock.notify_one();
    Ok(Json(RestoredRootKey { restored: true }))
}

async fn control_service(
    State(node): State<Arc<NodeState>>,
    Path((name, verb)): Path<(String, String)>,
) -> Answer<AcceptedRequest> {
    match verb.as_str() {
        "restart" | "kill" => send_to_init(&node, format!("{verb} {name}")),
        _ => Err(ApiError::not_found(format!("verb: expected restart or kill, found {verb:?}"))),
    }
}

async fn control_node(
    State(node): State<Arc<NodeState>>,
    Path(verb): Path<String>,
) -> Answer<AcceptedRequest> {
    match verb.as_str() {
        "reboot" | "poweroff" => send_to_init(&node, verb),
        _ => Err(ApiError::not_found(format!("verb: expected reboot or poweroff, found {verb:?}"))),
    }
}

fn send_to_init(node: &NodeState, request: String) -> Answer<AcceptedRequest> {
    init_client::send(&node.init_socket, &request).map_err(ApiError::failed)?;
    Ok(Json(AcceptedRequest { requested: request }))
}
