//! What the node's owner gets: on a Unix socket that only root and trustd can reach, and over TLS
//! for pinned certificates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection, StringRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_FRAME_OPTIONS};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use ledger::Decision;
use oci::OciError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::common::{Base, Route, add, route};
use super::snapshot::Snapshot;
use super::{common, metrics, status_page as page};
use crate::admission::Approvals;
use crate::admission::error::ApprovalError;
use crate::admission::log_sources::Sources;
use crate::admission::relays::Relays;
use crate::engine::Tickets;
use crate::images::fetch::Chunks;
use crate::modules::{ModuleError, Modules, State as Became};
use crate::rest::{Answer, ApiError, unknown};

const LARGEST_REQUEST: usize = 16 << 20;
const MOST_LINES: u32 = 10_000;
/// What is shown does not wait longer for the registers.
const TPM_WITHIN: Duration = Duration::from_secs(5);

pub struct Node {
    pub base: Arc<Base>,
    pub modules: Arc<Modules>,
    pub approvals: Arc<Approvals>,
    pub sources: Arc<Sources>,
    pub relays: Arc<Relays>,
    pub tickets: Arc<Tickets>,
}

type This = State<Arc<Node>>;

fn routes() -> Vec<Route<Arc<Node>>> {
    vec![
        route("/", &["get"], get(status_page)),
        route("/metrics", &["get"], get(prometheus)),
        route("/v1/status", &["get"], get(status)),
        route("/v1/modules", &["get"], get(modules)),
        route("/v1/modules/{name}", &["put"], put(apply)),
        route("/v1/modules/{name}/log", &["get"], get(module_log)),
        route("/v1/images", &["put"], put(upload)),
        route("/v1/ledger", &["get", "put"], get(ledger_text).put(ledger_extend)),
        route("/v1/ledger/reset", &["post"], post(ledger_reset)),
        route("/v1/ledger/bundle", &["put"], put(chain_take)),
    ]
}

/// What there is, by path and methods; trustd/openapi.json says the same and a test compares the
/// two.
pub fn listed() -> Vec<(&'static str, &'static [&'static str])> {
    let own = routes().into_iter().map(|Route { path, methods, .. }| (path, methods));
    own.chain(common::routes().into_iter().map(|Route { path, methods, .. }| (path, methods)))
        .collect()
}

pub fn router(node: Arc<Node>) -> Router {
    let base = common::routes().into_iter().fold(Router::new(), add).with_state(node.base.clone());
    let router = routes().into_iter().fold(Router::new(), add).with_state(node).merge(base);
    guarded(router.fallback(unknown).method_not_allowed_fallback(unknown))
}

/// What holds for every request of an owner.
pub(super) fn guarded<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .layer(axum::middleware::from_fn(no_other_site))
}

/// A browser shows the owner's certificate to whatever page asks it to: such a page may look and do
/// nothing.
async fn no_other_site(request: Request, next: Next) -> Response {
    if from_other_site(request.method(), request.headers()) {
        return ApiError::new(
            StatusCode::FORBIDDEN,
            "cross-site",
            "a page in a browser may look and do nothing; use trustctl",
        )
        .into_response();
    }
    next.run(request).await
}

fn from_other_site(method: &Method, headers: &HeaderMap) -> bool {
    let own =
        headers.get("sec-fetch-site").is_none_or(|site| site == "none" || site == "same-origin");
    method != Method::GET && (headers.contains_key("origin") || !own)
}

impl Node {
    async fn snapshot(&self) -> Snapshot {
        let registers = match tokio::time::timeout(TPM_WITHIN, self.base.audit.registers()).await {
            Ok(registers) => registers.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the TPM does not answer within {} s", TPM_WITHIN.as_secs())),
        };
        Snapshot { status: status_of(self), modules: modules_of(self), registers }
    }
}

async fn status_page(State(node): This) -> impl IntoResponse {
    let headers = [
        (CONTENT_SECURITY_POLICY, page::POLICY),
        (CACHE_CONTROL, "no-store"),
        (X_FRAME_OPTIONS, "deny"),
    ];
    (headers, Html(page::render(&node.snapshot().await)))
}

async fn prometheus(State(node): This) -> impl IntoResponse {
    let mut events = BTreeMap::new();
    for record in node.base.audit.records().await {
        *events.entry(record.content.kind).or_default() += 1;
    }
    let counts = metrics::Counts { events, refused: node.tickets.refused(), resident: resident() };
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&node.snapshot().await, &counts))
}

async fn status(State(node): This) -> Json<Value> {
    let snapshot = node.snapshot().await;
    let mut status = snapshot.status;
    status["registers"] = match snapshot.registers {
        Ok(registers) => json!(registers),
        Err(problem) => json!({ "problem": problem }),
    };
    Json(status)
}

fn status_of(node: &Node) -> Value {
    let engine = node.modules.engine().is_some();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({
        "machine": node.base.machine,
        "variant": node.base.boot.variant,
        "version": node.base.boot.version,
        "time": unix,
        "uptime_s": since_boot(),
        "engine": if engine { "answers" } else { "does not answer" },
        "ledger": ledger(node),
        "hostname": hostname(),
        "memory": memory(),
        "processes": processes(),
    })
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
    let relays = node.relays.heard();
    if !relays.is_empty() {
        value["relays"] = json!(relays);
    }
    value
}

