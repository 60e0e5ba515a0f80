//! What the node's owner gets: on a Unix socket that only root and trustd can reach, and over TLS for pinned certificates.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use config::{Boot, Module};
use futures_util::StreamExt as _;
use ledger::Decision;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::{Answer, ApiError, unhex, unknown};
use crate::approvals::{ApprovalError, Approvals};
use crate::audit::{Audit, Evidence};
use crate::init;
use crate::modules::{ModuleError, Modules};

const LARGEST_REQUEST: usize = 16 << 20;
const LARGEST_ARCHIVE: u64 = 2 << 30;
/// As long as a SHA-256 digest at the most: every TPM takes that as qualifying data.
const LONGEST_NONCE: usize = 32;

pub struct Node {
    pub boot: Boot,
    pub machine: String,
    pub modules: Arc<Modules>,
    pub approvals: Arc<Approvals>,
    pub audit: Arc<Audit>,
    pub init: std::path::PathBuf,
    pub uploads: tokio::sync::Mutex<()>,
}

type This = State<Arc<Node>>;

pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/modules", get(modules))
        .route("/v1/modules/{name}", put(apply))
        .route("/v1/modules/{name}/archive", put(upload))
        .route("/v1/modules/{name}/log", get(module_log))
        .route("/v1/audit", get(audit))
        .route("/v1/quote", post(quote))
        .route("/v1/ledger", get(ledger_text).put(ledger_extend))
        .route("/v1/services/{name}/{verb}", post(service))
        .route("/v1/node/{verb}", post(machine))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(node)
}

async fn status(State(node): This) -> Json<Value> {
    let since_boot = std::fs::read_to_string("/proc/uptime").ok().and_then(|t| t.split(' ').next()?.parse::<f64>().ok());
    let engine = node.modules.engine().await.is_some();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Json(json!({
        "machine": node.machine,
        "variant": node.boot.variant,
        "version": node.boot.version,
        "time": unix,
        "uptime_s": since_boot,
        "engine": if engine { "answers" } else { "does not answer" },
        "ledger": match node.approvals.text() {
            Ok(text) => json!({ "statements": text.lines().count() }),
            Err(problem) => json!({ "problem": problem }),
        },
        "hostname": std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
        "memory": memory(),
        "processes": processes(),
    }))
}

/// Total and available memory in kB, as /proc/meminfo has them.
fn memory() -> Value {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    json!({ "total_kb": field("MemTotal:"), "available_kb": field("MemAvailable:") })
}

/// How many programs run; threads of the kernel have no command line and do not count.
fn processes() -> usize {
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    numbers.filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())).count()
}

