//! Logs of approvals. The approvers' keys are known, so that the corpus has valid signatures.
#![no_main]
// A fuzz target reports its findings by panics.
#![allow(clippy::expect_used)]

use ledger::{HighWaterMark, Log, SigningKey, TrustPolicy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let approvers = [1, 2, 3]
        .map(|n| measure::hex(SigningKey::from_bytes(&[n; 32]).verifying_key().as_bytes()));
    let policy = TrustPolicy::new("home", &approvers, 2).expect("three approvers");
    let Ok(log) = Log::replay(&policy, text, &HighWaterMark::default()) else { return };
    // An accepted log is accepted again by a node that has seen it.
    let again = Log::replay(&policy, text, &log.high_water_mark()).expect("the same log");
    assert_eq!(again.high_water_mark(), log.high_water_mark());
    for image in log.images() {
        let _ = log.decide(&image.digest, image.iat, 0);
    }
});
