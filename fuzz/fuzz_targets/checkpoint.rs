//! Checkpoints with their signatures, and the keys of node.toml.
#![no_main]
// A fuzz target reports its findings by panics.
#![allow(clippy::expect_used)]

use ledger::{
    Checkpoint, HighWaterMark, Log, NoteKey, Role, SigningKey, TrustPolicy, WitnessPolicy,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = NoteKey::parse(text) {
        assert_eq!(key.to_string(), text, "a key has one accepted text");
    }
    let _ = Checkpoint::parse(text);
    let key = |name: &str, role, n| {
        NoteKey::new(name, role, SigningKey::from_bytes(&[n; 32]).verifying_key())
            .expect("a key")
            .to_string()
    };
    let witnesses = [key("w1.example", Role::Witness, 1), key("w2.example", Role::Witness, 2)];
    let log_key = key("log.example", Role::Log, 9);
    let witness_policy = WitnessPolicy::new(&log_key, &witnesses, 1, 100).expect("a policy");
    let approver = measure::hex(SigningKey::from_bytes(&[3; 32]).verifying_key().as_bytes());
    let mut policy = TrustPolicy::new("home", &[approver], 1).expect("an approver");
    policy.witness_policy = Some(witness_policy);
    // The input is the checkpoint of an empty log.
    if let Ok(log) = Log::replay(&policy, &format!("\n{text}"), &HighWaterMark::default()) {
        assert!(log.witnessed_at(u64::MAX).is_some());
    }
});
