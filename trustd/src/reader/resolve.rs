//! Reading of an image's documents by a reader.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use oci::{Blobs, Checked, Image, Limits, OciError, Platform, digests_in};

use super::process::Process;
use super::wire::{self, Answer, Document, Request};
use super::{ReaderError, Readers};

/// Documents that a reader may request for one image.
const MAX_DOCUMENTS: usize = 64;
/// Size of all documents of one image together, in documents of the largest size.
const MAX_LARGE_DOCUMENTS: u64 = 16;

impl Readers {
    /// Reads the documents of the image with this digest, like [`oci::resolve`].
    ///
    /// # Errors
    /// [`OciError::Absent`] with the digest of the next document that is missing; a rejection of
    /// the image; and [`OciError::Io`] if there is no verdict.
    pub fn resolve(
        &self,
        blobs: &impl Blobs,
        digest: &str,
        platform: &Platform,
        limits: &Limits,
    ) -> Result<Image, OciError> {
        let request = Request::Resolve {
            digest: digest.to_owned(),
            platform: platform.clone(),
            limits: limits.clone(),
        };
        let mut process =
            Process::start(self, self.resolutions.take(), &request).map_err(into_verdict)?;
        let mut documents = BTreeMap::new();
        let mut named: BTreeSet<String> = [digest.to_owned()].into();
        let mut left = limits.json.saturating_mul(MAX_LARGE_DOCUMENTS);
        for _ in 0..=MAX_DOCUMENTS {
            match process.answer().map_err(into_verdict)? {
                Answer::Wanted(wanted) if named.contains(&wanted) => {
                    let content = send_document(&mut process, blobs, &wanted, limits)?;
                    left = left
                        .checked_sub(content.len() as u64)
                        .ok_or_else(|| invalid("it asks for too many documents"))?;
                    named.extend(digests_in(&content).into_iter().map(str::to_owned));
                    documents.insert(wanted, content);
                }
                Answer::Wanted(_) => {
                    return Err(invalid("it asks for a blob that no document names"));
                }
                Answer::Resolved(Ok(claim)) => {
                    return claim.accept(digest, platform, documents, limits);
                }
                Answer::Resolved(Err(rejection)) => return Err(rejection.into()),
                _ => return Err(invalid("expected a claim about an image")),
            }
        }
        Err(invalid("it asks for too many documents"))
    }
}

/// Verifies a document, sends it to the reader and returns it. It is empty if it is missing or too
/// large.
fn send_document(
    process: &mut Process<'_>,
    blobs: &impl Blobs,
    digest: &str,
    limits: &Limits,
) -> Result<Vec<u8>, OciError> {
    let mut content = Vec::new();
    let document = match blobs.blob(digest)? {
        None => Document::Absent,
        Some((size, blob)) => {
            // The reader rejects a document that is too large by its size alone.
            if size <= limits.json {
                Checked::new(blob, digest, size).read_to_end(&mut content)?;
            }
            Document::Size(size)
        }
    };
    let mut message = Vec::new();
    wire::send(&mut message, &document)?;
    message.extend_from_slice(&content);
    // If the reader has ended, the next answer tells why.
    process.send(&message).map_err(into_verdict)?;
    Ok(content)
}

fn invalid(problem: &str) -> OciError {
    into_verdict(ReaderError::Answer(problem.to_owned()))
}

fn into_verdict(error: ReaderError) -> OciError {
    error.into_verdict(|problem| OciError::Document { what: "the manifest", problem })
}