pub(super) fn since_boot() -> Option<f64> {
    std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()
}

pub(super) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Total and available memory in kB, as /proc/meminfo has them.
fn memory() -> Value {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
    };
    json!({ "total_kb": field("MemTotal:"), "available_kb": field("MemAvailable:") })
}

/// What this process has in memory, in bytes (proc_pid_status(5), VmRSS).
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    Some(kib * 1024)
}

/// How many programs run; threads of the kernel have no command line and do not count.
fn processes() -> usize {
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    numbers
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())
        })
        .count()
}

async fn modules(State(node): This) -> Json<Value> {
    Json(json!({ "modules": modules_of(&node) }))
}

fn modules_of(node: &Node) -> Vec<Value> {
    node.modules
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
        .collect()
}

/// Takes an owner's signed spec.
async fn apply(
    State(node): This,
    Path(name): Path<String>,
    request: Result<Json<deployment::SignedSpec>, JsonRejection>,
) -> Answer<Value> {
    let Json(signed) = request?;
    node.modules.apply(&name, &signed).map_err(|error| match error {
        ModuleError::Config(_) => ApiError::request(error),
        ModuleError::Signature(_) => ApiError::new(StatusCode::FORBIDDEN, "signature", error),
        ModuleError::Old { .. } => ApiError::new(StatusCode::CONFLICT, "stale-generation", error),
        ModuleError::Io(_) => ApiError::node(error),
    })?;
    Ok(Json(json!({ "applied": name })))
}

/// Puts the blobs of an archive into the store. Whether they may run is decided when a module wants
/// them.
async fn upload(State(node): This, body: Body) -> Answer<Value> {
    let (sender, chunks) = Chunks::pipe();
    let fetcher = node.modules.fetcher().clone();
    let storing = tokio::spawn(async move { fetcher.upload(chunks).await });
    let mut stream = body.into_data_stream();
    let mut broken = false;
    while let Some(chunk) = stream.next().await {
        broken = chunk.is_err();
        // An empty one would be the end.
        let skipped = chunk.as_ref().is_ok_and(Bytes::is_empty);
        if !skipped && sender.send(chunk.map_err(std::io::Error::other)).await.is_err() || broken {
            // The store has seen enough, or there is no more to come: it says which.
            break;
        }
    }
    if !broken {
        let _ = sender.send(Ok(Bytes::new())).await;
    }
    drop(sender);
    let stored = storing.await.map_err(ApiError::node)?;
    if let Err(refused) = &stored
        && !matches!(refused, OciError::Io(_))
    {
        println!("an image that was sent is refused: {refused}");
        node.base
            .audit
            .record("image-rejected", &json!({ "reason": refused.code() }))
            .await
            .map_err(ApiError::node)?;
    }
    let blobs = stored.map_err(|error| match error {
        OciError::Io(error) if error.kind() == std::io::ErrorKind::QuotaExceeded => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "store-full", error)
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

async fn module_log(
    State(node): This,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Answer<Value> {
    let Query(query) = query.map_err(|error| ApiError::request(error.body_text()))?;
    let container = match node.modules.state(&name) {
        Some(Became::Running { container } | Became::Starting { container }) => container,
        Some(_) => {
            return Err(ApiError::not_found(format!(
                "the module {name} does not run; trustctl module list says why"
            )));
        }
        None => return Err(ApiError::not_found(format!("there is no module {name}"))),
    };
    let engine =
        node.modules.engine().ok_or_else(|| ApiError::node("the engine does not answer"))?;
    let log = engine.logs(&container, query.lines.min(MOST_LINES)).await.map_err(ApiError::node)?;
    Ok(Json(json!({ "log": log })))
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
async fn ledger_extend(
    State(node): This,
    request: Result<Json<LedgerText>, JsonRejection>,
) -> Answer<Value> {
    let (seq, new) = node.approvals.extend(&request?.0.log).await.map_err(ledger_error)?;
    node.modules.wake();
    Ok(Json(json!({ "statements": seq, "new": new })))
}

/// Takes a bundle of the chain, as relays give it.
async fn chain_take(State(node): This, bundle: Result<String, StringRejection>) -> Answer<Value> {
    let bundle = bundle.map_err(|error| ApiError::request(error.body_text()))?;
    let new = node.approvals.take(&bundle).await.map_err(ledger_error)?;
    node.modules.wake();
    Ok(Json(json!({ "new": new })))
}

fn ledger_error(error: ApprovalError) -> ApiError {
    match error {
        ApprovalError::Log(_) | ApprovalError::Fork | ApprovalError::HighWater { .. } => {
            ApiError::new(StatusCode::CONFLICT, "ledger", error)
        }
        ApprovalError::Chain(_) | ApprovalError::NoChain => {
            ApiError::new(StatusCode::CONFLICT, "chain", error)
        }
        ApprovalError::Io { .. } | ApprovalError::Tpm(_) => ApiError::node(error),
    }
}

/// Takes the log that is here for the beginning. Said first, in the register that every quote
/// shows.
async fn ledger_reset(State(node): This) -> Answer<Value> {
    node.base.audit.record("ledger-reset", &json!({})).await.map_err(ApiError::node)?;
    let mark = node.approvals.reset().await.map_err(ledger_error)?;
    node.modules.wake();
    Ok(Json(json!({ "statements": mark.seq })))
}
