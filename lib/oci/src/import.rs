//! Import of image archives.

use std::collections::BTreeSet;
use std::io::{self, Read};

use crate::compression::Decompressor;
use crate::failure_tracker::FailureTracker;
use crate::tar_reader::{MemberKind, TarError, TarReader};
use crate::{Checked, Limits, OciError, Sink};

/// Folder of the blobs in an OCI layout.
const BLOBS: &str = "blobs/sha256/";
/// Names of documents of a layout, of which the blobs are not part.
const DOCUMENTS: [&str; 4] = ["oci-layout", "index.json", "manifest.json", "repositories"];
const TAR_HINT: &str = "pack the contents of the layout: tar -C LAYOUT -cf app.tar .";
const DOCKER_HINT: &str = "a Docker archive has no manifest to approve; convert it: skopeo copy \
                           docker-archive:OLD.tar oci-archive:NEW.tar";

/// Reads an OCI layout in one tar archive, front to back, and stores its blobs. Returns their
/// digests. The archive may be compressed with gzip or zstd.
///
/// Only blobs are imported. The digest that is requested later decides which of them are the image.
/// Folders, and plain files elsewhere than in `blobs`, are skipped.
///
/// # Errors
///
/// Returns [`OciError`] for the first member that is not allowed or does not match its digest, for
/// an archive without a layout, and the errors of the streams.
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

impl From<TarError> for OciError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Io(error) => error.into(),
            TarError::Rejected(error) if error.member.is_empty() => {
                Self::Archive { problem: error.problem.to_string() }
            }
            TarError::Rejected(error) => {
                Self::Member { member: error.member, reason: error.problem.to_string() }
            }
        }
    }
}

fn read(
    archive: &mut impl Read,
    sink: &mut impl Sink,
    limits: &Limits,
) -> Result<Vec<String>, Problem> {
    // The limit holds for the packed and for the unpacked archive.
    let limit = limits.archive;
    let mut packed = Limited { from: archive, left: limit, limit };
    let unpacked = Decompressor::new(&mut packed)?;
    let mut tar = TarReader::new(Limited { from: unpacked, left: limit, limit });
    let (mut digests, mut known) = (Vec::new(), BTreeSet::new());
    let mut documents = BTreeSet::new();
    let mut members = 0;
    while let Some(member) = tar.next()? {
        members += 1;
        if members > limits.members {
            let what = "number of members";
            return Err(OciError::Limit { what, limit: limits.members as u64 }.into());
        }
        // A blob's name is ASCII, so no other name becomes one.
        let name = String::from_utf8_lossy(&member.path).into_owned();
        match member.kind {
            MemberKind::Folder | MemberKind::GlobalRecords => continue,
            MemberKind::File => {}
            _ => return Err(rejected_kind(name).into()),
        }
        let Some(digest) = blob_digest(&name)? else {
            if let Some(known) = DOCUMENTS.iter().find(|known| **known == name)
                && !documents.insert(*known)
            {
                return Err(reject(name, "the name occurs twice").into());
            }
            continue;
        };
        if !known.insert(digest.clone()) {
            return Err(reject(name, "the name occurs twice").into());
        }
        let mut content = Checked::new(&mut tar, &digest, member.size);
        sink.put(&digest, member.size, &mut content)
            .map_err(|error| Problem::Sink(error.into()))?;
        // A sink that has the blob already need not read it, but the blob is verified in any case.
        io::copy(&mut content, &mut io::sink())?;
        digests.push(digest);
    }
    if digests.is_empty() && members > 0 {
        let docker = documents.contains("manifest.json");
        let reason = if docker { DOCKER_HINT } else { TAR_HINT };
        return Err(reject(BLOBS.to_owned(), &format!("there are no blobs; {reason}")).into());
    }
    // Data after the end of the archive is ignored up to the limit, which stops an endless upload.
    tar.drain()?;
    drop(tar);
    io::copy(&mut packed, &mut io::sink())?;
    Ok(digests)
}

/// Returns the digest of the blob with this name, and `None` for a file that is not below `blobs`.
fn blob_digest(name: &str) -> Result<Option<String>, OciError> {
    if name != "blobs" && !name.starts_with("blobs/") {
        return Ok(None);
    }
    let hex = name.strip_prefix(BLOBS).unwrap_or_default();
    if measure::unhex(hex).is_some_and(|bytes| bytes.len() == 32) {
        return Ok(Some(format!("sha256:{hex}")));
    }
    // `oci_load` of rules_oci writes Docker archives whose layers are below `blobs`.
    if hex.ends_with(".tar.gz") {
        return Err(reject(name.to_owned(), DOCKER_HINT));
    }
    Err(reject(name.to_owned(), "expected blobs/sha256/<64 hex digits> below blobs"))
}

fn reject(member: String, reason: &str) -> OciError {
    OciError::Member { member, reason: reason.to_owned() }
}

fn rejected_kind(name: String) -> OciError {
    // `docker save` links equal layers to each other.
    let docker = name.ends_with("/layer.tar");
    let reason = "only plain files and folders are allowed; pack links as files: tar --dereference \
                  --hard-dereference";
    reject(name, if docker { DOCKER_HINT } else { reason })
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
