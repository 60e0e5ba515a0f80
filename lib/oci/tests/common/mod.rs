//! Images for tests, which are built part by part.
// Not every test uses every helper.
#![allow(dead_code)]

pub(crate) mod tar_bytes;

use std::io::{Read as _, Write as _};

use basalt_oci::{Limits, Memory, OciError, Platform, Verified, import, resolve};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) fn sha(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}

/// Parts of an image, which tests falsify one by one.
pub(crate) struct Parts {
    pub(crate) layer: Vec<u8>,
    pub(crate) packed: Vec<u8>,
    pub(crate) config: Value,
    pub(crate) manifest: Value,
}

impl Parts {
    pub(crate) fn new(files: &[(&str, tar::EntryType, &[u8])]) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, data) in files {
            let mut header = tar::Header::new_ustar();
            // set_path rejects the malicious names, so they are written as bytes.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(if kind.is_file() { data.len() as u64 } else { 0 });
            if kind.is_hard_link() {
                header.as_mut_bytes()[157..157 + data.len()].copy_from_slice(data);
            }
            header.set_mode(0o755);
            header.set_mtime(0);
            header.set_cksum();
            tar.append(&header, if kind.is_file() { *data } else { &[] }).unwrap();
        }
        Self::from_layer(tar.into_inner().unwrap())
    }

    pub(crate) fn from_layer(layer: Vec<u8>) -> Self {
        let packed = gzip(&layer);
        let config = json!({
            "architecture": "arm64",
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [sha(&layer)] },
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json" },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": sha(&packed),
                "size": packed.len(),
            }],
        });
        Self { layer, packed, config, manifest }
    }

    /// Replaces the packed layer, and describes it in the manifest.
    pub(crate) fn pack(mut self, kind: &str, packed: Vec<u8>) -> Self {
        self.manifest["layers"][0] =
            json!({ "mediaType": kind, "digest": sha(&packed), "size": packed.len() });
        self.packed = packed;
        self
    }

    /// Fills in the digest of the config and returns the archive with the digest of the manifest.
    pub(crate) fn archive(self) -> (Vec<u8>, String) {
        let config = self.config.to_string();
        self.archive_with_config(&config)
    }

    /// Builds the archive with this text as the config.
    pub(crate) fn archive_with_config(mut self, config: &str) -> (Vec<u8>, String) {
        self.manifest["config"]["digest"] = sha(config.as_bytes()).into();
        self.manifest["config"]["size"] = config.len().into();
        let manifest = self.manifest.to_string();
        let blobs = [config.into(), manifest.clone().into_bytes(), self.packed];
        let members: Vec<(String, Vec<u8>)> =
            blobs.into_iter().map(|b| (blob(&sha(&b)), b)).collect();
        (tar_of(&members), sha(manifest.as_bytes()))
    }
}

pub(crate) fn blob(digest: &str) -> String {
    digest.replace("sha256:", "blobs/sha256/")
}

pub(crate) fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn members_of(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    tar::Archive::new(archive)
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), data)
        })
        .collect()
}

pub(crate) fn verify(
    archive: &[u8],
    digest: &str,
    limits: &Limits,
) -> Result<(Memory, Verified), OciError> {
    let mut blobs = Memory::default();
    import(&mut &archive[..], &mut blobs, limits)?;
    let image =
        resolve(&blobs, digest, &Platform::linux("arm64"), limits)?.verify(&blobs, limits)?;
    Ok((blobs, image))
}

pub(crate) fn check(archive: &[u8], digest: &str) -> Result<(Memory, Verified), OciError> {
    verify(archive, digest, &Limits::default())
}

pub(crate) fn good() -> (Vec<u8>, String) {
    Parts::new(&[("bin/x", tar::EntryType::Regular, b"program")]).archive()
}

/// Writes an input into the fuzz corpus, if `cargo xtask fuzz --corpus` runs the tests. The tests
/// of trustd use the corpus too. An archive is written after the 32 bytes of its manifest's
/// SHA-256.
pub(crate) fn add_to_corpus(kind: &str, input: &[u8]) {
    if let Some(dir) = std::env::var_os("BASALT_CORPUS").filter(|_| input.len() < 20_000) {
        let path = std::path::Path::new(&dir).join(kind).join(&sha(input)["sha256:".len()..][..16]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, input).unwrap();
    }
}

pub(crate) fn digest_bytes(digest: &str) -> Vec<u8> {
    measure::unhex(&digest["sha256:".len()..]).unwrap()
}

/// Returns the message of an error, and fails if there is none.
#[track_caller]
pub(crate) fn rejection<T>(result: Result<T, OciError>) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error.to_string(),
    }
}

/// Compresses with zstd, with a window of 2^`window` bytes.
pub(crate) fn zstd(data: &[u8], window: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(window).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Compresses with gzip.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gz.write_all(data).unwrap();
    gz.finish().unwrap()
}
