//! An archive that somebody sends: 32 bytes, the SHA-256 of the manifest that was approved, and the
//! tar.
#![no_main]
// A fuzz target says what it found by panicking.
#![allow(clippy::expect_used)]

use libfuzzer_sys::fuzz_target;
use oci::{Limits, Memory, Platform, emit, import, resolve};
use sha2::{Digest as _, Sha256};

fuzz_target!(|data: &[u8]| {
    let Some((digest, mut archive)) = data.split_first_chunk::<32>() else { return };
    let limits = Limits { archive: 1 << 20, json: 1 << 16, unpacked: 4 << 20, ..Limits::default() };
    let mut blobs = Memory::default();
    let _ = import(&mut archive, &mut blobs, &limits);
    for (digest, bytes) in &blobs.0 {
        assert_eq!(*digest, format!("sha256:{}", measure::hex(&Sha256::digest(bytes))));
    }
    let digest = format!("sha256:{}", measure::hex(digest));
    let Ok(image) = resolve(&blobs, &digest, &Platform::linux("arm64"), &limits) else { return };
    let Ok(image) = image.verify(&blobs, &limits) else { return };
    // What was verified goes out, and what goes out verifies.
    let out = emit(&blobs, &image, "basalt.local/image:x", Vec::new())
        .expect("a verified image is written");
    let mut again = Memory::default();
    import(&mut out.as_slice(), &mut again, &limits).expect("what was written is read");
    resolve(&again, &image.digest, &Platform::linux("arm64"), &limits)
        .expect("and is the same image")
        .verify(&again, &limits)
        .expect("whole");
});
