//! Policies for the root key, and an escrow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use measure::Pcr;
use policy::{Escrow, Policies, PublicKey, RecoveryKey};

fuzz_target!(|data: &[u8]| {
    if let Ok(escrow) = serde_json::from_slice::<Escrow>(data) {
        assert!(
            escrow.open(&RecoveryKey::from_bytes([9; 32])).is_err(),
            "nobody sealed anything to this key"
        );
    }
    let Ok(policies) = Policies::read(data) else { return };
    assert!(Policies::read(policies.text().as_bytes()).is_ok_and(|again| again == policies));
    let Ok(signer) = PublicKey::from_hex(&policies.signer) else { return };
    for policy in &policies.policies {
        let Some(pcr14) = measure::unhex(&policy.pcr14).and_then(|bytes| bytes.try_into().ok())
        else {
            continue;
        };
        assert!(
            policies.find(&signer, &Pcr(pcr14)).is_ok(),
            "what was read has good signatures only"
        );
    }
});
