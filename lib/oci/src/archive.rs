use std::collections::BTreeSet;
use std::io::{self, Read};

use crate::{Checked, Limits, OciError, Sink, Source};

/// Reads an OCI layout in one tar, front to back, and puts its blobs away. Returns their digests.
///
/// Nothing but blobs is taken from it: which image is meant follows from the digest that is asked
/// for later.
///
/// # Errors
/// The first member that has no business there, or is not what its name says.
pub fn import(
    archive: &mut impl Read,
    sink: &mut impl Sink,
    limits: &Limits,
) -> Result<Vec<String>, OciError> {
    let mut source = Source::new(archive);
    match read(&mut source, sink, limits) {
        Err(Problem::Format(OciError::Io(error))) if !source.failed => {
            Err(OciError::Archive { problem: error.to_string() })
        }
        Err(Problem::Format(error) | Problem::Sink(error)) => Err(error),
        Ok(found) => Ok(found),
    }
}

/// An I/O error of the sink says nothing of the archive.
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
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    let mut tar =
        tar::Archive::new(Limited { from: archive, left: limits.archive, limit: limits.archive });
    // Raw: extensions (long names, sparse files, other attributes) are members of their own and are
    // refused as such.
    for entry in tar.entries()?.raw(true) {
        let mut entry = entry?;
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |why: &str| OciError::Member { member: member.clone(), why: why.to_owned() };
        let kind = entry.header().entry_type();
        if !names.insert(member.trim_end_matches('/').to_owned()) {
            return Err(refuse("it is there twice").into());
        }
        if names.len() > limits.members {
            return Err(OciError::Limit {
                what: "the number of members",
                limit: limits.members as u64,
            }
            .into());
        }
        if kind.is_dir() && ["blobs", "blobs/sha256"].contains(&member.trim_end_matches('/')) {
            continue;
        }
        if !kind.is_file() {
            return Err(refuse(
                "only plain files (and the folders blobs and blobs/sha256) may be in it",
            )
            .into());
        }
        if ["oci-layout", "index.json", "manifest.json", "repositories"].contains(&member.as_str())
        {
            // Not read: what is in the image follows from the digest that was asked for.
            continue;
        }
        let hex = member
            .strip_prefix("blobs/sha256/")
            .filter(|h| measure::unhex(h).is_some_and(|b| b.len() == 32))
            .ok_or_else(|| refuse("it is none of oci-layout, index.json, manifest.json, repositories, blobs/sha256/<64 hex digits>"))?;
        let (digest, size) = (format!("sha256:{hex}"), entry.header().entry_size()?);
        let mut content = Checked::new(&mut entry, &digest, size);
        sink.put(&digest, size, &mut content).map_err(|error| Problem::Sink(error.into()))?;
        // A sink that has the blob already need not read it; it is judged all the same.
        io::copy(&mut content, &mut io::sink())?;
        found.push(digest);
    }
    // What follows the tar's end is nobody's, and an uploader that sends on and on is cut off.
    io::copy(&mut tar.into_inner(), &mut io::sink())?;
    Ok(found)
}

struct Limited<R> {
    from: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::from(OciError::Limit { what: "the archive in bytes", limit: self.limit })
        })?;
        Ok(n)
    }
}
