//! Construction of small images.

use std::io::{self, Write as _};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::export::{append, blob_path, header};

/// Contents of an image with one layer.
pub struct BuiltImage<'a> {
    /// Architecture by its Go name, such as `arm64`.
    pub architecture: &'a str,
    /// Path, mode and content of each file.
    pub files: &'a [(&'a str, u32, &'a [u8])],
    /// Paths of folders.
    pub folders: &'a [&'a str],
    /// Command of the container.
    pub entrypoint: &'a [&'a str],
    /// User of the process, `UID:GID`.
    pub user: &'a str,
}

/// Builds an image. Returns its archive and the digest of its manifest. The same input yields the
/// same bytes.
///
/// # Errors
///
/// Returns an error if a path does not fit into a tar header.
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
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    })
    .to_string();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor(manifest_type, manifest.as_bytes())],
    })
    .to_string();
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", index.as_bytes())?;
    for data in [manifest.as_bytes(), config.as_bytes(), &packed] {
        append(&mut tar, &blob_path(&digest(data)), data)?;
    }
    Ok((tar.into_inner()?, digest(manifest.as_bytes())))
}

fn descriptor(media_type: &str, data: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(data), "size": data.len() })
}

fn layer(image: &BuiltImage<'_>) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for folder in image.folders {
        let mut header = header(folder, 0)?;
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_cksum();
        tar.append(&header, io::empty())?;
    }
    for (path, mode, data) in image.files {
        let mut header = header(path, data.len() as u64)?;
        header.set_mode(*mode);
        header.set_cksum();
        tar.append(&header, *data)?;
    }
    tar.into_inner()
}

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}
