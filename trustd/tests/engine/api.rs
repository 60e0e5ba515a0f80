//! Compares the owner's API with trustd/openapi.json, on a node that runs a module.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use basalt_trustd::admission::log_sources::LogPoller;
use basalt_trustd::admission::relays::RelayPoller;
use basalt_trustd::images::fetch::RegistryClient;
use basalt_trustd::owner_api::routes;
use basalt_trustd::owner_api::state::{NodeState, OwnerState};
use deployment::DesiredState;
use http_body_util::BodyExt as _;
use ledger::Status;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::common::signer;
use crate::images::{TestImage, image};
use crate::node::{Node, run};

fn document() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let document = document();
    let mut described: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        described.extend(
            methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())),
        );
    }
    let mut routed: Vec<(String, String)> = Vec::new();
    for (path, methods) in routes::list() {
        routed.extend(methods.iter().map(|method| (path.to_owned(), (*method).to_owned())));
    }
    described.sort();
    routed.sort();
    assert_eq!(described, routed);
}

/// Returns the state of the API of a node that has its root key.
pub(crate) fn owner_state(node: &Node, state: Arc<NodeState>) -> Arc<OwnerState> {
    let client = RegistryClient::new(&[], std::time::Duration::from_secs(3)).unwrap();
    let log_sources = LogPoller::new(&node.config, &node.settings.boot_log, client.clone());
    Arc::new(OwnerState {
        node: state,
        modules: node.modules.clone(),
        admission: node.admission.clone(),
        log_sources: Arc::new(log_sources.unwrap()),
        relays: Arc::new(RelayPoller::new(&node.config, client).unwrap()),
        tickets: node.tickets.clone(),
    })
}

/// The API of a node, and the answers that were compared with the document.
struct Api {
    router: axum::Router,
    document: Value,
    /// Method, path and status of each answer.
    answers: BTreeSet<(String, String, String)>,
}

impl Api {
    fn of(node: &Node) -> Self {
        let router = routes::router(owner_state(node, node.node_state(&node.certificate)));
        Self { router, document: document(), answers: BTreeSet::new() }
    }

    /// Sends a request and validates the answer against its schema. `path` is the route and `uri`
    /// the path that is requested.
    async fn call(
        &mut self,
        method: &str,
        path: &str,
        uri: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, String) {
        let request = Request::builder()
            .method(&*method.to_uppercase())
            .uri(uri)
            .header("content-type", "application/json");
        let response =
            self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let text =
            String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec())
                .unwrap();
        let responses = &self.document["paths"][path][method]["responses"];
        let schema = &responses[status.as_str()]["content"][&kind]["schema"];
        assert!(
            schema.is_object(),
            "{method} {uri} answers {status} as {kind}, which the document does not have: {text}"
        );
        if kind == "application/json" {
            let schema = json!({ "allOf": [schema], "components": self.document["components"] });
            let validator = jsonschema::draft202012::new(&schema).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let problems: Vec<String> = validator
                .iter_errors(&value)
                .map(|e| format!("{}: {e}", e.instance_path()))
                .collect();
            assert!(problems.is_empty(), "{method} {uri}: {problems:?} in {text}");
        }
        let status_text = status.as_str().to_owned();
        self.answers.insert((method.to_owned(), path.to_owned(), status_text));
        (status, text)
    }

    /// Sends a request to a route without parameters and returns the status.
    async fn status(&mut self, method: &str, path: &str, body: impl Into<Body>) -> StatusCode {
        self.call(method, path, path, body).await.0
    }

    /// Sends a request to a route with parameters and returns the status.
    async fn status_of(
        &mut self,
        method: &str,
        path: &str,
        uri: &str,
        body: impl Into<Body>,
    ) -> StatusCode {
        self.call(method, path, uri, body).await.0
    }

    /// Returns the answers of the document that no call gave.
    fn missing_answers(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    if !self.answers.contains(&(method.clone(), path.clone(), status.clone())) {
                        missing.push(format!("{method} {path} {status}"));
                    }
                }
            }
        }
        missing
    }
}

fn module_toml(digest: &str) -> String {
    format!("memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{digest}\"\n")
}

const INVALID_JSON: &str = "{";

