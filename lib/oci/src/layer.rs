use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Component, Path};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};

use crate::{Descriptor, Limits, OciError, Source};

/// How a layer is packed, told from its first bytes as the engine tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

const KINDS: [(&str, Compression); 6] = [
    ("application/vnd.oci.image.layer.v1.tar", Compression::None),
    ("application/vnd.docker.image.rootfs.diff.tar", Compression::None),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression::Zstd),
];
/// More than zstd's own tools ask of an unpacker without being told to (`zstd --long` beyond 27).
const LARGEST_WINDOW: u64 = 8 << 20;

/// A layer as manifest and config describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub digest: String,
    pub size: u64,
    pub compression: Compression,
    /// Of the unpacked bytes.
    pub diff_id: String,
}

/// What unpacking a layer showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub compression: Compression,
    pub diff_id: String,
    pub unpacked: u64,
}

impl Layer {
    pub(crate) fn new(described: Descriptor, diff_id: &str) -> Result<Self, OciError> {
        let Descriptor { digest, size, kind } = described;
        let Some((_, compression)) = KINDS.into_iter().find(|(name, _)| *name == kind) else {
            return Err(OciError::Layer {
                digest,
                problem: format!(
                    "media type {kind:?}; known are {:?}",
                    KINDS.map(|(name, _)| name)
                ),
            });
        };
        Ok(Self { digest, size, compression, diff_id: diff_id.to_owned() })
    }

    /// What manifests call a layer that is packed so.
    pub(crate) fn media_type(&self) -> &'static str {
        KINDS
            .into_iter()
            .find(|(_, compression)| *compression == self.compression)
            .map_or("", |(name, _)| name)
    }

    /// Whether unpacking it showed what manifest and config say of it.
    ///
    /// # Errors
    /// What is otherwise.
    pub fn judge(&self, facts: &Facts) -> Result<(), OciError> {
        let mismatch = |what, expected: String, found: String| {
            if expected == found {
                Ok(())
            } else {
                Err(OciError::Mismatch { what, digest: self.digest.clone(), expected, found })
            }
        };
        mismatch("the unpacked layer", self.diff_id.clone(), facts.diff_id.clone())?;
        mismatch(
            "the packing of the layer",
            format!("{:?}", self.compression),
            format!("{:?}", facts.compression),
        )
    }
}

impl OciError {
    /// Names the layer that a problem was found in.
    #[must_use]
    pub fn of(self, digest: &str) -> Self {
        match self {
            Self::Layer { problem, .. } => Self::Layer { digest: digest.to_owned(), problem },
            other => other,
        }
    }
}

/// Unpacks a layer without keeping it, and looks at every member's name.
///
/// # Errors
/// What is wrong with the layer; a bomb ends at the limit.
pub fn inspect(packed: impl Read, limits: &Limits) -> Result<Facts, OciError> {
    let mut source = Source::new(packed);
    let looked = look(&mut source, limits);
    if looked.as_ref().is_err_and(|error| !matches!(error, OciError::Limit { .. }))
        && !source.failed
    {
        // Whether the blob is the right one is known at its end, and says more than what is odd
        // about its content.
        io::copy(&mut source, &mut io::sink())?;
    }
    match looked {
        Err(OciError::Io(error)) if !source.failed => {
            Err(bad(format!("it cannot be unpacked: {error}")))
        }
        looked => looked,
    }
}

fn look(packed: impl Read, limits: &Limits) -> Result<Facts, OciError> {
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
    // Whatever a decoder left unread belongs to the blob, and only its end says whether the blob
    // was the right one.
    if io::copy(&mut packed, &mut io::sink())? != 0 {
        return Err(OciError::Layer {
            digest: String::new(),
            problem: "bytes follow the packed data".into(),
        });
    }
    Ok(Facts { compression, diff_id, unpacked })
}

fn unpack(stream: &mut impl Read, limits: &Limits) -> Result<(String, u64), OciError> {
    let mut hashed =
        Hashed { stream, hasher: Sha256::new(), limit: limits.unpacked, left: limits.unpacked };
    walk(&mut hashed, limits)?;
    // What follows the tar's end counts for the digest too.
    io::copy(&mut hashed, &mut io::sink())?;
    Ok((
        format!("sha256:{}", measure::hex(&hashed.hasher.finalize())),
        limits.unpacked - hashed.left,
    ))
}

