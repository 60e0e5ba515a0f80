//! The reader itself: members, one after another, from a stream.

use std::io::{self, Read};

use super::error::{Problem, Rejected, TarError, shown};
use super::header::{BLOCK_BYTES, Block, Header, text};
use super::path::{check_whiteout, clean, names_folder};
use super::pax::Records;
use super::{MAX_EXTENSION_BYTES, Member, MemberKind};
use crate::OciError;

/// Size of the buffer in bytes. The stream is read in pieces of this size.
const BUFFER_BYTES: usize = 1 << 16;
/// Names of members with global records: of git, of Python's tarfile, and the start of GNU tar's.
/// The engine deletes a file of this name, so it must not be that of any other file.
const GLOBAL_NAMES: [&[u8]; 2] = [b"pax_global_header", b"@PaxHeader"];
const GLOBAL_PREFIX: &[u8] = b"GlobalHead.";

/// Reader of an archive. The content of the current member is read through [`Read`].
pub(crate) struct TarReader<R> {
    stream: R,
    buffer: Box<[u8]>,
    /// Bytes of the buffer that are not consumed yet.
    start: usize,
    end: usize,
    /// Bytes of the current member's content that are not read yet.
    left: u64,
    /// Bytes after the content, up to the next block.
    padding: u64,
}

/// Extensions for the next member.
#[derive(Default)]
struct Extensions {
    records: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.records.is_none() && self.long_name.is_none() && self.long_target.is_none()
    }
}

impl<R: Read> TarReader<R> {
    /// Creates a reader of the archive that begins at the stream's position.
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES].into(), start: 0, end: 0, left: 0, padding: 0 }
    }

    /// Moves to the next member. Returns `None` at the end of the archive.
    ///
    /// # Errors
    ///
    /// Returns [`TarError::Rejected`] if the archive is malformed or ambiguous, and the errors of
    /// the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            let (rest, padding) = (self.left, self.padding);
            (self.left, self.padding) = (0, 0);
            self.skip(rest)?;
            self.skip_padding(padding)?;
            let Some(header) = self.header()? else {
                return if extensions.is_empty() {
                    Ok(None)
                } else {
                    Err(Problem::DanglingExtension.of(b"").into())
                };
            };
            match header.kind {
                b'x' => {
                    let data = self.extension(&header)?;
                    let records = Records::parse(&data).map_err(|p| p.of(&header.name))?;
                    if extensions.records.replace(records).is_some() {
                        return Err(Problem::ExtensionTwice.of(&header.name).into());
                    }
                }
                b'L' | b'K' => {
                    let data = self.extension(&header)?;
                    let value =
                        c_string(&data).ok_or_else(|| Problem::ExtensionText.of(&header.name))?;
                    let slot = match header.kind {
                        b'L' => &mut extensions.long_name,
                        _ => &mut extensions.long_target,
                    };
                    if slot.replace(value).is_some() {
                        return Err(Problem::ExtensionTwice.of(&header.name).into());
                    }
                }
                b'g' if !extensions.is_empty() => {
                    return Err(Problem::DanglingExtension.of(&header.name).into());
                }
                b'g' => {
                    let data = self.extension(&header)?;
                    Records::check_global(&data).map_err(|p| p.of(&header.name))?;
                    return Ok(Some(global(header)?));
                }
                _ => {
                    let member = member(header, extensions)?;
                    self.content(member.size);
                    return Ok(Some(member));
                }
            }
        }
    }

    /// Reads the stream to its end, which the engine does after the end of the archive.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while self.fill()? != 0 {
            self.start = self.end;
        }
        Ok(())
    }

    fn content(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK_BYTES as u64;
    }

    /// Reads the next header. Returns `None` at the end: of the stream, or at two blocks of zeros,
    /// or one at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK_BYTES] {
            let header = Header::parse(&block).map_err(|problem| match problem {
                // Without a checksum, it is no header and has no name.
                Problem::Checksum => problem.of(b""),
                _ => problem.of(text(&block[..100])),
            })?;
            return Ok(Some(header));
        }
        match self.block()? {
            Some(block) if block != [0; BLOCK_BYTES] => {
                Err(Problem::HeaderAfterEnd.of(text(&block[..100])).into())
            }
            _ => Ok(None),
        }
    }

    /// Reads a block. Returns `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let available = self.fill()?;
            if available == 0 && filled == 0 {
                return Ok(None);
            } else if available == 0 {
                return Err(Problem::Truncated.of(b"").into());
            }
            let n = available.min(BLOCK_BYTES - filled);
            block[filled..filled + n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.start += n;
            filled += n;
        }
        Ok(Some(block))
    }

    /// Reads the content of an extension.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        if header.size > MAX_EXTENSION_BYTES {
            return Err(Problem::ExtensionTooLong(header.size).of(&header.name).into());
        }
        self.content(header.size);
        let mut data = Vec::new();
        while self.left > 0 {
            let available = self.fill()?;
            if available == 0 {
                return Err(Problem::Truncated.of(&header.name).into());
            }
            let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(available);
            data.extend_from_slice(&self.buffer[self.start..self.start + n]);
            self.start += n;
            self.left -= n as u64;
        }
        Ok(data)
    }

    /// Discards bytes.
    fn skip(&mut self, mut bytes: u64) -> Result<(), TarError> {
        while bytes > 0 {
            let available = self.fill()?;
            if available == 0 {
                return Err(Problem::Truncated.of(b"").into());
            }
            let n = usize::try_from(bytes).unwrap_or(usize::MAX).min(available);
            self.start += n;
            bytes -= n as u64;
        }
        Ok(())
    }

    /// Discards the bytes after a content. They may be missing at the end of the stream, as in the
    /// engine: `umoci insert` writes such layers.
    fn skip_padding(&mut self, bytes: u64) -> Result<(), TarError> {
        for _ in 0..bytes {
            if self.fill()? == 0 {
                break;
            }
            self.start += 1;
        }
        Ok(())
    }

    /// Reads from the stream if the buffer is empty. Returns the number of bytes in the buffer,
    /// which is 0 only at the end of the stream.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = retried(|| self.stream.read(&mut self.buffer))?;
        }
        Ok(self.end - self.start)
    }
}

