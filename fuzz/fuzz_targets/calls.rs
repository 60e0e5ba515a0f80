//! Calls of a module. The first line is the name of the call, and the request follows.
#![no_main]
// A fuzz target reports its findings by panics.
#![allow(clippy::expect_used)]

use basalt_trustd::keys::derive::{Binding, RootKey};
use basalt_trustd::module_api::Caller;
use config::{Access, KeyBinding, Quota};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

thread_local! {
    static CALLER: Caller = {
        let (crypto, quota) = (Vec::new(), Quota::default());
        Caller::new(
            &RootKey::from_bytes(&[7; 32]),
            "m",
            "container",
            "sha256:00",
            Access { crypto, keys_bound_to: KeyBinding::Approvers, quota },
            Binding::Approvers([7; 32]),
        )
    };
}

/// Returns the answer of a call that succeeds.
fn call(caller: &Caller, name: &str, request: &str) -> Option<Value> {
    let answer = caller.compute(name, request)?.ok()?;
    Some(serde_json::from_str(answer.get()).expect("an answer is JSON"))
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((name, body)) = text.split_once('\n') else { return };
    CALLER.with(|caller| {
        let Some(answer) = call(caller, name, body) else { return };
        assert!(api::module::CALL_NAMES.contains(&name));
        let request: Value = serde_json::from_str(body).expect("an accepted request is JSON");
        match name {
            "vrf/prove" => {
                let verify = json!({
                    "suite": request["suite"],
                    "alpha": request["alpha"],
                    "public_key": answer["public_key"],
                    "pi": answer["pi"],
                });
                let verified = call(caller, "vrf/verify", &verify.to_string());
                let verified = verified.expect("a proof can be verified");
                assert_eq!(verified["beta"], answer["beta"]);
            }
            "seal" => {
                let mut unseal = json!({ "sealed": answer["sealed"] });
                if let Some(context) = request.get("context") {
                    unseal["context"] = context.clone();
                }
                let unsealed = call(caller, "unseal", &unseal.to_string());
                assert_eq!(unsealed.expect("sealed data unseals")["data"], request["data"]);
            }
            "vrf/verify" if answer["valid"] == true => assert!(answer["beta"].is_string()),
            _ => {}
        }
    });
});
