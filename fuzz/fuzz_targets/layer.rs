//! Image layers: gzip, zstd or plain tar.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Limits, inspect};

fuzz_target!(|data: &[u8]| {
    let limits = Limits { unpacked: 4 << 20, ..Limits::default() };
    if let Ok(info) = inspect(data, &limits) {
        assert!(info.unpacked <= limits.unpacked);
    }
});