#[test]
fn every_answer_matches_its_schema() {
    run(async {
        let recovery = policy::RecoveryKey::from_bytes([4; 32]).public().unwrap();
        let mut node = Node::with("api", &format!("[keys]\nrecovery = \"{recovery}\"\n")).await;
        let (good, evil) = (image("good"), image("evil"));
        node.add_statement(&good.digest, Status::Approved).await;
        let mut api = Api::of(&node);
        call_modules(&mut api, &node, &good).await;
        node.apply("evil", &module_toml(&evil.digest));
        node.wait_until_running("app").await;
        node.wait_until_denied("evil").await;

        for path in ["/v1/status", "/v1/modules", "/v1/audit", "/v1/openapi.json"] {
            assert_eq!(api.status("get", path, Body::empty()).await, 200);
        }
        let log = "/v1/modules/{name}/log";
        let log_of = |name: &str| format!("/v1/modules/{name}");
        let lines = format!("{}?lines=5", log_of("app/log"));
        assert_eq!(api.status_of("get", log, &lines, Body::empty()).await, 200);
        assert_eq!(api.status_of("get", log, &log_of("evil/log"), Body::empty()).await, 404);
        let lines = format!("{}?lines=many", log_of("app/log"));
        assert_eq!(api.status_of("get", log, &lines, Body::empty()).await, 400);
        call_attestation(&mut api, &node).await;
        call_ledger(&mut api).await;
        call_policies_and_recovery(&mut api, &node).await;
        call_init(&mut api).await;
        reject_cross_site_requests(&api).await;
        check_page_and_metrics(&mut api, &good.digest).await;

        // The remaining answers need a broken node, a full queue of the TPM, or an anonymous client
        // (attest.rs).
        let mut missing = api.missing_answers();
        missing.retain(|answer| {
            ![" 500", " 503", " 507", " 429"].iter().any(|status| answer.ends_with(status))
        });
        missing.sort();
        assert_eq!(
            missing,
            [
                "post /v1/ledger/reset 409",
                "post /v1/node/{verb} 200",
                "post /v1/services/{name}/{verb} 200",
                "put /v1/ledger/bundle 200"
            ]
        );
    });
}

async fn call_modules(api: &mut Api, node: &Node, good: &TestImage) {
    assert_eq!(api.status("put", "/v1/images", good.archive()).await, 200);
    assert_eq!(api.status("put", "/v1/images", "not a tar".repeat(1000)).await, 422);
    let spec = node.spec("app", DesiredState::Run, &module_toml(&good.digest));
    let body = |spec: &deployment::SignedSpec| serde_json::to_string(spec).unwrap();
    let (path, uri) = ("/v1/modules/{name}", "/v1/modules/app");
    assert_eq!(api.status_of("put", path, uri, body(&spec)).await, 200);
    assert_eq!(
        api.status_of("put", path, uri, body(&spec)).await,
        409,
        "the generation is not greater"
    );
    assert_eq!(
        api.status_of("put", path, "/v1/modules/other", body(&spec)).await,
        400,
        "the spec is for another module"
    );
    let mut forged = spec.clone();
    forged
        .signature
        .replace_range(20..22, if &forged.signature[20..22] == "00" { "01" } else { "00" });
    assert_eq!(api.status_of("put", path, uri, body(&forged)).await, 403);
    let mut other = deployment::Spec::read(&spec.spec).unwrap();
    (other.node, other.generation) = ("cd".repeat(32), u64::MAX);
    let (status, answer) = api.call("put", path, uri, body(&node.owner.sign(&other))).await;
    assert!(status == 403 && answer.contains("\"wrong-node\""), "{status}: {answer}");
    assert_eq!(api.status_of("put", path, uri, INVALID_JSON).await, 400);
}

async fn call_attestation(api: &mut Api, node: &Node) {
    let nonce = json!({ "nonce": "ab".repeat(16) }).to_string();
    assert_eq!(api.status("post", "/v1/quote", nonce).await, 200);
    assert_eq!(api.status("post", "/v1/quote", "{\"nonce\":\"ab\"}").await, 400);
    assert_eq!(api.status("post", "/v1/quote", "{\"nonce\":5}").await, 400);
    assert_eq!(api.status("get", "/v1/endorsement", Body::empty()).await, 200);
    let path = "/v1/activate-credential";
    let credential = |blob: &str| json!({ "blob": blob, "seed": "00" }).to_string();
    assert_eq!(api.status("post", path, credential("00")).await, 422);
    assert_eq!(api.status("post", path, credential("x")).await, 400);
    let (tpm, nonce) = (node.audit.tpm(), [1; 32]);
    let attestation = measure::TpmKey::attestation(&tpm.quote(nonce).await.unwrap().key).unwrap();
    let public_area = tpm.read_endorsement().await.unwrap().public_area;
    let endorsement = measure::TpmKey::endorsement(&public_area).unwrap();
    let made =
        measure::make_credential(&endorsement, &attestation.name(), &nonce, &[3; 32]).unwrap();
    let made = json!({ "blob": measure::hex(&made.blob), "seed": measure::hex(&made.seed) });
    assert_eq!(api.status("post", path, made.to_string()).await, 200);
}