fn bad(problem: String) -> OciError {
    OciError::Layer { digest: String::new(), problem }
}

/// Zstandard frames one after the other (RFC 8878, section 3), as the engine unpacks them.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: io::BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(LARGEST_WINDOW);
        Self { source, decoder, within: false }
    }

    /// Goes to the next frame that holds data; false at the end.
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
            if self.within {
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
            self.within = self.next_frame()?;
            if !self.within {
                return Ok(0);
            }
        }
        Ok(0)
    }
}

/// Long names and attributes come as members of their own, which are read whole: so much is enough
/// for any honest one.
const LONGEST_EXTENSION: u64 = 64 * 1024;

fn walk(stream: &mut impl Read, limits: &Limits) -> Result<(), OciError> {
    let mut tar = tar::Archive::new(stream);
    // The target of a link that is named beside the next member.
    let mut long_target: Option<String> = None;
    for (n, entry) in tar.entries()?.raw(true).enumerate() {
        let mut entry = entry?;
        if n >= limits.members {
            return Err(bad(format!("more than {} members", limits.members)));
        }
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
        {
            for (key, value) in extension(&mut entry, kind)? {
                match key.as_str() {
                    "path" => inside(Path::new(&value))
                        .map_err(|why| bad(format!("the long name {value:?}: {why}")))?,
                    "linkpath" => long_target = Some(value),
                    // Somebody who goes by these reads other members than somebody who does not.
                    "size" => return Err(bad("a member's size is given beside it".into())),
                    other if other.starts_with("GNU.sparse") => {
                        return Err(bad("a member is sparse".into()));
                    }
                    _ => {}
                }
            }
            continue;
        }
        let path = entry.path()?;
        inside(&path).map_err(|why| bad(format!("member {:?}: {why}", path.display())))?;
        if kind.is_character_special() || kind.is_block_special() || kind.is_gnu_sparse() {
            return Err(bad(format!("member {:?} is a device or sparse", path.display())));
        }
        // Symbolic links may point anywhere: they are followed inside the container.
        let long_target = long_target.take();
        if kind.is_hard_link() {
            let short = entry.link_name()?.unwrap_or_default().into_owned();
            for target in std::iter::once(short).chain(long_target.map(Into::into)) {
                inside(&target).map_err(|why| {
                    bad(format!(
                        "member {:?} links to {:?}: {why}",
                        path.display(),
                        target.display()
                    ))
                })?;
            }
        }
    }
    Ok(())
}

/// What is said beside a member: one name as a whole (GNU), or `LENGTH KEY=VALUE` records (POSIX
/// pax).
fn extension(
    entry: &mut tar::Entry<'_, impl Read>,
    kind: tar::EntryType,
) -> Result<Vec<(String, String)>, OciError> {
    if entry.size() > LONGEST_EXTENSION {
        return Err(bad(format!(
            "a name or attribute of {} bytes; {LONGEST_EXTENSION} are allowed",
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
    let mut found = Vec::new();
    let mut rest = data.as_slice();
    while !rest.is_empty() {
        // The length counts the whole record, its own digits and the line's end too.
        let record = rest
            .iter()
            .position(|b| *b == b' ')
            .and_then(|at| {
                text(&rest[..at]).parse::<usize>().ok().filter(|n| *n > at + 1).map(|n| (at, n))
            })
            .and_then(|(at, n)| Some((rest.get(at + 1..n)?.strip_suffix(b"\n")?, n)));
        let Some((record, length)) = record else {
            return Err(bad("an attribute beside a member is malformed".into()));
        };
        let at = record
            .iter()
            .position(|b| *b == b'=')
            .ok_or_else(|| bad("an attribute beside a member has no value".into()))?;
        found.push((text(&record[..at]), text(&record[at + 1..])));
        rest = &rest[length..];
    }
    Ok(found)
}

/// A path that stays below the folder in which it is unpacked.
fn inside(path: &Path) -> Result<(), &'static str> {
    for component in path.components() {
        match component {
            Component::ParentDir => return Err("it leaves the image (..)"),
            Component::RootDir | Component::Prefix(_) => return Err("it is an absolute path"),
            Component::CurDir | Component::Normal(_) => {}
        }
    }
    Ok(())
}

/// Hashes what passes, and ends with an error at the limit.
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
                what: "all layers unpacked, in bytes,",
                limit: self.limit,
            })
        })?;
        Ok(n)
    }
}
