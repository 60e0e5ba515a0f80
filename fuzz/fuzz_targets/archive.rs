//! Image archives of third parties. The input is the SHA-256 of the approved manifest (32 bytes)
//! and the archive (tar).
#![no_main]
// A fuzz target reports its findings by panics.
#![allow(clippy::expect_used)]

use libfuzzer_sys::fuzz_target;
use oci::{Limits, Memory, Platform, export, import, resolve};
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
    // A verified image can be exported, and the export verifies as the same image.
    let exported = export(&blobs, &image, "basalt.local/image:x", Vec::new())
        .expect("a verified image can be exported");
    let mut imported = Memory::default();
    import(&mut exported.as_slice(), &mut imported, &limits).expect("an export can be imported");
    resolve(&imported, &image.digest, &Platform::linux("arm64"), &limits)
        .expect("the imported image has the same digest")
        .verify(&imported, &limits)
        .expect("the imported image verifies");
});
