//! Export of verified images.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::json;

use crate::{Blobs, Checked, Layer, OciError, Verified};

/// Writes a verified image as an archive in canonical form.
///
/// # Errors
///
/// Returns the errors of the storage and of `out`, and [`OciError::Mismatch`] for the first layer
/// that changed after the verification.
pub fn export<W: Write>(
    blobs: &impl Blobs,
    image: &Verified,
    name: &str,
    out: W,
) -> Result<W, OciError> {
    Exporter::new(out, BTreeSet::new())?.finish(blobs, image, name)
}

/// Writer of an archive in canonical form. Layers can be written as soon as each is verified. The
/// documents that make them an image come last: an unfinished archive has no image.
///
/// The layers are hashed again while they are written. If the storage changed in the meantime, the
/// archive stays unfinished.
pub struct Exporter<W: Write> {
    /// `None` once the archive is finished.
    tar: Option<tar::Builder<Fuse<W>>>,
    written: BTreeSet<String>,
}

impl<W: Write> Exporter<W> {
    /// Begins an archive. The layers in `already` are omitted, because the receiver has them.
    ///
    /// # Errors
    ///
    /// Returns the errors of `out`.
    pub fn new(out: W, already: BTreeSet<String>) -> Result<Self, OciError> {
        let mut exporter =
            Self { tar: Some(tar::Builder::new(Fuse { out, broken: false })), written: already };
        append(exporter.tar()?, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(exporter)
    }

    fn tar(&mut self) -> Result<&mut tar::Builder<Fuse<W>>, OciError> {
        self.tar.as_mut().ok_or_else(|| OciError::Io(io::Error::other("the archive is finished")))
    }

    /// Writes a layer, unless it is written already.
    ///
    /// # Errors
    ///
    /// Returns the errors of the storage and of the receiver, [`OciError::Absent`] if the layer is
    /// missing, and [`OciError::Mismatch`] if it does not match its digest.
    pub fn layer(&mut self, blobs: &impl Blobs, layer: &Layer) -> Result<(), OciError> {
        if self.written.contains(&layer.digest) {
            return Ok(());
        }
        let (_, content) = blobs.blob(&layer.digest)?.ok_or_else(|| OciError::Absent {
            what: "the layer",
            digest: layer.digest.clone(),
            size: None,
        })?;
        self.tar()?.append(
            &header(&blob_path(&layer.digest), layer.size)?,
            Checked::new(content, &layer.digest, layer.size),
        )?;
        self.written.insert(layer.digest.clone());
        Ok(())
    }

    /// Writes the remaining layers and the documents of the image, and finishes the archive.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Exporter::layer`].
    pub fn finish(
        mut self,
        blobs: &impl Blobs,
        image: &Verified,
        name: &str,
    ) -> Result<W, OciError> {
        for layer in &image.layers {
            self.layer(blobs, layer)?;
        }
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
        let tar = self.tar()?;
        append(tar, &blob_path(&image.config_digest), &image.config)?;
        append(tar, &blob_path(&image.digest), &image.manifest)?;
        append(tar, "index.json", index.to_string().as_bytes())?;
        match self.tar.take() {
            Some(tar) => Ok(tar.into_inner()?.out),
            None => Err(OciError::Io(io::Error::other("the archive is finished"))),
        }
    }
}

impl<W: Write> Drop for Exporter<W> {
    fn drop(&mut self) {
        // Dropping the builder writes the end of the archive, which would make it look complete.
        if let Some(tar) = &mut self.tar {
            tar.get_mut().broken = true;
        }
    }
}

/// Writer that fails once it is broken.
struct Fuse<W> {
    out: W,
    broken: bool,
}

impl<W: Write> Write for Fuse<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.broken {
            Err(io::Error::other("the archive stays unfinished"))
        } else {
            self.out.write(data)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Returns the path of a blob in an archive.
pub(crate) fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

/// Appends a file to an archive.
pub(crate) fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    data: &[u8],
) -> io::Result<()> {
    tar.append(&header(name, data.len() as u64)?, data)
}

/// Returns the canonical header of a file.
pub(crate) fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}
