//! What a TPM is said to have signed, and the public areas of its keys.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use measure::{Pcr, TpmKey, read_quote};

fuzz_target!(|data: &[u8]| {
    let pcrs: BTreeMap<u32, Pcr> = [(14, Pcr([1; 32])), (15, Pcr([2; 32]))].into();
    if read_quote(data, b"qualifying", &pcrs).is_ok() {
        assert!(data.starts_with(&[0xff, b'T', b'C', b'G', 0x80, 0x18]));
        let spoilt = &data[..data.len() - 1];
        assert!(read_quote(spoilt, b"qualifying", &pcrs).is_err());
    }
    for read in [TpmKey::attestation, TpmKey::endorsement] {
        if let Ok(key) = read(data) {
            assert_eq!(key.area(), data);
        }
    }
});
