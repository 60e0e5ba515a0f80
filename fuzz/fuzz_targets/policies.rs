//! Policies that unseal the root key, and the root key's escrow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use measure::Pcr;
use policy::{Escrow, Policies, PublicKey, RecoveryKey};

fuzz_target!(|data: &[u8]| {
    if let Ok(escrow) = serde_json::from_slice::<Escrow>(data) {
        let other_key = RecoveryKey::from_bytes([9; 32]);
        assert!(escrow.open(&other_key).is_err(), "the input was not sealed to this key");
    }
    let Ok(policies) = Policies::parse(data) else { return };
    let parsed = Policies::parse(policies.text().as_bytes());
    assert!(parsed.is_ok_and(|parsed| parsed == policies));
    let Ok(signer) = PublicKey::from_hex(&policies.signer) else { return };
    for policy in &policies.policies {
        let Some(pcr14) = measure::unhex(&policy.pcr14).and_then(|bytes| bytes.try_into().ok())
        else {
            continue;
        };
        let found = policies.find(&signer, &Pcr(pcr14));
        assert!(found.is_ok(), "the parser verified all signatures");
    }
});