async fn modules(State(node): This) -> Json<Value> {
    let units = node.modules.units.lock().await;
    let list: Vec<Value> = units
        .iter()
        .map(|(name, unit)| {
            let ledger = match node.approvals.decide(&unit.digest) {
                Decision::Allow(e) => json!({ "allowed": true, "statement": e.seq, "until": e.exp, "signers": e.signers }),
                Decision::Deny(reason) => json!({ "allowed": false, "code": reason.code(), "reason": reason.to_string() }),
            };
            json!({ "name": name, "digest": unit.digest, "ledger": ledger, "status": unit.state })
        })
        .collect();
    Json(json!({ "modules": list }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    /// The module's file, as TOML.
    toml: String,
}

async fn apply(State(node): This, Path(name): Path<String>, request: Result<Json<Apply>, JsonRejection>) -> Answer<Value> {
    let Json(Apply { toml }) = request?;
    node.modules.apply(&name, &toml).await.map_err(|error| match error {
        ModuleError::Config(_) => ApiError::request(error),
        ModuleError::Io { .. } => ApiError::node(error),
    })?;
    Ok(Json(json!({ "applied": name })))
}

/// Stores an archive; it is checked when the module that needs it starts.
async fn upload(State(node): This, Path(name): Path<String>, body: Body) -> Answer<Value> {
    Module::valid_name(&name).map_err(ApiError::request)?;
    let path = node.modules.archive_path(&name);
    // One upload of a module at a time: a second one must not write into what the first has put in place.
    let _alone = node.uploads.lock().await;
    let temporary = path.with_extension("upload");
    let failed = |e: std::io::Error| ApiError::node(format!("{}: {e}", temporary.display()));
    let mut file = tokio::fs::File::create(&temporary).await.map_err(failed)?;
    let (mut stream, mut size) = (body.into_data_stream(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(ApiError::request)?;
        size += chunk.len() as u64;
        if size > LARGEST_ARCHIVE {
            let _ = tokio::fs::remove_file(&temporary).await;
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                format!("an archive has at most {LARGEST_ARCHIVE} bytes"),
            ));
        }
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.sync_all().await.map_err(failed)?;
    tokio::fs::rename(&temporary, &path).await.map_err(failed)?;
    Ok(Json(json!({ "stored": size })))
}

async fn module_log(State(node): This, Path(name): Path<String>) -> Answer<Value> {
    let container = match node.modules.units.lock().await.get(&name).map(|u| u.state.clone()) {
        Some(crate::modules::State::Running { container }) => container,
        Some(_) => return Err(ApiError::not_found(format!("the module {name} does not run"))),
        None => return Err(ApiError::not_found(format!("there is no module {name}"))),
    };
    let engine = node.modules.engine().await.ok_or_else(|| ApiError::node("the engine does not answer"))?;
    let log = engine.logs(&container).await.map_err(ApiError::node)?;
    Ok(Json(json!({ "log": log })))
}

async fn audit(State(node): This) -> Json<Value> {
    Json(json!({ "events": node.audit.records().await }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuoteRequest {
    nonce: String,
}

async fn quote(State(node): This, request: Result<Json<QuoteRequest>, JsonRejection>) -> Answer<Evidence> {
    let nonce = unhex("nonce", &request?.0.nonce)?;
    if !(8..=LONGEST_NONCE).contains(&nonce.len()) {
        return Err(ApiError::request(format!("nonce: expected 8 to {LONGEST_NONCE} bytes, found {}", nonce.len())));
    }
    Ok(Json(node.audit.evidence(nonce).await.map_err(ApiError::node)?))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LedgerText {
    log: String,
}

async fn ledger_text(State(node): This) -> Answer<LedgerText> {
    Ok(Json(LedgerText { log: node.approvals.text().map_err(ApiError::node)? }))
}

/// Replaces the log by one that continues it.
async fn ledger_extend(State(node): This, request: Result<Json<LedgerText>, JsonRejection>) -> Answer<Value> {
    let seq = node.approvals.extend(&request?.0.log).map_err(|error| match error {
        ApprovalError::Log(_) | ApprovalError::Fork => ApiError::new(StatusCode::CONFLICT, "ledger", error),
        ApprovalError::Io { .. } | ApprovalError::HighWater { .. } => ApiError::node(error),
    })?;
    node.modules.wake();
    Ok(Json(json!({ "statements": seq })))
}

async fn service(State(node): This, Path((name, verb)): Path<(String, String)>) -> Answer<Value> {
    let wish = match verb.as_str() {
        "restart" | "kill" => format!("{verb} {name}"),
        _ => return Err(ApiError::not_found(format!("a service can be restarted or killed, not {verb:?}"))),
    };
    init::ask(&node.init, &wish).map_err(ApiError::node)?;
    Ok(Json(json!({ "asked": wish })))
}

async fn machine(State(node): This, Path(verb): Path<String>) -> Answer<Value> {
    if !["reboot", "poweroff"].contains(&verb.as_str()) {
        return Err(ApiError::not_found(format!("a node can reboot or poweroff, not {verb:?}")));
    }
    init::ask(&node.init, &verb).map_err(ApiError::node)?;
    Ok(Json(json!({ "asked": verb })))
}
