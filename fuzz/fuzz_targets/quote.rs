//! Structures that a TPM claims to have signed, and the public areas of its keys.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use measure::{Pcr, TpmKey, parse_quote};

fuzz_target!(|data: &[u8]| {
    let pcrs: BTreeMap<u32, Pcr> = [(14, Pcr([1; 32])), (15, Pcr([2; 32]))].into();
    if parse_quote(data, b"qualifying", &pcrs).is_ok() {
        assert!(data.starts_with(&[0xff, b'T', b'C', b'G', 0x80, 0x18]));
        let truncated = &data[..data.len() - 1];
        assert!(parse_quote(truncated, b"qualifying", &pcrs).is_err());
    }
    for parse in [TpmKey::attestation, TpmKey::endorsement] {
        if let Ok(key) = parse(data) {
            assert_eq!(key.public_area(), data);
        }
    }
});
