//! Compares every call of a module with trustd/openapi-module.json.

use api::module::CALL_NAMES;
use client::{Client, Error, Suite, hex};
use serde_json::{Value, json};

use crate::node::run;
use crate::socket_host::{ALL_CALLS, Cgroup, LARGE_QUOTA, SocketHost, client, container};

/// Calls of a module, whose requests and answers are validated against their schemas.
struct Calls {
    client: Client,
    document: Value,
}

impl Calls {
    fn schema_problems(&self, schema: &Value, value: &Value) -> Vec<String> {
        let schema = json!({ "allOf": [schema], "components": self.document["components"] });
        jsonschema::draft202012::new(&schema)
            .unwrap()
            .iter_errors(value)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect()
    }

    /// Makes a call and returns its status and answer.
    fn call(&mut self, name: &str, request: Value) -> (u16, Value) {
        let (status, answer) = match self.client.call_by_name::<Value>(name, &request) {
            Ok(answer) => (200, answer),
            Err(Error::Rejected { status, code, message }) => {
                (status, json!({ "error": { "code": code, "message": message } }))
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let operation = &self.document["paths"][format!("/v1/{name}")]["post"];
        let content = &operation["responses"][status.to_string()]["content"];
        let schema = &content["application/json"]["schema"];
        assert!(schema.is_object(), "{name}: the document has no answer {status}: {answer}");
        assert_eq!(self.schema_problems(schema, &answer), Vec::<String>::new(), "{name}: {answer}");
        if status == 200 {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let problems = self.schema_problems(schema, &request);
            assert!(problems.is_empty(), "{name} accepts {request}: {problems:?}");
        }
        (status, answer)
    }

    #[track_caller]
    fn answer(&mut self, name: &str, request: Value) -> Value {
        let (status, answer) = self.call(name, request);
        assert_eq!(status, 200, "{name}: {answer}");
        answer
    }

    fn status(&mut self, name: &str, request: Value) -> u16 {
        self.call(name, request).0
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn every_call_matches_its_schema() {
    let host = run(SocketHost::start());
    let socket = host.module(1, "m", &ALL_CALLS, LARGE_QUOTA);
    let _cgroup = Cgroup::enter(&container(1));
    let document = serde_json::from_str(include_str!("../../openapi-module.json")).unwrap();
    let mut calls = Calls { client: client(&socket), document };
    for suite in vrf::Suite::ALL {
        call_vrf(&mut calls, suite);
    }
    call_quotes(&mut calls);
    call_hash_and_hmac(&mut calls);
    call_sign_and_seal(&mut calls);
    call_batch(&mut calls);
    assert_eq!(text(&calls.answer("random", json!({ "bytes": 33 }))["random"]).len(), 66);
    assert_eq!(calls.status("random", json!({ "bytes": 1025 })), 400);
    for name in CALL_NAMES.iter().filter(|name| **name != "identity") {
        assert_eq!(calls.status(name, json!({ "other": 1 })), 400, "{name}");
    }
    let identity = client(&socket).identity().unwrap();
    assert_eq!((&*identity.module, identity.container), ("m", container(1)));
    assert_eq!(identity.bound_to, format!("approvers:{}", "07".repeat(32)));
}

fn call_vrf(calls: &mut Calls, suite: vrf::Suite) {
    let proof = calls.answer("vrf/prove", json!({ "suite": suite, "alpha": "00ff" }));
    let bytes = |member: &str| measure::unhex(text(&proof[member])).unwrap();
    let key = vrf::PublicKey::new(suite, &bytes("public_key")).unwrap();
    let beta = key.verify(&[0, 255], &bytes("pi")).unwrap().unwrap();
    assert_eq!(measure::hex(&beta), proof["beta"]);
    let mut request = json!({
        "suite": suite, "public_key": proof["public_key"], "alpha": "00ff", "pi": proof["pi"],
    });
    assert_eq!(calls.answer("vrf/verify", request.clone())["beta"], proof["beta"]);
    request["alpha"] = json!("00fe");
    assert_eq!(calls.answer("vrf/verify", request.clone()), json!({ "valid": false }));
    request["public_key"] = json!("00".repeat(33));
    assert_eq!(calls.status("vrf/verify", request), 400);
    let keys = calls.answer("vrf/keys", json!({ "suite": suite }));
    assert_eq!(keys["public_key"], proof["public_key"]);
}

/// The statement about a key names the key, the module and the verifier's nonce. The statement of a
/// module's quote is never the node's own.
fn call_quotes(calls: &mut Calls) {
    let (suite, nonce) = (Suite::Ed25519Tai, [9; 16]);
    let verify = |answer: &Value| {
        let evidence = serde_json::from_value(answer["evidence"].clone()).unwrap();
        trustctl::evidence::verify(&evidence, &nonce, None).unwrap().statement
    };
    let keys = calls.answer("vrf/keys", json!({ "suite": suite, "nonce": hex(&nonce) }));
    let statement = verify(&keys);
    let measure::AttestedStatement::VrfKey { public_key, module, suite: name, image, .. } =
        statement
    else {
        panic!("{statement:?}")
    };
    assert_eq!((json!(public_key), &*module), (keys["public_key"].clone(), "m"));
    assert_eq!((name.as_str(), image), (suite.as_str(), format!("sha256:{}", container(1))));
    let quote = calls.answer("quote", json!({ "nonce": hex(&nonce) }));
    let statement = verify(&quote);
    assert!(matches!(statement, measure::AttestedStatement::Module { .. }), "{statement:?}");
}

fn call_hash_and_hmac(calls: &mut Calls) {
    // Example of FIPS 180-4: the message "abc".
    let hash = calls.answer("hash", json!({ "algorithm": "sha256", "data": "616263" }));
    assert_eq!(hash["hash"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let mut mac = |label: &str, algorithm: &str| {
        calls.answer("hmac", json!({ "algorithm": algorithm, "label": label, "data": "00" }))
    };
    let macs = [mac("", "sha256"), mac("01", "sha256"), mac("", "sha512")];
    assert_ne!(macs[0], macs[1], "each label has its own key");
    assert_eq!(text(&macs[2]["mac"]).len(), 128);
    let default_label = calls.answer("hmac", json!({ "algorithm": "sha256", "data": "00" }));
    assert_eq!(default_label, macs[0]);
}

fn call_sign_and_seal(calls: &mut Calls) {
    for algorithm in ["ed25519", "ecdsa-p256-sha256"] {
        let signed = calls.answer("sign", json!({ "algorithm": algorithm, "data": "aabb" }));
        let mut request = json!({
            "algorithm": algorithm, "public_key": signed["public_key"], "data": "aabb",
            "signature": signed["signature"],
        });
        assert_eq!(calls.answer("verify", request.clone()), json!({ "valid": true }));
        request["data"] = json!("aabc");
        assert_eq!(calls.answer("verify", request.clone()), json!({ "valid": false }));
        request["signature"] = json!("00");
        assert_eq!(calls.status("verify", request), 400);
    }
    let sealed = calls.answer("seal", json!({ "context": "01", "data": "5e" }));
    let unseal = |context: &str| json!({ "context": context, "sealed": sealed["sealed"] });
    assert_eq!(calls.answer("unseal", unseal("01")), json!({ "data": "5e" }));
    assert_eq!(calls.status("unseal", unseal("02")), 422);
}

fn call_batch(calls: &mut Calls) {
    let hash = calls.answer("hash", json!({ "algorithm": "sha256", "data": "616263" }));
    let batch = json!({ "calls": [
        { "call": "hash", "request": { "algorithm": "sha256", "data": "616263" } },
        { "call": "identity" },
        { "call": "batch", "request": { "calls": [] } },
        { "call": "random", "request": { "bytes": 4 } },
        { "call": "hash", "request": { "algorithm": "md5", "data": "" } },
    ] });
    let batch = calls.answer("batch", batch);
    let answers = batch["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 5);
    assert_eq!(answers[0]["answer"], hash);
    assert_eq!(answers[1]["answer"]["module"], "m");
    assert_eq!(answers[2]["error"]["code"], "not-found");
    assert_eq!(text(&answers[3]["answer"]["random"]).len(), 8);
    assert_eq!(answers[4]["error"]["code"], "bad-request");
    let many = |n: usize| json!({ "calls": vec![json!({ "call": "identity" }); n] });
    assert_eq!(calls.answer("batch", many(1024))["answers"].as_array().unwrap().len(), 1024);
    assert_eq!(calls.status("batch", many(1025)), 400);
}
