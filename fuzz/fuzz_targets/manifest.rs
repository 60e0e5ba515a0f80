//! Manifests, indexes and configs of images: documents that are separated by zero bytes, the
//! approved one first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Limits, Memory, Platform, resolve};
use sha2::{Digest as _, Sha256};

fuzz_target!(|data: &[u8]| {
    let mut blobs = Memory::default();
    let mut first = None;
    for document in data.split(|b| *b == 0) {
        let digest = format!("sha256:{}", measure::hex(&Sha256::digest(document)));
        first.get_or_insert_with(|| digest.clone());
        blobs.0.insert(digest, document.into());
    }
    let Some(digest) = first else { return };
    let limits = Limits::default();
    if let Ok(image) = resolve(&blobs, &digest, &Platform::linux("arm64"), &limits) {
        assert!(!image.layers.is_empty() && image.layers.len() <= limits.layers);
        // The image of its first layer is an image too.
        assert_eq!(image.first_layers(1).layers.len(), 1);
    }
});
