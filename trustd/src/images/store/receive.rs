//! Writing of a blob while a reader unpacks it, if it is a layer.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};

use oci::{LayerInfo, Limits, OciError};

use crate::reader::{Inspection, Readers};

const CHUNK_BYTES: usize = 1 << 17;

/// Copies a blob to `file`, which already has the first `start` bytes. Returns what unpacking it
/// showed if it is a valid layer.
///
/// # Errors
///
/// Returns the errors of `from` and `file`, and [`OciError::Limit`] as an I/O error as soon as a
/// reader reports that the layer exceeds a limit.
pub(super) fn copy_and_inspect(
    mut from: impl Read,
    file: &mut File,
    start: u64,
    readers: &Readers,
    limits: &Limits,
) -> io::Result<Option<LayerInfo>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    let mut inspection = None;
    loop {
        let n = from.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        // JSON documents begin with a brace. Anything else is inspected as a layer. That it is none
        // becomes an error only if an image uses it as a layer; so does a failure of the reader.
        if offset == 0 && chunk[0] != b'{' {
            inspection = readers.begin_inspection(limits).ok();
        }
        inspection = match inspection {
            Some(inspection) => send(inspection, &chunk[..n])?,
            None => None,
        };
        let known = start.saturating_sub(offset).min(n as u64) as usize;
        if known < n {
            file.seek(SeekFrom::Start(offset + known as u64))?;
            file.write_all(&chunk[known..n])?;
        } else {
            // `from` read these bytes from the same file: move past them.
            file.seek(SeekFrom::Start(offset + n as u64))?;
        }
        offset += n as u64;
    }
    match inspection.map(Inspection::finish) {
        Some(Err(error @ OciError::Limit { .. })) => Err(error.into()),
        Some(Ok(layer_info)) => Ok(Some(layer_info)),
        Some(Err(_)) | None => Ok(None),
    }
}

/// Passes a chunk to a reader. Returns `None` if the reader has ended early.
///
/// # Errors
///
/// Returns [`OciError::Limit`], the only reason that ends the whole transfer.
fn send<'a>(mut inspection: Inspection<'a>, chunk: &[u8]) -> io::Result<Option<Inspection<'a>>> {
    match inspection.send(chunk) {
        Ok(true) => Ok(Some(inspection)),
        Ok(false) => match inspection.finish() {
            Err(error @ OciError::Limit { .. }) => Err(error.into()),
            _ => Ok(None),
        },
        Err(_) => Ok(None),
    }
}