/// Content of the current member.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        if len == 0 {
            return Ok(0);
        }
        let n = if self.start == self.end && len >= BUFFER_BYTES {
            self.stream.read(&mut out[..len])?
        } else {
            let n = self.fill()?.min(len);
            out[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.start += n;
            n
        };
        if n == 0 {
            return Err(OciError::Archive { problem: Problem::Truncated.to_string() }.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Repeats a call that a signal interrupted.
fn retried(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Returns the text before the NULs at the end. There must be one, without further NULs.
fn c_string(data: &[u8]) -> Option<Vec<u8>> {
    let value = text(data);
    let rest = &data[value.len()..];
    (!value.is_empty() && rest.iter().all(|b| *b == 0)).then(|| value.to_vec())
}

/// Combines a header with the extensions that precede it.
fn member(header: Header, extensions: Extensions) -> Result<Member, Rejected> {
    let records = extensions.records.unwrap_or_default();
    let mixed = match (&extensions.long_name, &extensions.long_target) {
        (Some(_), _) if records.path.is_some() => Some("name"),
        (_, Some(_)) if records.target.is_some() => Some("link target"),
        _ => None,
    };
    if let Some(what) = mixed {
        return Err(Problem::MixedExtensions(what).of(&header.name));
    }
    let name = extensions.long_name.or(records.path).unwrap_or(header.name);
    let target = extensions.long_target.or(records.target).unwrap_or(header.target);
    let size = records.size.unwrap_or(header.size);
    let uid = owner("user", records.uid.unwrap_or(header.uid));
    let gid = owner("group", records.gid.unwrap_or(header.gid));
    let checked = kind(header.kind, &name).and_then(|kind| {
        // Go ignores both sizes, and other readers do not.
        let ignored = size.max(header.size);
        if kind != MemberKind::File && ignored != 0 {
            return Err(Problem::SizeWithoutData { kind: kind.name(), size: ignored });
        }
        let path = check_path(&name, kind)?;
        let target = check_target(&path, target, kind)?;
        let attributes = records.attributes;
        Ok(Member { path, kind, size, target, uid: uid?, gid: gid?, attributes })
    });
    checked.map_err(|problem| problem.of(&name))
}

/// Returns the kind of a member by its type flag.
fn kind(flag: u8, name: &[u8]) -> Result<MemberKind, Problem> {
    Ok(match flag {
        b'0' => MemberKind::File,
        // Old archives have no flag, and mark folders by a slash.
        0 if name.ends_with(b"/") => MemberKind::Folder,
        0 => MemberKind::File,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::SymbolicLink,
        b'3' | b'4' => return Err(Problem::Device),
        b'5' => MemberKind::Folder,
        b'6' => MemberKind::Fifo,
        b'S' => return Err(Problem::Sparse),
        other => return Err(Problem::Kind(other.into())),
    })
}

/// Returns an owner's ID. -1 is none: it would leave the owner as it is.
fn owner(what: &'static str, id: i64) -> Result<u32, Problem> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(Problem::Owner(what))
}

fn check_path(name: &[u8], kind: MemberKind) -> Result<Vec<u8>, Problem> {
    let path = clean(name)?;
    if kind != MemberKind::Folder {
        if path.is_empty() {
            return Err(Problem::RootKind);
        }
        if names_folder(name) {
            return Err(Problem::TrailingSlash);
        }
    }
    check_whiteout(&path, matches!(kind, MemberKind::File | MemberKind::HardLink))?;
    Ok(path)
}

/// Returns the target of a link. That of a hard link is a path below the root, also if it is
/// absolute. That of a symbolic link can be anything, because it is resolved in the container.
fn check_target(path: &[u8], target: Vec<u8>, kind: MemberKind) -> Result<Vec<u8>, Problem> {
    let problem = |problem| Problem::Target { target: shown(&target), problem: Box::new(problem) };
    match kind {
        MemberKind::HardLink | MemberKind::SymbolicLink if target.is_empty() => {
            Err(Problem::TargetEmpty)
        }
        MemberKind::HardLink => match clean(&target) {
            Ok(cleaned) if cleaned.is_empty() || cleaned == path => Err(Problem::TargetSelf),
            Ok(_) if names_folder(&target) => Err(problem(Problem::TrailingSlash)),
            Ok(cleaned) => Ok(cleaned),
            Err(error) => Err(problem(error)),
        },
        MemberKind::SymbolicLink if target.len() > super::MAX_PATH_BYTES => {
            Err(problem(Problem::PathTooLong))
        }
        MemberKind::SymbolicLink => Ok(target),
        // Other members have no target, whatever the header says.
        _ => Ok(Vec::new()),
    }
}

/// Creates the member of global records.
fn global(header: Header) -> Result<Member, Rejected> {
    let kind = MemberKind::GlobalRecords;
    let path = check_path(&header.name, kind).map_err(|p| p.of(&header.name))?;
    let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    if !GLOBAL_NAMES.contains(&last) && !last.starts_with(GLOBAL_PREFIX) {
        return Err(Problem::GlobalName.of(&header.name));
    }
    Ok(Member { path, kind, size: 0, target: Vec::new(), uid: 0, gid: 0, attributes: Vec::new() })
}
