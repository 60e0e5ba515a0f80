//! The owner's API against what trustd/openapi.json says of it, on a node that really runs
//! something.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use basalt_trustd::admission::log_sources::Sources;
use basalt_trustd::admission::relays::Relays;
use basalt_trustd::images::fetch::Client;
use basalt_trustd::owner_api::routes;
use deployment::DesiredState;
use http_body_util::BodyExt as _;
use ledger::Status;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::common::signer;
use crate::images::image;
use crate::node::{Node, run};

fn document() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_route_is_described_and_nothing_else_is() {
    let document = document();
    let mut described: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        described.extend(
            methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())),
        );
    }
    let mut routed: Vec<(String, String)> = Vec::new();
    for (path, methods) in routes::listed() {
        routed.extend(methods.iter().map(|method| (path.to_owned(), (*method).to_owned())));
    }
    described.sort();
    routed.sort();
    assert_eq!(described, routed);
}

struct Api {
    router: axum::Router,
    document: Value,
    /// What was answered so far: method, path, status.
    seen: std::collections::BTreeSet<(String, String, String)>,
}

impl Api {
    fn of(node: &Node) -> Self {
        let client = Client::new(&[], std::time::Duration::from_secs(3)).unwrap();
        let router = routes::router(Arc::new(routes::Node {
            base: node.base(&"ab".repeat(32)),
            modules: node.modules.clone(),
            approvals: node.approvals.clone(),
            sources: Arc::new(
                Sources::new(&node.config, &node.settings.boot_log, client.clone()).unwrap(),
            ),
            relays: Arc::new(Relays::new(&node.config, client).unwrap()),
            tickets: node.tickets.clone(),
        }));
        Self { router, document: document(), seen: Default::default() }
    }

    /// Asks, and holds the answer against the description.
    async fn ask(
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
        let described = &self.document["paths"][path][method]["responses"][status.as_str()]["content"]
            [&kind]["schema"];
        assert!(
            described.is_object(),
            "{method} {uri} answers {status} as {kind}, which is not described: {text}"
        );
        if kind == "application/json" {
            let schema = json!({ "allOf": [described], "components": self.document["components"] });
            let validator = jsonschema::draft202012::new(&schema).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let problems: Vec<String> = validator
                .iter_errors(&value)
                .map(|e| format!("{}: {e}", e.instance_path()))
                .collect();
            assert!(problems.is_empty(), "{method} {uri}: {problems:?} in {text}");
        }
        self.seen.insert((method.to_owned(), path.to_owned(), status.as_str().to_owned()));
        (status, text)
    }
}