async fn call_ledger(api: &mut Api) {
    let (_, text) = api.call("get", "/v1/ledger", "/v1/ledger", Body::empty()).await;
    assert_eq!(api.status("put", "/v1/ledger", text).await, 200);
    assert_eq!(api.status("put", "/v1/ledger", "").await, 409);
    let broken = futures_util::stream::iter([Ok("{"), Err(std::io::Error::other("it breaks off"))]);
    assert_eq!(api.status("put", "/v1/ledger", Body::from_stream(broken)).await, 400);
    assert_eq!(api.status("post", "/v1/ledger/reset", Body::empty()).await, 200);
    // This node follows no chain; trustd/tests/chain.rs has nodes that do.
    assert_eq!(api.status("put", "/v1/ledger/bundle", "{}").await, 409);
    assert_eq!(api.status("put", "/v1/ledger/bundle", vec![0xff]).await, 400);
}

async fn call_policies_and_recovery(api: &mut Api, node: &Node) {
    assert_eq!(api.status("get", "/v1/policies", Body::empty()).await, 200);
    let policies = |signer: &policy::Signer| {
        let policies = vec![signer.sign("virt", &measure::Pcr([1; 32]))];
        policy::Policies { signer: signer.public().hex(), policies }.text()
    };
    assert_eq!(api.status("put", "/v1/policies", policies(&signer())).await, 200);
    let other = policy::Signer::from_builder_key(&[8; 32]);
    assert_eq!(api.status("put", "/v1/policies", policies(&other)).await, 403);
    assert_eq!(api.status("put", "/v1/policies", INVALID_JSON).await, 400);

    let root = json!({ "root": "00".repeat(32) }).to_string();
    assert_eq!(api.status("get", "/v1/recovery", Body::empty()).await, 200);
    assert_eq!(
        api.status("put", "/v1/recovery", root.clone()).await,
        409,
        "the node has its root key"
    );
    assert_eq!(api.status("put", "/v1/recovery", INVALID_JSON).await, 400);
    std::fs::remove_file(node.settings.data.join("root.escrow")).unwrap();
    assert_eq!(api.status("get", "/v1/recovery", Body::empty()).await, 404);
    std::fs::write(node.settings.data.join("root.sealed"), "junk").unwrap();
    assert_eq!(api.status("put", "/v1/recovery", root).await, 200);
    assert!(node.event_kinds().await.contains(&"root-key-restored".to_owned()));
}

/// init does not run in this test, so a valid request fails on the node.
async fn call_init(api: &mut Api) {
    let (service, node) = ("/v1/services/{name}/{verb}", "/v1/node/{verb}");
    let uri = "/v1/services/dockerd/restart";
    assert_eq!(api.status_of("post", service, uri, Body::empty()).await, 500);
    let uri = "/v1/services/dockerd/stop";
    assert_eq!(api.status_of("post", service, uri, Body::empty()).await, 404);
    assert_eq!(api.status_of("post", node, "/v1/node/reboot", Body::empty()).await, 500);
    assert_eq!(api.status_of("post", node, "/v1/node/dance", Body::empty()).await, 404);
}

/// A web page in a browser that has the owner's certificate must not change anything.
async fn reject_cross_site_requests(api: &Api) {
    for header in [("origin", "https://other.example"), ("sec-fetch-site", "cross-site")] {
        let request = Request::post("/v1/node/poweroff")
            .header(header.0, header.1)
            .body(Body::empty())
            .unwrap();
        assert_eq!(api.router.clone().oneshot(request).await.unwrap().status(), 403);
    }
}

async fn check_page_and_metrics(api: &mut Api, running_digest: &str) {
    let (_, page) = api.call("get", "/", "/", Body::empty()).await;
    assert!(
        page.contains(running_digest) && page.contains("running") && page.contains("unknown"),
        "{page}"
    );
    let (_, metrics) = api.call("get", "/metrics", "/metrics", Body::empty()).await;
    for line in [
        "basalt_engine_up 1",
        "basalt_module_state{module=\"app\",state=\"running\"} 1",
        "basalt_module_allowed{module=\"evil\"} 0",
        "basalt_ledger_statements 1",
        "basalt_audit_events_total{type=\"module-started\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}
