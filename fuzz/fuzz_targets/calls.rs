//! What a module may send: the name of a call on the first line, then the request.
#![no_main]
// A fuzz target says what it found by panicking.
#![allow(clippy::expect_used)]

use basalt_trustd::module_api::{Caller, NAMES};
use basalt_trustd::keys::derive::{Binding, RootKey};
use config::{Access, BoundTo, Quota};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

thread_local! {
    static CALLER: Caller = Caller::new(
        &RootKey::from_bytes(&[7; 32]),
        "m",
        "container",
        "sha256:00",
        Access { crypto: Vec::new(), keys_bound_to: BoundTo::Approvers, quota: Quota::default() },
        Binding::Approvers([7; 32]),
    );
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((name, body)) = text.split_once('\n') else { return };
    CALLER.with(|caller| {
        if let Some(Ok(answer)) = caller.compute(name, body) {
            assert!(NAMES.contains(&name));
            // What was taken is an object of a few strings.
            let request: Value = serde_json::from_str(body).expect("JSON");
            // What it says holds.
            match name {
                "vrf/prove" => {
                    let verify = json!({ "suite": request["suite"], "alpha": request["alpha"], "public_key": answer["public_key"], "pi": answer["pi"] });
                    assert!(matches!(caller.compute("vrf/verify", &verify.to_string()), Some(Ok(v)) if v["beta"] == answer["beta"]));
                }
                "seal" => {
                    let mut open = json!({ "sealed": answer["sealed"] });
                    if let Some(context) = request.get("context") {
                        open["context"] = context.clone();
                    }
                    assert!(matches!(caller.compute("unseal", &open.to_string()), Some(Ok(v)) if v["data"] == request["data"]));
                }
                "vrf/verify" if answer["valid"] == true => assert!(answer["beta"].is_string()),
                _ => {}
            }
        }
    });
});
