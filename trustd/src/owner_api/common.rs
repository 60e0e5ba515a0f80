//! What a node answers whether or not it has its root key: what it is, what happened, and whatever
//! brings the key back.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use config::Boot;
use policy::Policies;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::attest;
use crate::audit::Audit;
use crate::keys::root_key::{Refusal, Vault, VaultError};
use crate::rest::{Answer, ApiError, unhex};
use crate::util::init_client;

const OPENAPI: &str = include_str!("../../openapi.json");

pub struct Base {
    pub boot: Boot,
    pub machine: String,
    pub audit: Arc<Audit>,
    pub vault: Vault,
    pub init: PathBuf,
    /// SHA-256 of the certificate that the node shows, hex: a quote names it, so that nobody can
    /// pass on another node's.
    pub certificate: String,
    /// Something came that may bring the root key back.
    pub opened: Notify,
}

pub(super) type This = State<Arc<Base>>;

/// An address and what can be done there.
pub struct Route<S> {
    pub path: &'static str,
    pub methods: &'static [&'static str],
    pub(super) handler: MethodRouter<S>,
}

pub(super) fn route<S>(
    path: &'static str,
    methods: &'static [&'static str],
    handler: MethodRouter<S>,
) -> Route<S> {
    Route { path, methods, handler }
}

pub(super) fn add<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    route: Route<S>,
) -> Router<S> {
    router.route(route.path, route.handler)
}

/// What strangers may ask for, where node.toml does not forbid it.
pub(super) fn open_routes() -> Vec<Route<Arc<Base>>> {
    vec![
        route("/v1/quote", &["post"], post(attest::quote)),
        route("/v1/endorsement", &["get"], get(attest::endorsement)),
        route("/v1/activate-credential", &["post"], post(attest::activate)),
    ]
}

pub(super) fn routes() -> Vec<Route<Arc<Base>>> {
    let mut all = open_routes();
    all.extend([
        route(
            "/v1/openapi.json",
            &["get"],
            get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)),
        ),
        route("/v1/audit", &["get"], get(audit)),
        route("/v1/policies", &["get", "put"], get(policies).put(send_policies)),
        route("/v1/recovery", &["get", "put"], get(escrow).put(restore)),
        route("/v1/services/{name}/{verb}", &["post"], post(service)),
        route("/v1/node/{verb}", &["post"], post(machine)),
    ]);
    all
}

async fn audit(State(base): This) -> Json<Value> {
    Json(json!({ "events": base.audit.records().await }))
}

/// Whose policies count, and for which boot one is needed.
async fn policies(State(base): This) -> Answer<Value> {
    let signer = base.vault.signer().map_err(ApiError::node)?;
    Ok(Json(json!({ "signer": signer.hex(), "pcr14": measure::hex(&base.vault.pcr14().0) })))
}

/// Takes policies of this node's signer, for this boot or for one to come.
async fn send_policies(
    State(base): This,
    request: Result<Json<Policies>, JsonRejection>,
) -> Answer<Value> {
    let kept = base.vault.accept(request?.0.text().as_bytes()).map_err(refusal)?;
    base.opened.notify_one();
    let this_boot = kept.contains(&measure::hex(&base.vault.pcr14().0));
    Ok(Json(json!({ "pcr14": kept, "this_boot": this_boot })))
}

fn refusal(error: Refusal) -> ApiError {
    let conflict = |code| ApiError::new(StatusCode::CONFLICT, code, &error);
    match &error {
        Refusal::Form(_) | Refusal::Length(_) => ApiError::request(error),
        Refusal::Signer(_) => ApiError::new(StatusCode::FORBIDDEN, "signer", error),
        Refusal::NoRecovery => conflict("no-recovery"),
        Refusal::There => conflict("already-present"),
        Refusal::Vault(VaultError::Locked(_)) => conflict("locked"),
        Refusal::Vault(_) => ApiError::node(error),
    }
}

/// The root key in escrow, which only the holder of the recovery key can read.
async fn escrow(State(base): This) -> Answer<Value> {
    match base.vault.escrow().map_err(ApiError::node)? {
        Some(escrow) => Ok(Json(json!(escrow))),
        None => Err(ApiError::not_found(
            "there is no escrow: node.toml names no keys.recovery, or the node has no root key yet",
        )),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restored {
    root: String,
}

/// Takes a root key back. Said first, in the register that every quote shows.
async fn restore(
    State(base): This,
    request: Result<Json<Restored>, JsonRejection>,
) -> Answer<Value> {
    let root = zeroize::Zeroizing::new(unhex("root", &request?.0.root)?);
    base.vault.wants_root().await.map_err(refusal)?;
    let recovery = base.vault.recovery();
    base.audit
        .record("root-key-restored", &json!({ "recovery": recovery }))
        .await
        .map_err(ApiError::node)?;
    base.vault.restore(&root).await.map_err(refusal)?;
    base.opened.notify_one();
    Ok(Json(json!({ "restored": true })))
}

async fn service(State(base): This, Path((name, verb)): Path<(String, String)>) -> Answer<Value> {
    let wish = match verb.as_str() {
        "restart" | "kill" => format!("{verb} {name}"),
        _ => {
            return Err(ApiError::not_found(format!(
                "a service can be restarted or killed, not {verb:?}"
            )));
        }
    };
    init_client::send(&base.init, &wish).map_err(ApiError::node)?;
    Ok(Json(json!({ "asked": wish })))
}

async fn machine(State(base): This, Path(verb): Path<String>) -> Answer<Value> {
    if !["reboot", "poweroff"].contains(&verb.as_str()) {
        return Err(ApiError::not_found(format!("a node can reboot or poweroff, not {verb:?}")));
    }
    init_client::send(&base.init, &verb).map_err(ApiError::node)?;
    Ok(Json(json!({ "asked": verb })))
}
