use std::io::{self, Write as _};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::emit::{append, blob};

/// A small image: one layer, one program.
pub struct BuiltImage<'a> {
    /// As Go names it: `arm64`, `amd64`.
    pub architecture: &'a str,
    /// Path, mode and content of each file; parents are made.
    pub files: &'a [(&'a str, u32, &'a [u8])],
    pub folders: &'a [&'a str],
    pub entrypoint: &'a [&'a str],
    pub user: &'a str,
}

/// The archive and the digest of its manifest: the same input gives the same bytes.
pub fn build(image: &BuiltImage<'_>) -> io::Result<(Vec<u8>, String)> {
    let layer = layer(image)?;
    let mut gz = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::new(6));
    gz.write_all(&layer)?;
    let packed = gz.finish()?;
    let config = json!({
        "architecture": image.architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Entrypoint": image.entrypoint, "User": image.user, "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&packed), "size": packed.len() }],
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(manifest.as_bytes()), "size": manifest.len() }],
    })
    .to_string();
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", index.as_bytes())?;
    for data in [manifest.as_bytes(), config.as_bytes(), &packed] {
        append(&mut tar, &blob(&digest(data)), data)?;
    }
    Ok((tar.into_inner()?, digest(manifest.as_bytes())))
}

fn layer(image: &BuiltImage<'_>) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for folder in image.folders {
        let mut header = tar::Header::new_ustar();
        header.set_path(folder)?;
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        header.set_mtime(0);
        header.set_cksum();
        tar.append(&header, io::empty())?;
    }
    for (path, mode, data) in image.files {
        let mut header = crate::emit::header(path, data.len() as u64)?;
        header.set_mode(*mode);
        header.set_cksum();
        tar.append(&header, *data)?;
    }
    tar.into_inner()
}

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}
