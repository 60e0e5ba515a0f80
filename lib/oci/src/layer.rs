//! Layers: unpacking and checks of their members.

use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Component, Path};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::failure_tracker::FailureTracker;
use crate::{Descriptor, Limits, OciError};

/// Compression of a layer, recognised by its first bytes as in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Media types of layers with their compression.
const LAYER_TYPES: [(&str, Compression); 6] = [
    ("application/vnd.oci.image.layer.v1.tar", Compression::None),
    ("application/vnd.docker.image.rootfs.diff.tar", Compression::None),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression::Zstd),
];
/// Greatest window of a Zstandard frame, which the decoder holds in memory. RFC 8878, section
/// 3.1.1.1.2, recommends that decoders support this size and that encoders do not exceed it.
const MAX_WINDOW_BYTES: u64 = 8 << 20;

/// Description of a layer in manifest and config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Compression of the blob.
    pub compression: Compression,
    /// Digest of the unpacked layer.
    pub diff_id: String,
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
        let Some((_, compression)) = LAYER_TYPES.into_iter().find(|(name, _)| *name == kind) else {
            return Err(OciError::Layer {
                digest,
                problem: format!(
                    "media type: expected one of {:?}, found {kind:?}",
                    LAYER_TYPES.map(|(name, _)| name)
                ),
            });
        };
        Ok(Self { digest, size, compression, diff_id: diff_id.to_owned() })
    }

    /// Returns the OCI media type of the layer.
    pub(crate) fn media_type(&self) -> &'static str {
        LAYER_TYPES
            .into_iter()
            .find(|(_, compression)| *compression == self.compression)
            .map_or("", |(name, _)| name)
    }

    /// Checks the properties of the unpacked layer against manifest and config.
    ///
    /// # Errors
    ///
    /// Returns [`OciError::Mismatch`] for the first property that differs.
    pub fn check(&self, info: &LayerInfo) -> Result<(), OciError> {
        let mismatch = |what, expected: String, found: String| {
            if expected == found {
                Ok(())
            } else {
                Err(OciError::Mismatch { what, digest: self.digest.clone(), expected, found })
            }
        };
        mismatch("the unpacked layer", self.diff_id.clone(), info.diff_id.clone())?;
        mismatch(
            "the compression of the layer",
            format!("{:?}", self.compression),
            format!("{:?}", info.compression),
        )
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

/// Unpacks a layer, discards the data, and checks the names of all members.
///
/// # Errors
///
/// Returns [`OciError::Layer`] if the layer is malformed or has a member that is not allowed,
/// [`OciError::Limit`] as soon as it unpacks to too many bytes, and the errors of `packed`.
pub fn inspect(packed: impl Read, limits: &Limits) -> Result<LayerInfo, OciError> {
    let mut source = FailureTracker::new(packed);
    let result = read_layer(&mut source, limits);
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

fn read_layer(packed: impl Read, limits: &Limits) -> Result<LayerInfo, OciError> {
    let mut packed = BufReader::with_capacity(1 << 16, packed);
    let start = packed.fill_buf()?;
    let compression = match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    let (diff_id, unpacked) = match compression {
        Compression::None => unpack(&mut packed, limits)?,
        Compression::Gzip => {
            unpack(&mut flate2::bufread::MultiGzDecoder::new(&mut packed), limits)?
        }
        Compression::Zstd => unpack(&mut Frames::new(&mut packed), limits)?,
    };
    // Bytes that the decoder left unread are part of the blob. Its digest is verified at its end.
    if io::copy(&mut packed, &mut io::sink())? != 0 {
        return Err(reject("bytes follow the compressed data".into()));
    }
    Ok(LayerInfo { compression, diff_id, unpacked })
}

fn unpack(stream: &mut impl Read, limits: &Limits) -> Result<(String, u64), OciError> {
    let mut hashed =
        Hashed { stream, hasher: Sha256::new(), limit: limits.unpacked, left: limits.unpacked };
    walk(&mut hashed, limits)?;
    // The digest also covers the bytes after the end of the tar archive.
    io::copy(&mut hashed, &mut io::sink())?;
    Ok((
        format!("sha256:{}", measure::hex(&hashed.hasher.finalize())),
        limits.unpacked - hashed.left,
    ))
}

fn reject(problem: String) -> OciError {
    OciError::Layer { digest: String::new(), problem }
}

/// Decoder of consecutive Zstandard frames (RFC 8878, section 3), as in the engine.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: io::BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self { source, decoder, in_frame: false }
    }

    /// Moves to the next frame with data; returns `false` at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }
}

