use std::io::{self, Write};

use serde_json::json;

use crate::{Blobs, Checked, OciError, Verified};

/// Writes a verified image as an archive of one fixed form.
///
/// The layers are hashed once more on the way: if the storage changed meanwhile, the archive stays unfinished.
///
/// # Errors
/// What the storage or `out` says, and the first layer that is not what was verified.
pub fn emit<W: Write>(blobs: &impl Blobs, image: &Verified, name: &str, out: W) -> Result<W, OciError> {
    let broken = std::cell::Cell::new(false);
    let mut tar = tar::Builder::new(Fuse { out, broken: &broken });
    match write(&mut tar, blobs, image, name) {
        Ok(()) => Ok(tar.into_inner()?.out),
        Err(error) => {
            // The builder would write the archive's end when it goes, and make it look whole.
            broken.set(true);
            Err(error)
        }
    }
}

/// Passes on what is written until it is broken.
struct Fuse<'a, W> {
    out: W,
    broken: &'a std::cell::Cell<bool>,
}

impl<W: Write> Write for Fuse<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.broken.get() { Err(io::Error::other("the archive stays unfinished")) } else { self.out.write(data) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write<W: Write>(tar: &mut tar::Builder<W>, blobs: &impl Blobs, image: &Verified, name: &str) -> Result<(), OciError> {
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
    append(tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(tar, "index.json", index.to_string().as_bytes())?;
    append(tar, &blob(&image.digest), &image.manifest)?;
    append(tar, &blob(&image.config_digest), &image.config)?;
    let mut written = std::collections::BTreeSet::new();
    for layer in &image.layers {
        if !written.insert(&layer.digest) {
            continue;
        }
        let (_, content) =
            blobs.blob(&layer.digest)?.ok_or_else(|| OciError::Absent { what: "the layer", digest: layer.digest.clone(), size: None })?;
        tar.append(&header(&blob(&layer.digest), layer.size)?, Checked::new(content, &layer.digest, layer.size))?;
    }
    Ok(())
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
