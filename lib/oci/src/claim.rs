//! What another process claims about the documents of an image.
//!
//! The process that parses documents of third parties has no privileges, and a document may take it
//! over. Its answer therefore decides nothing by itself:
//! - Documents count only as bytes that the caller has verified against their digests.
//! - Every digest that the claim takes from a document must stand in this document, as text. So a
//!   claim can only lead to content that the author of the approved document named in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Descriptor, Image, Layer, Limits, MANIFEST_TYPES, OciError, Platform, is_digest};

/// Length of a digest: `sha256:` and 64 hex digits.
const DIGEST_LEN: usize = 71;

/// Result of [`crate::resolve`] without the documents themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Digest of the manifest.
    pub digest: String,
    /// Media type of the manifest.
    pub media_type: String,
    /// Digest of the config.
    pub config_digest: String,
    /// Layers, lowest first.
    pub layers: Vec<ClaimedLayer>,
}

/// A layer in a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedLayer {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
    /// Digest of the unpacked layer.
    pub diff_id: String,
}

impl From<&Image> for Claim {
    fn from(image: &Image) -> Self {
        let layers = image.layers.iter().map(|layer| ClaimedLayer {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.name.to_owned(),
            diff_id: layer.diff_id.clone(),
        });
        Self {
            digest: image.digest.clone(),
            media_type: image.media_type.clone(),
            config_digest: image.config_digest.clone(),
            layers: layers.collect(),
        }
    }
}

impl Claim {
    /// Returns the image of a claim about the image `asked`. `documents` has the verified content
    /// of `asked`, and of each further document that one of them names, by digest.
    ///
    /// # Errors
    ///
    /// Returns [`OciError::Document`] if the claim does not follow from the documents,
    /// [`OciError::Layer`] for a layer of an unknown type, and [`OciError::Limit`] if the image has
    /// too many layers or is too large.
    pub fn accept(
        self,
        asked: &str,
        platform: &Platform,
        mut documents: BTreeMap<String, Vec<u8>>,
        limits: &Limits,
    ) -> Result<Image, OciError> {
        if self.layers.is_empty() || self.layers.len() > limits.layers {
            return Err(OciError::Limit { what: "number of layers", limit: limits.layers as u64 });
        }
        let size = self.layers.iter().try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
        if size.is_none_or(|size| size > limits.archive) {
            return Err(OciError::Limit {
                what: "size of all layers in bytes",
                limit: limits.archive,
            });
        }
        self.check_digests(asked, &documents)?;
        let Self { digest, media_type, config_digest, layers } = self;
        if !MANIFEST_TYPES.contains(&media_type.as_str()) {
            return Err(OciError::Document {
                what: "the manifest",
                problem: format!("expected one of {MANIFEST_TYPES:?}, found another media type"),
            });
        }
        let layers =
            layers.into_iter().map(|ClaimedLayer { digest, size, media_type, diff_id }| {
                Layer::new(Descriptor { digest, size, kind: media_type }, &diff_id)
            });
        let mut take = |what, digest: &str| {
            documents.remove(digest).ok_or_else(|| not_named(what, asked, digest))
        };
        Ok(Image {
            asked: asked.to_owned(),
            manifest: take("the manifest", &digest)?,
            config: take("the config", &config_digest)?,
            digest,
            config_digest,
            layers: layers.collect::<Result<_, _>>()?,
            media_type,
            platform: platform.clone(),
        })
    }

