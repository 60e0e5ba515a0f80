//! Import of image archives.

use std::collections::BTreeSet;
use std::io::{self, Read};

use crate::failure_tracker::FailureTracker;
use crate::{Checked, Limits, OciError, Sink};

/// Names of files in an OCI layout that are skipped.
const SKIPPED_FILES: [&str; 4] = ["oci-layout", "index.json", "manifest.json", "repositories"];

/// Reads an OCI layout in one tar archive, front to back, and stores its blobs. Returns their
/// digests.
///
/// Only blobs are imported. The digest that is requested later decides which of them are the image.
///
/// # Errors
///
/// Returns [`OciError`] for the first member that is not allowed or does not match its digest, and
/// the errors of the streams.
pub fn import(
    archive: &mut impl Read,
    sink: &mut impl Sink,
    limits: &Limits,
) -> Result<Vec<String>, OciError> {
    let mut source = FailureTracker::new(archive);
    match read(&mut source, sink, limits) {
        Err(Problem::Format(OciError::Io(error))) if !source.failed => {
            Err(OciError::Archive { problem: error.to_string() })
        }
        Err(Problem::Format(error) | Problem::Sink(error)) => Err(error),
        Ok(digests) => Ok(digests),
    }
}

/// Distinguishes errors of the archive from I/O errors of the sink.
enum Problem {
    Format(OciError),
    Sink(OciError),
}

impl<E: Into<OciError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Format(error.into())
    }
}

fn read(
    archive: &mut impl Read,
    sink: &mut impl Sink,
    limits: &Limits,
) -> Result<Vec<String>, Problem> {
    let mut digests = Vec::new();
    let mut names = BTreeSet::new();
    let mut tar =
        tar::Archive::new(Limited { from: archive, left: limits.archive, limit: limits.archive });
    // In raw mode, extensions (long names, sparse files, attributes) are members of their own,
    // which are rejected.
    for entry in tar.entries()?.raw(true) {
        let mut entry = entry?;
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let reject =
            |reason: &str| OciError::Member { member: member.clone(), reason: reason.to_owned() };
        let kind = entry.header().entry_type();
        if !names.insert(member.trim_end_matches('/').to_owned()) {
            return Err(reject("the name occurs twice").into());
        }
        if names.len() > limits.members {
            return Err(OciError::Limit {
                what: "number of members",
                limit: limits.members as u64,
            }
            .into());
        }
        if kind.is_dir() && ["blobs", "blobs/sha256"].contains(&member.trim_end_matches('/')) {
            continue;
        }
        if !kind.is_file() {
            return Err(reject(
                "only plain files are allowed, and the folders blobs and blobs/sha256",
            )
            .into());
        }
        if SKIPPED_FILES.contains(&member.as_str()) {
            continue;
        }
        let hex = member
            .strip_prefix("blobs/sha256/")
            .filter(|h| measure::unhex(h).is_some_and(|b| b.len() == 32))
            .ok_or_else(|| {
                reject(&format!(
                    "expected one of {}, blobs/sha256/<64 hex digits>",
                    SKIPPED_FILES.join(", ")
                ))
            })?;
        let (digest, size) = (format!("sha256:{hex}"), entry.header().entry_size()?);
        let mut content = Checked::new(&mut entry, &digest, size);
        sink.put(&digest, size, &mut content).map_err(|error| Problem::Sink(error.into()))?;
        // A sink that has the blob already need not read it, but the blob is verified in any case.
        io::copy(&mut content, &mut io::sink())?;
        digests.push(digest);
    }
    // Data after the end of the archive is ignored up to the limit, which stops an endless upload.
    io::copy(&mut tar.into_inner(), &mut io::sink())?;
    Ok(digests)
}

/// Reader that fails at a limit.
struct Limited<R> {
    from: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::from(OciError::Limit {
                what: "size of the archive in bytes",
                limit: self.limit,
            })
        })?;
        Ok(n)
    }
}