#[test]
fn every_answer_is_as_described() {
    run(async {
        let recovery = policy::RecoveryKey::from_bytes([4; 32]).public().unwrap();
        let mut node = Node::with("api", &format!("[keys]\nrecovery = \"{recovery}\"\n")).await;
        let (good, evil) = (image("good"), image("evil"));
        node.state(&good.digest, Status::Approved).await;
        let mut api = Api::of(&node);
        let junk = || Body::from("{");
        let toml = |digest: &str| {
            format!("memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{digest}\"\n")
        };

        assert_eq!(api.ask("put", "/v1/images", "/v1/images", good.archive()).await.0, 200);
        assert_eq!(
            api.ask("put", "/v1/images", "/v1/images", "not a tar".repeat(1000)).await.0,
            422
        );
        let spec = node.spec("app", DesiredState::Run, &toml(&good.digest));
        let sent = |spec: &deployment::SignedSpec| serde_json::to_string(spec).unwrap();
        assert_eq!(
            api.ask("put", "/v1/modules/{name}", "/v1/modules/app", sent(&spec)).await.0,
            200
        );
        assert_eq!(
            api.ask("put", "/v1/modules/{name}", "/v1/modules/app", sent(&spec)).await.0,
            409,
            "it is not newer"
        );
        assert_eq!(
            api.ask("put", "/v1/modules/{name}", "/v1/modules/other", sent(&spec)).await.0,
            400,
            "it is for another"
        );
        let mut forged = spec.clone();
        forged
            .signature
            .replace_range(20..22, if &forged.signature[20..22] == "00" { "01" } else { "00" });
        assert_eq!(
            api.ask("put", "/v1/modules/{name}", "/v1/modules/app", sent(&forged)).await.0,
            403
        );
        assert_eq!(api.ask("put", "/v1/modules/{name}", "/v1/modules/app", junk()).await.0, 400);
        node.apply("evil", &toml(&evil.digest));
        node.running("app").await;
        node.refused("evil").await;

        for path in ["/v1/status", "/v1/modules", "/v1/audit", "/v1/openapi.json"] {
            assert_eq!(api.ask("get", path, path, Body::empty()).await.0, 200);
        }
        let log = "/v1/modules/{name}/log";
        assert_eq!(api.ask("get", log, "/v1/modules/app/log?lines=5", Body::empty()).await.0, 200);
        assert_eq!(api.ask("get", log, "/v1/modules/evil/log", Body::empty()).await.0, 404);
        assert_eq!(
            api.ask("get", log, "/v1/modules/app/log?lines=many", Body::empty()).await.0,
            400
        );
        let nonce = json!({ "nonce": "ab".repeat(16) }).to_string();
        assert_eq!(api.ask("post", "/v1/quote", "/v1/quote", nonce).await.0, 200);
        assert_eq!(api.ask("post", "/v1/quote", "/v1/quote", "{\"nonce\":\"ab\"}").await.0, 400);
        assert_eq!(
            api.ask("get", "/v1/endorsement", "/v1/endorsement", Body::empty()).await.0,
            200
        );
        let credential = |blob: &str| json!({ "blob": blob, "seed": "00" }).to_string();
        assert_eq!(
            api.ask("post", "/v1/activate-credential", "/v1/activate-credential", credential("00"))
                .await
                .0,
            422
        );
        assert_eq!(
            api.ask("post", "/v1/activate-credential", "/v1/activate-credential", credential("x"))
                .await
                .0,
            400
        );
        let made = {
            let (tpm, nonce) = (node.audit.tpm(), [1; 32]);
            let attestation =
                measure::TpmKey::attestation(&tpm.quote(nonce).await.unwrap().key).unwrap();
            let endorsement =
                measure::TpmKey::endorsement(&tpm.endorsement().await.unwrap().area).unwrap();
            measure::make_credential(&endorsement, &attestation.name(), &nonce, &[3; 32]).unwrap()
        };
        let made = json!({ "blob": measure::hex(&made.blob), "seed": measure::hex(&made.seed) })
            .to_string();
        assert_eq!(
            api.ask("post", "/v1/activate-credential", "/v1/activate-credential", made).await.0,
            200
        );
        let (_, text) = api.ask("get", "/v1/ledger", "/v1/ledger", Body::empty()).await;
        assert_eq!(api.ask("put", "/v1/ledger", "/v1/ledger", text).await.0, 200);
        assert_eq!(api.ask("put", "/v1/ledger", "/v1/ledger", "{\"log\":\"\"}").await.0, 409);
        assert_eq!(api.ask("put", "/v1/ledger", "/v1/ledger", junk()).await.0, 400);
        assert_eq!(
            api.ask("post", "/v1/ledger/reset", "/v1/ledger/reset", Body::empty()).await.0,
            200
        );
        // This node follows no chain (trustd/tests/chain.rs).
        assert_eq!(api.ask("put", "/v1/ledger/bundle", "/v1/ledger/bundle", "{}").await.0, 409);
        assert_eq!(
            api.ask("put", "/v1/ledger/bundle", "/v1/ledger/bundle", vec![0xff]).await.0,
            400
        );
        assert_eq!(api.ask("get", "/v1/policies", "/v1/policies", Body::empty()).await.0, 200);
        let policies = |signer: &policy::Signer| policy::Policies {
            signer: signer.public().hex(),
            policies: vec![signer.sign("virt", &measure::Pcr([1; 32]))],
        };
        let send = |signer: &policy::Signer| policies(signer).text();
        assert_eq!(api.ask("put", "/v1/policies", "/v1/policies", send(&signer())).await.0, 200);
        assert_eq!(
            api.ask(
                "put",
                "/v1/policies",
                "/v1/policies",
                send(&policy::Signer::of_builder(&[8; 32]))
            )
            .await
            .0,
            403
        );
        assert_eq!(api.ask("put", "/v1/policies", "/v1/policies", junk()).await.0, 400);
        let root = json!({ "root": "00".repeat(32) }).to_string();
        assert_eq!(api.ask("get", "/v1/recovery", "/v1/recovery", Body::empty()).await.0, 200);
        assert_eq!(
            api.ask("put", "/v1/recovery", "/v1/recovery", root.clone()).await.0,
            409,
            "it has its own"
        );
        assert_eq!(api.ask("put", "/v1/recovery", "/v1/recovery", junk()).await.0, 400);
        std::fs::remove_file(node.settings.data.join("root.escrow")).unwrap();
        assert_eq!(api.ask("get", "/v1/recovery", "/v1/recovery", Body::empty()).await.0, 404);
        std::fs::write(node.settings.data.join("root.sealed"), "junk").unwrap();
        assert_eq!(api.ask("put", "/v1/recovery", "/v1/recovery", root).await.0, 200);
        assert!(node.kinds().await.contains(&"root-key-restored".to_owned()));
        // Nobody plays init here.
        let service = "/v1/services/{name}/{verb}";
        assert_eq!(
            api.ask("post", service, "/v1/services/dockerd/restart", Body::empty()).await.0,
            500
        );
        assert_eq!(
            api.ask("post", service, "/v1/services/dockerd/stop", Body::empty()).await.0,
            404
        );
        assert_eq!(
            api.ask("post", "/v1/node/{verb}", "/v1/node/reboot", Body::empty()).await.0,
            500
        );
        assert_eq!(
            api.ask("post", "/v1/node/{verb}", "/v1/node/dance", Body::empty()).await.0,
            404
        );

        // What a page in a browser could have it do with the owner's certificate: nothing.
        for header in [("origin", "https://other.example"), ("sec-fetch-site", "cross-site")] {
            let request = Request::post("/v1/node/poweroff")
                .header(header.0, header.1)
                .body(Body::empty())
                .unwrap();
            assert_eq!(api.router.clone().oneshot(request).await.unwrap().status(), 403);
        }
        // A request of another shape is one that is not as it should be, in the one form of errors.
        assert_eq!(api.ask("post", "/v1/quote", "/v1/quote", "{\"nonce\":5}").await.0, 400);
        assert_eq!(
            api.ask("put", "/v1/ledger", "/v1/ledger", "{\"log\":\"\",\"x\":1}").await.0,
            400
        );

        let (_, page) = api.ask("get", "/", "/", Body::empty()).await;
        assert!(
            page.contains(&good.digest) && page.contains("running") && page.contains("unknown"),
            "{page}"
        );
        let (_, metrics) = api.ask("get", "/metrics", "/metrics", Body::empty()).await;
        for line in [
            "basalt_engine_up 1",
            "basalt_module_state{module=\"app\",state=\"running\"} 1",
            "basalt_module_allowed{module=\"evil\"} 0",
            "basalt_ledger_statements 1",
            "basalt_audit_events_total{type=\"module-started\"} 1",
        ] {
            assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }

        // Everything that is described was answered at least once; what stays needs a broken node.
        let mut left: Vec<String> = Vec::new();
        for (path, methods) in api.document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    if !api.seen.contains(&(method.clone(), path.clone(), status.clone())) {
                        left.push(format!("{method} {path} {status}"));
                    }
                }
            }
        }
        // Strangers alone are told to wait (attest.rs), and a TPM's queue is never full here.
        left.retain(|what| {
            ![" 500", " 503", " 507", " 429"].iter().any(|status| what.ends_with(status))
        });
        left.sort();
        assert_eq!(
            left,
            [
                "post /v1/ledger/reset 409",
                "post /v1/node/{verb} 200",
                "post /v1/services/{name}/{verb} 200",
                "put /v1/ledger/bundle 200"
            ]
        );
    });
}
