//! Layers: unpacking and checks of their members.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::compression::{Compression, Decompressor};
use crate::failure_tracker::FailureTracker;
use crate::media_type::LayerType;
use crate::tar_reader::{Member, TarError, TarReader};
use crate::{Descriptor, Limits, OciError};

/// Description of a layer in manifest and config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Compression of the blob, as its media type says.
    pub compression: Compression,
    /// Digest of the unpacked layer.
    pub diff_id: String,
    /// Media type of the blob.
    pub(crate) media_type: LayerType,
}

/// Properties of a layer, found by unpacking it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Compression of the blob.
    pub compression: Compression,
    /// Digest of the unpacked layer.
    pub diff_id: String,
    /// Size of the unpacked layer in bytes.
    pub unpacked: u64,
}

impl Layer {
    /// Creates a layer from its descriptor in the manifest and its diff ID in the config.
    pub(crate) fn new(descriptor: Descriptor, diff_id: &str) -> Result<Self, OciError> {
        let Descriptor { digest, size, kind } = descriptor;
        let media_type = match LayerType::parse(&kind) {
            Ok(media_type) => media_type,
            Err(error) => return Err(OciError::Layer { digest, problem: error.to_string() }),
        };
        let compression = media_type.compression;
        Ok(Self { digest, size, compression, diff_id: diff_id.to_owned(), media_type })
    }

    /// Checks the properties of the unpacked layer against manifest and config.
    ///
    /// # Errors
    ///
    /// Returns [`OciError::Mismatch`] for the first property that differs.
    pub fn check(&self, info: &LayerInfo) -> Result<(), OciError> {
        let mismatch = |what, expected: String, found: String| {
            Err(OciError::Mismatch { what, digest: self.digest.clone(), expected, found })
        };
        if self.diff_id != info.diff_id {
            return mismatch("the unpacked layer", self.diff_id.clone(), info.diff_id.clone());
        }
        if self.compression != info.compression && !self.media_type.recognised {
            let (expected, found) = (self.compression, info.compression);
            let what = "the compression of the layer";
            return mismatch(what, format!("{expected:?}"), format!("{found:?}"));
        }
        Ok(())
    }
}

impl OciError {
    /// Adds the digest of the layer to an error of [`inspect`].
    #[must_use]
    pub fn in_layer(self, digest: &str) -> Self {
        match self {
            Self::Layer { problem, .. } => Self::Layer { digest: digest.to_owned(), problem },
            other => other,
        }
    }
}

/// Unpacks a layer, discards the data, and checks all members.
///
/// # Errors
///
/// Returns [`OciError::Layer`] if the layer is malformed or has a member that is not allowed,
/// [`OciError::Limit`] as soon as it unpacks to too many bytes, and the errors of `packed`.
pub fn inspect(packed: impl Read, limits: &Limits) -> Result<LayerInfo, OciError> {
    list_members(packed, limits, |_, _| Ok(()))
}

/// Unpacks a layer like [`inspect`], and calls `visit` with each member and its content, in the
/// order of the archive. The members are those that the engine unpacks; an entry for the root has
/// an empty path.
///
/// # Errors
///
/// Returns the errors of [`inspect`] and of `visit`.
pub fn list_members(
    packed: impl Read,
    limits: &Limits,
    mut visit: impl FnMut(&Member, &mut dyn Read) -> Result<(), OciError>,
) -> Result<LayerInfo, OciError> {
    let mut source = FailureTracker::new(packed);
    let result = read_layer(&mut source, limits, &mut visit);
    if result.as_ref().is_err_and(|error| !matches!(error, OciError::Limit { .. }))
        && !source.failed
    {
        // The end of the blob shows whether it has the right digest. A mismatch is the better
        // error.
        io::copy(&mut source, &mut io::sink())?;
    }
    match result {
        Err(OciError::Io(error)) if !source.failed => {
            Err(reject(format!("cannot unpack: {error}")))
        }
        result => result,
    }
}

type Visit<'a> = &'a mut dyn FnMut(&Member, &mut dyn Read) -> Result<(), OciError>;

fn read_layer(packed: impl Read, limits: &Limits, visit: Visit<'_>) -> Result<LayerInfo, OciError> {
    let mut stream = Decompressor::new(packed)?;
    let compression = stream.compression();
    let mut hashed = Hashed {
        stream: &mut stream,
        hasher: Sha256::new(),
        limit: limits.unpacked,
        left: limits.unpacked,
    };
    let mut tar = TarReader::new(&mut hashed);
    let mut members = 0;
    while let Some(member) = tar.next().map_err(in_tar)? {
        members += 1;
        if members > limits.members {
            return Err(reject(format!("more than {} members", limits.members)));
        }
        visit(&member, &mut tar)?;
    }
    // The digest also covers the bytes after the end of the archive, which the engine discards.
    tar.drain()?;
    let unpacked = limits.unpacked - hashed.left;
    let diff_id = format!("sha256:{}", measure::hex(&hashed.hasher.finalize()));
    // Bytes that the decoder left unread are part of the blob. Its digest is verified at its end.
    if stream.read_rest()? != 0 {
        return Err(reject("bytes follow the compressed data".into()));
    }
    Ok(LayerInfo { compression, diff_id, unpacked })
}

fn in_tar(error: TarError) -> OciError {
    match error {
        TarError::Io(error) => error.into(),
        TarError::Rejected(error) if error.member.is_empty() => {
            reject(format!("cannot unpack: {}", error.problem))
        }
        TarError::Rejected(error) => reject(format!("member {error}")),
    }
}

fn reject(problem: String) -> OciError {
    OciError::Layer { digest: String::new(), problem }
}

/// Reader that hashes all bytes and fails at a limit.
struct Hashed<R> {
    stream: R,
    hasher: Sha256,
    limit: u64,
    left: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::from(OciError::Limit {
                what: "size of all unpacked layers in bytes",
                limit: self.limit,
            })
        })?;
        Ok(n)
    }
}
