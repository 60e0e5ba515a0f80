//! A checkpoint, its signatures, and the keys that node.toml names.
#![no_main]
// A fuzz target says what it found by panicking.
#![allow(clippy::expect_used)]

use ledger::{Checkpoint, HighWater, Log, NoteKey, TrustPolicy, Role, SigningKey, Witnessing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = NoteKey::parse(text) {
        assert_eq!(key.to_string(), text, "one spelling for one key");
    }
    let _ = Checkpoint::parse(text);
    let key = |name: &str, role, n| {
        NoteKey::new(name, role, SigningKey::from_bytes(&[n; 32]).verifying_key())
            .expect("a key")
            .to_string()
    };
    let witnesses = [key("w1.example", Role::Witness, 1), key("w2.example", Role::Witness, 2)];
    let witnessing =
        Witnessing::new(&key("log.example", Role::Log, 9), &witnesses, 1, 100).expect("a policy");
    let approver = measure::hex(SigningKey::from_bytes(&[3; 32]).verifying_key().as_bytes());
    let mut policy = TrustPolicy::new("home", &[approver], 1).expect("an approver");
    policy.witnessing = Some(witnessing);
    // An empty log, and this as its checkpoint.
    if let Ok(log) = Log::replay(&policy, &format!("\n{text}"), &HighWater::default()) {
        assert!(log.witnessed(u64::MAX).is_some());
    }
});
