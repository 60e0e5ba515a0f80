use std::io::{self, Read, Seek, SeekFrom, Write};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::archive::{HashWriter, OciError, Verified};

/// Writes a verified image as an archive of one fixed form, from the archive that it was verified in.
///
/// The layers are hashed once more on the way: if the source changed meanwhile, the archive stays unfinished.
pub fn emit<R: Read + Seek, W: Write>(source: &mut R, image: &Verified, name: &str, out: W) -> Result<W, OciError> {
    let mut tar = tar::Builder::new(out);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": image.manifest.len(),
            "annotations": { "io.containerd.image.name": name },
        }],
    });
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", index.to_string().as_bytes())?;
    append(&mut tar, &blob(&image.digest), &image.manifest)?;
    append(&mut tar, &blob(&image.config_digest), &image.config)?;
    let mut written = std::collections::BTreeSet::new();
    for layer in &image.layers {
        if !written.insert(&layer.digest) {
            continue;
        }
        source.seek(SeekFrom::Start(layer.offset))?;
        let mut hasher = Sha256::new();
        let tee = Tee { from: source.take(layer.size), hasher: &mut hasher };
        tar.append(&header(&blob(&layer.digest), layer.size)?, tee)?;
        let found = format!("sha256:{}", measure::hex(&hasher.finalize()));
        if found != layer.digest {
            return Err(OciError::Mismatch { what: "the layer", digest: layer.digest.clone(), expected: layer.digest.clone(), found });
        }
    }
    tar.into_inner().map_err(Into::into)
}

pub(crate) fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

pub(crate) fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, data: &[u8]) -> io::Result<()> {
    tar.append(&header(name, data.len() as u64)?, data)
}

pub(crate) fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

struct Tee<'a, R> {
    from: R,
    hasher: &'a mut Sha256,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        HashWriter(self.hasher).write_all(&buffer[..n])?;
        Ok(n)
    }
}
