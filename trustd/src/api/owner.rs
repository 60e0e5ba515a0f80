//! What the node's owner gets: on a Unix socket that only root and trustd can reach, and over TLS for pinned certificates.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use config::Boot;
use futures_util::StreamExt as _;
use ledger::Decision;
use oci::OciError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, ApiError, unhex, unknown};
use crate::approvals::{ApprovalError, Approvals};
use crate::audit::{Audit, Evidence};
use crate::fetch::Chunks;
use crate::init;
use crate::modules::{ModuleError, Modules, State as Became};
use crate::sources::Sources;

const LARGEST_REQUEST: usize = 16 << 20;
const MOST_LINES: u32 = 10_000;
/// As long as a SHA-256 digest at the most: every TPM takes that as qualifying data.
const LONGEST_NONCE: usize = 32;

pub struct Node {
    pub boot: Boot,
    pub machine: String,
    pub modules: Arc<Modules>,
    pub approvals: Arc<Approvals>,
    pub audit: Arc<Audit>,
    pub sources: Arc<Sources>,
    pub init: std::path::PathBuf,
}

type This = State<Arc<Node>>;

pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/modules", get(modules))
        .route("/v1/modules/{name}", put(apply))
        .route("/v1/images", put(upload))
        .route("/v1/modules/{name}/log", get(module_log))
        .route("/v1/audit", get(audit))
        .route("/v1/quote", post(quote))
        .route("/v1/ledger", get(ledger_text).put(ledger_extend))
        .route("/v1/ledger/reset", post(ledger_reset))
        .route("/v1/services/{name}/{verb}", post(service))
        .route("/v1/node/{verb}", post(machine))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(node)
}

async fn status(State(node): This) -> Json<Value> {
    let since_boot = std::fs::read_to_string("/proc/uptime").ok().and_then(|t| t.split(' ').next()?.parse::<f64>().ok());
    let engine = node.modules.engine().is_some();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Json(json!({
        "machine": node.machine,
        "variant": node.boot.variant,
        "version": node.boot.version,
        "time": unix,
        "uptime_s": since_boot,
        "engine": if engine { "answers" } else { "does not answer" },
        "ledger": ledger(&node),
        "hostname": std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
        "memory": memory(),
        "processes": processes(),
    }))
}

fn ledger(node: &Node) -> Value {
    let mut value = match node.approvals.view() {
        Ok(view) => json!(view),
        Err(problem) => json!({ "problem": problem }),
    };
    let sources = node.sources.heard();
    if !sources.is_empty() {
        value["sources"] = json!(sources);
    }
    value
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
    let list: Vec<Value> = node
        .modules
        .views()
        .into_iter()
        .map(|(view, decision)| {
            let ledger = match decision {
                Decision::Allow(e) => json!({ "allowed": true, "statement": e.seq, "until": e.exp, "signers": e.signers }),
                Decision::Deny(reason) => json!({ "allowed": false, "code": reason.code(), "reason": reason.to_string() }),
            };
            let mut value = json!(view);
            value["ledger"] = ledger;
            value
        })
        .collect();
    Json(json!({ "modules": list }))
}

/// Takes an owner's signed wish.
async fn apply(State(node): This, Path(name): Path<String>, request: Result<Json<wish::Signed>, JsonRejection>) -> Answer<Value> {
    let Json(signed) = request?;
    node.modules.apply(&name, &signed).map_err(|error| match error {
        ModuleError::Config(_) => ApiError::request(error),
        ModuleError::Signature(_) => ApiError::new(StatusCode::FORBIDDEN, "signature", error),
        ModuleError::Old { .. } => ApiError::new(StatusCode::CONFLICT, "old", error),
        ModuleError::Io { .. } => ApiError::node(error),
    })?;
    Ok(Json(json!({ "applied": name })))
}

/// Puts the blobs of an archive into the store. Whether they may run is decided when a module wants them.
async fn upload(State(node): This, body: Body) -> Answer<Value> {
    let (sender, chunks) = Chunks::pipe();
    let fetcher = node.modules.fetcher().clone();
    let storing = tokio::spawn(async move { fetcher.upload(chunks).await });
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let broken = chunk.is_err();
        if sender.send(chunk.map_err(std::io::Error::other)).await.is_err() || broken {
            // The store has seen enough, or there is no more to come: it says which.
            break;
        }
    }
    drop(sender);
    let stored = storing.await.map_err(ApiError::node)?;
    if let Err(refused) = &stored
        && !matches!(refused, OciError::Io(_))
    {
        println!("an image that was sent is refused: {refused}");
        node.audit.record("image-refused", &json!({ "reason": refused.code() })).await.map_err(ApiError::node)?;
    }
    let blobs = stored.map_err(|error| match error {
        OciError::Io(error) if error.kind() == std::io::ErrorKind::QuotaExceeded => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "full", error)
        }
        OciError::Io(error) => ApiError::node(error),
        refused => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "image", refused),
    })?;
    node.modules.wake();
    Ok(Json(json!({ "blobs": blobs })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    #[serde(default = "some_lines")]
    lines: u32,
}

fn some_lines() -> u32 {
    200
}

async fn module_log(State(node): This, Path(name): Path<String>, Query(query): Query<LogQuery>) -> Answer<Value> {
    let container = match node.modules.state(&name) {
        Some(Became::Running { container } | Became::Starting { container }) => container,
        Some(_) => return Err(ApiError::not_found(format!("the module {name} does not run; trustctl module list says why"))),
        None => return Err(ApiError::not_found(format!("there is no module {name}"))),
    };
    let engine = node.modules.engine().ok_or_else(|| ApiError::node("the engine does not answer"))?;
    let log = engine.logs(&container, query.lines.min(MOST_LINES)).await.map_err(ApiError::node)?;
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
    let (seq, new) = node.approvals.extend(&request?.0.log).await.map_err(ledger_error)?;
    node.modules.wake();
    Ok(Json(json!({ "statements": seq, "new": new })))
}

fn ledger_error(error: ApprovalError) -> ApiError {
    match error {
        ApprovalError::Log(_) | ApprovalError::Fork | ApprovalError::HighWater { .. } => {
            ApiError::new(StatusCode::CONFLICT, "ledger", error)
        }
        ApprovalError::Io { .. } | ApprovalError::Tpm(_) => ApiError::node(error),
    }
}

/// Takes the log that is here for the beginning. Said first, in the register that every quote shows.
async fn ledger_reset(State(node): This) -> Answer<Value> {
    node.audit.record("ledger-reset", &json!({})).await.map_err(ApiError::node)?;
    let mark = node.approvals.reset().await.map_err(ledger_error)?;
    node.modules.wake();
    Ok(Json(json!({ "statements": mark.seq })))
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
