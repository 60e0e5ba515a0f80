//! A log of approvals whose approvers are known.
#![no_main]
// A fuzz target says what it found by panicking.
#![allow(clippy::expect_used)]

use ledger::{HighWater, Log, TrustPolicy, SigningKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let approvers = [1, 2, 3]
        .map(|n| measure::hex(SigningKey::from_bytes(&[n; 32]).verifying_key().as_bytes()));
    let policy = TrustPolicy::new("home", &approvers, 2).expect("three approvers");
    let Ok(log) = Log::replay(&policy, text, &HighWater::default()) else { return };
    // What was taken once is taken again, and is what it was.
    let again = Log::replay(&policy, text, &log.high_water()).expect("the same log");
    assert_eq!(again.high_water(), log.high_water());
    for image in log.images() {
        let _ = log.decide(&image.digest, image.iat, 0);
    }
});
