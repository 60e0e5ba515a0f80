use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::json;

use crate::{Blobs, Checked, Layer, OciError, Verified};

/// Writes a verified image as an archive of one fixed form.
///
/// # Errors
/// What the storage or `out` says, and the first layer that is not what was verified.
pub fn emit<W: Write>(
    blobs: &impl Blobs,
    image: &Verified,
    name: &str,
    out: W,
) -> Result<W, OciError> {
    Emitter::new(out, BTreeSet::new())?.finish(blobs, image, name)
}

/// Writes an archive of one fixed form, the layers as soon as each is known to be good. What makes
/// an image of them comes last: without it, whoever reads the archive has nothing but parts.
///
/// The layers are hashed once more on the way: if the storage changed meanwhile, the archive stays
/// unfinished.
pub struct Emitter<W: Write> {
    /// Gone when the archive is whole.
    tar: Option<tar::Builder<Fuse<W>>>,
    written: BTreeSet<String>,
}

impl<W: Write> Emitter<W> {
    /// Layers that the receiver has `already` are left out.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(out: W, already: BTreeSet<String>) -> Result<Self, OciError> {
        let mut new =
            Self { tar: Some(tar::Builder::new(Fuse { out, broken: false })), written: already };
        append(new.tar()?, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(new)
    }

    fn tar(&mut self) -> Result<&mut tar::Builder<Fuse<W>>, OciError> {
        self.tar.as_mut().ok_or_else(|| OciError::Io(io::Error::other("the archive is finished")))
    }

    /// Writes a layer, each only once.
    ///
    /// # Errors
    /// What the storage or the receiver says, or that the layer is not what its digest says.
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
            &header(&blob(&layer.digest), layer.size)?,
            Checked::new(content, &layer.digest, layer.size),
        )?;
        self.written.insert(layer.digest.clone());
        Ok(())
    }

    /// Writes what is missing, and what makes it the image.
    ///
    /// # Errors
    /// As [`Emitter::layer`].
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
        append(tar, &blob(&image.config_digest), &image.config)?;
        append(tar, &blob(&image.digest), &image.manifest)?;
        append(tar, "index.json", index.to_string().as_bytes())?;
        match self.tar.take() {
            Some(tar) => Ok(tar.into_inner()?.out),
            None => Err(OciError::Io(io::Error::other("the archive is finished"))),
        }
    }
}

impl<W: Write> Drop for Emitter<W> {
    fn drop(&mut self) {
        // The builder would write the archive's end when it goes, and make it look whole.
        if let Some(tar) = &mut self.tar {
            tar.get_mut().broken = true;
        }
    }
}

/// Passes on what is written until it is broken.
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

pub(crate) fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

pub(crate) fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    data: &[u8],
) -> io::Result<()> {
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