    /// Checks that each digest stands in the document that should name it.
    fn check_digests(
        &self,
        asked: &str,
        documents: &BTreeMap<String, Vec<u8>>,
    ) -> Result<(), OciError> {
        let named: BTreeMap<&str, BTreeSet<&str>> = documents
            .iter()
            .map(|(digest, document)| (digest.as_str(), digests_in(document)))
            .collect();
        let check = |what, parent: &str, digest: &str| match named.get(parent) {
            Some(named) if named.contains(digest) => Ok(()),
            _ => Err(not_named(what, parent, digest)),
        };
        // An index can list another index, so any of the documents can be the parent.
        if self.digest != asked && !named.values().any(|named| named.contains(&*self.digest)) {
            return Err(not_named("the manifest", asked, &self.digest));
        }
        check("the config", &self.digest, &self.config_digest)?;
        for layer in &self.layers {
            check("a layer of the manifest", &self.digest, &layer.digest)?;
            check("the config", &self.config_digest, &layer.diff_id)?;
        }
        Ok(())
    }
}

/// Returns the digests that stand in a document as text. A digest in another spelling, such as with
/// JSON escapes, does not count; no tool writes one.
pub fn digests_in(document: &[u8]) -> BTreeSet<&str> {
    const ALGORITHM: &[u8] = b"sha256:";
    let starts = document.windows(ALGORITHM.len()).enumerate();
    starts
        .filter(|(_, text)| *text == ALGORITHM)
        .filter_map(|(at, _)| document.get(at..at + DIGEST_LEN))
        .filter_map(|digest| std::str::from_utf8(digest).ok())
        .filter(|digest| is_digest(digest))
        .collect()
}

fn not_named(what: &'static str, parent: &str, digest: &str) -> OciError {
    OciError::Document {
        what,
        problem: format!("{digest:?} does not stand in the document {parent} that should name it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuiltImage, Memory, build, import, resolve};

    fn image() -> (Image, BTreeMap<String, Vec<u8>>, Platform) {
        let (archive, digest) = build(&BuiltImage {
            architecture: "arm64",
            files: &[("x", 0o755, b"program")],
            folders: &[],
            entrypoint: &["/x"],
            user: "1:1",
        })
        .unwrap();
        let (mut blobs, platform) = (Memory::default(), Platform::linux("arm64"));
        import(&mut archive.as_slice(), &mut blobs, &Limits::default()).unwrap();
        let image = resolve(&blobs, &digest, &platform, &Limits::default()).unwrap();
        let documents = [&image.digest, &image.config_digest]
            .map(|digest| (digest.clone(), blobs.0[digest].to_vec()));
        (image, documents.into(), platform)
    }

    #[test]
    fn a_true_claim_yields_the_image() {
        let (image, documents, platform) = image();
        let claim = Claim::from(&image);
        let accepted =
            claim.accept(&image.asked, &platform, documents, &Limits::default()).unwrap();
        assert_eq!(format!("{accepted:?}"), format!("{image:?}"));
    }

    #[test]
    fn claims_about_content_that_no_document_names_are_rejected() {
        let (image, documents, platform) = image();
        let other = || format!("sha256:{}", "a".repeat(64));
        let claim = |alter: &dyn Fn(&mut Claim)| {
            let mut claim = Claim::from(&image);
            alter(&mut claim);
            claim.accept(&image.asked, &platform, documents.clone(), &Limits::default())
        };
        type Alteration<'a> = &'a dyn Fn(&mut Claim);
        let alterations: [Alteration<'_>; 11] = [
            &|claim| claim.digest = other(),
            &|claim| claim.config_digest = other(),
            &|claim| claim.config_digest = claim.layers[0].digest.clone(),
            &|claim| claim.layers[0].digest = other(),
            &|claim| claim.layers[0].diff_id = other(),
            &|claim| claim.layers[0].diff_id.clear(),
            &|claim| claim.layers[0].size = u64::MAX,
            &|claim| claim.layers = vec![claim.layers[0].clone(); 100_000],
            &|claim| claim.layers.clear(),
            &|claim| claim.media_type = "text/html".into(),
            &|claim| claim.digest.clear(),
        ];
        for (n, alteration) in alterations.into_iter().enumerate() {
            assert!(claim(alteration).is_err(), "alteration {n}");
        }
        assert!(claim(&|_| {}).is_ok());
    }
}