impl<R: io::BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let one = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder
                        .decode_blocks(&mut self.source, one)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                }
                let n = self.decoder.read(buffer)?;
                if n > 0 {
                    return Ok(n);
                }
            }
            self.in_frame = self.next_frame()?;
            if !self.in_frame {
                return Ok(0);
            }
        }
        Ok(0)
    }
}

/// Greatest size of a member with a long name or attributes, which is read into memory.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;

fn walk(stream: &mut impl Read, limits: &Limits) -> Result<(), OciError> {
    let mut tar = tar::Archive::new(stream);
    // Target of a link, given by an extension for the next member.
    let mut long_target: Option<String> = None;
    for (n, entry) in tar.entries()?.raw(true).enumerate() {
        let mut entry = entry?;
        if n >= limits.members {
            return Err(reject(format!("more than {} members", limits.members)));
        }
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
        {
            for (key, value) in extension(&mut entry, kind)? {
                match key.as_str() {
                    "path" => check_path(Path::new(&value))
                        .map_err(|reason| reject(format!("long name {value:?}: {reason}")))?,
                    "linkpath" => long_target = Some(value),
                    // Readers disagree about these, and would see different members.
                    "size" => {
                        return Err(reject("an extension sets the size of a member".into()));
                    }
                    other if other.starts_with("GNU.sparse") => {
                        return Err(reject("a member is sparse".into()));
                    }
                    _ => {}
                }
            }
            continue;
        }
        let path = entry.path()?;
        check_path(&path)
            .map_err(|reason| reject(format!("member {:?}: {reason}", path.display())))?;
        if kind.is_character_special() || kind.is_block_special() || kind.is_gnu_sparse() {
            return Err(reject(format!("member {:?} is a device or sparse", path.display())));
        }
        // Symbolic links may have any target, because they are resolved inside the container.
        let long_target = long_target.take();
        if kind.is_hard_link() {
            let short = entry.link_name()?.unwrap_or_default().into_owned();
            for target in std::iter::once(short).chain(long_target.map(Into::into)) {
                check_path(&target).map_err(|reason| {
                    reject(format!(
                        "member {:?} links to {:?}: {reason}",
                        path.display(),
                        target.display()
                    ))
                })?;
            }
        }
    }
    Ok(())
}

/// Reads an extension for the next member: a name (GNU), or records `LENGTH KEY=VALUE` (POSIX pax).
fn extension(
    entry: &mut tar::Entry<'_, impl Read>,
    kind: tar::EntryType,
) -> Result<Vec<(String, String)>, OciError> {
    if entry.size() > MAX_EXTENSION_BYTES {
        return Err(reject(format!(
            "long name or attributes: expected at most {MAX_EXTENSION_BYTES} bytes, found {}",
            entry.size()
        )));
    }
    let mut data = Vec::new();
    entry.read_to_end(&mut data)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if kind.is_gnu_longname() || kind.is_gnu_longlink() {
        let key = if kind.is_gnu_longname() { "path" } else { "linkpath" };
        let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
        return Ok(vec![(key.to_owned(), text(&data[..end]))]);
    }
    let mut records = Vec::new();
    let mut rest = data.as_slice();
    while !rest.is_empty() {
        // The length is that of the whole record, including its own digits and the newline.
        let record = rest
            .iter()
            .position(|b| *b == b' ')
            .and_then(|at| {
                text(&rest[..at]).parse::<usize>().ok().filter(|n| *n > at + 1).map(|n| (at, n))
            })
            .and_then(|(at, n)| Some((rest.get(at + 1..n)?.strip_suffix(b"\n")?, n)));
        let Some((record, length)) = record else {
            return Err(reject("an attribute of a member is malformed".into()));
        };
        let at = record
            .iter()
            .position(|b| *b == b'=')
            .ok_or_else(|| reject("an attribute of a member has no value".into()))?;
        records.push((text(&record[..at]), text(&record[at + 1..])));
        rest = &rest[length..];
    }
    Ok(records)
}

/// Checks that a path stays below the folder that it is unpacked into.
fn check_path(path: &Path) -> Result<(), &'static str> {
    for component in path.components() {
        match component {
            Component::ParentDir => return Err("the path leaves the image (..)"),
            Component::RootDir | Component::Prefix(_) => return Err("the path is absolute"),
            Component::CurDir | Component::Normal(_) => {}
        }
    }
    Ok(())
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
