//! Compression of layers and archives.
//!
//! Invariants:
//! - A stream is recognised by its first bytes, as in the engine (containerd,
//!   `pkg/archive/compression`).
//! - Decompression takes no more memory than the window that a Zstandard frame asks for, which is
//!   at most [`MAX_WINDOW_BYTES`]. The memory is used as far as the frame has data.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::{Deserialize, Serialize};

/// Compression of a layer or an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Greatest window of a Zstandard frame: 2^27, the limit of libzstd and of `zstd --ultra -22`
/// without `--long=28` or more. BuildKit, skopeo and podman use up to 32 MiB.
const MAX_WINDOW_BYTES: u64 = 1 << 27;
/// Size of the buffer of compressed bytes.
const BUFFER_BYTES: usize = 1 << 16;

impl Compression {
    /// Recognises the compression by the first bytes of a stream.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, which needs 8 bytes.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, _, _, _, _, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Reader of the data of a stream that may be compressed.
pub(crate) struct Decompressor<R: Read> {
    decoder: Decoder<BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>>,
}

enum Decoder<R: BufRead> {
    None(R),
    Gzip(flate2::bufread::MultiGzDecoder<R>),
    Zstd(Box<Frames<R>>),
}

impl<R: Read> Decompressor<R> {
    /// Creates a reader. Reads the first bytes of the stream.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream.
    pub(crate) fn new(mut stream: R) -> io::Result<Self> {
        // A single read can return fewer bytes than are needed.
        let mut start = Vec::new();
        stream.by_ref().take(8).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let chained = io::Cursor::new(start).chain(stream);
        let source = BufReader::with_capacity(BUFFER_BYTES, chained);
        let decoder = match compression {
            Compression::None => Decoder::None(source),
            Compression::Gzip => Decoder::Gzip(flate2::bufread::MultiGzDecoder::new(source)),
            Compression::Zstd => Decoder::Zstd(Box::new(Frames::new(source))),
        };
        Ok(Self { decoder })
    }

    /// Returns the compression of the stream.
    pub(crate) fn compression(&self) -> Compression {
        match self.decoder {
            Decoder::None(_) => Compression::None,
            Decoder::Gzip(_) => Compression::Gzip,
            Decoder::Zstd(_) => Compression::Zstd,
        }
    }

    /// Reads the bytes of the stream that the decoder left. Returns their number.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream.
    pub(crate) fn read_rest(&mut self) -> io::Result<u64> {
        let source = match &mut self.decoder {
            Decoder::None(source) => source,
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(frames) => &mut frames.source,
        };
        io::copy(source, &mut io::sink())
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.decoder {
            Decoder::None(source) => source.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(frames) => frames.read(buffer),
        }
    }
}

/// Decoder of consecutive Zstandard frames (RFC 8878, section 3), as in the engine. Skippable
/// frames carry no data; `zstd:chunked` layers have their table of contents in one.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Frames<R> {
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

impl<R: BufRead> Read for Frames<R> {
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
