//! The state of the node: as JSON, as a page, and for Prometheus.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::owner::{EngineState, LedgerStatus, Module, NodeStatus, Registers, Status};
use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_FRAME_OPTIONS};
use axum::response::{Html, IntoResponse};
use axum::routing::get;

use super::route::Route;
use super::state::OwnerState;
use super::{host, metrics, modules, status_page};
use crate::util::clock;
use crate::util::error_chain::error_chain;

/// Time to wait for the registers before the state is shown without them.
const REGISTERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the routes of this file.
pub(super) fn routes() -> Vec<Route<Arc<OwnerState>>> {
    vec![
        Route::new("/", &["get"], get(page)),
        Route::new("/metrics", &["get"], get(prometheus)),
        Route::new("/v1/status", &["get"], get(status)),
    ]
}

async fn status(State(state): State<Arc<OwnerState>>) -> Json<NodeStatus> {
    Json(NodeStatus::Unlocked(Box::new(describe(&state).await)))
}

async fn page(State(state): State<Arc<OwnerState>>) -> impl IntoResponse {
    let headers = [
        (CONTENT_SECURITY_POLICY, status_page::CONTENT_POLICY),
        (CACHE_CONTROL, "no-store"),
        (X_FRAME_OPTIONS, "deny"),
    ];
    let (status, modules) = describe_all(&state).await;
    (headers, Html(status_page::render(&status, &modules)))
}

async fn prometheus(State(state): State<Arc<OwnerState>>) -> impl IntoResponse {
    let mut events = BTreeMap::new();
    for record in state.node.audit.records().await {
        *events.entry(record.content.kind).or_default() += 1;
    }
    let counters = metrics::Counters {
        events,
        denied_engine_requests: state.tickets.denied(),
        resident_bytes: host::resident_bytes(),
    };
    let (status, modules) = describe_all(&state).await;
    let text = metrics::render(&status, &modules, &counters);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn describe_all(state: &OwnerState) -> (Status, Vec<Module>) {
    (describe(state).await, modules::describe(state))
}

async fn describe(state: &OwnerState) -> Status {
    let registers = tokio::time::timeout(REGISTERS_TIMEOUT, state.node.audit.read_registers());
    let registers = match registers.await {
        Ok(Ok(values)) => Registers::Values(values),
        Ok(Err(error)) => Registers::Unavailable { problem: error_chain(&error) },
        Err(_) => {
            let seconds = REGISTERS_TIMEOUT.as_secs();
            Registers::Unavailable { problem: format!("the TPM did not answer within {seconds} s") }
        }
    };
    Status {
        machine: state.node.machine.clone(),
        variant: state.node.boot.variant.clone(),
        version: state.node.boot.version.clone(),
        hostname: host::hostname(),
        certificate: state.node.certificate.clone(),
        time: clock::unix_seconds(),
        uptime_s: host::uptime_seconds(),
        engine: match state.modules.engine() {
            Some(_) => EngineState::Available,
            None => EngineState::Unavailable,
        },
        ledger: LedgerStatus {
            log: state.admission.status(),
            sources: state.log_sources.statuses(),
            relays: state.relays.statuses(),
        },
        memory: host::memory(),
        processes: host::process_count(),
        registers,
    }
}
