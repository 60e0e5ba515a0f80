//! Indexes: the choice of the manifest for a platform.

use serde_json::Value;

use crate::document::{CONFIG, MANIFEST, check_data, descriptor, read, text};
use crate::media_type::{CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES};
use crate::platform::describe;
use crate::{Blobs, Descriptor, Limits, OciError, Platform};

/// Greatest depth of indexes in indexes.
const MAX_DEPTH: usize = 3;
/// Greatest number of documents that are read to choose a manifest. Entries without a platform
/// cost two each.
const MAX_DOCUMENTS: usize = 32;
/// Annotation of BuildKit for manifests that are about another manifest.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

fn problem(problem: String) -> OciError {
    OciError::Document { what: "the index", problem }
}

/// Reports whether a document is an index.
///
/// # Errors
///
/// Returns [`OciError::Document`] for a document that is an index and a manifest: the engine
/// rejects it.
pub(crate) fn is_index(value: &Value) -> Result<bool, OciError> {
    let is_index = match text(value, "mediaType") {
        Some(kind) => INDEX_TYPES.contains(&kind),
        None => value["manifests"].is_array() && value["config"].is_null(),
    };
    let other: &[&str] = if is_index { &["config", "layers", "fsLayers"] } else { &["manifests"] };
    if other.iter().any(|key| !value[*key].is_null()) {
        return Err(OciError::Document {
            what: "the manifest",
            problem: "it is a manifest and also an index".into(),
        });
    }
    Ok(is_index)
}

/// Search for the manifest of a platform.
pub(crate) struct Search<'a, B> {
    pub(crate) blobs: &'a B,
    pub(crate) platform: &'a Platform,
    pub(crate) limits: &'a Limits,
    /// Documents that may still be read.
    documents: usize,
    /// Platforms of the entries that were passed over.
    others: Vec<String>,
}

impl<'a, B: Blobs> Search<'a, B> {
    pub(crate) fn new(blobs: &'a B, platform: &'a Platform, limits: &'a Limits) -> Self {
        Self { blobs, platform, limits, documents: MAX_DOCUMENTS, others: Vec::new() }
    }

    /// Returns the first manifest that the index lists for the platform.
    ///
    /// If there is none, the engine looks at the config of an entry without a platform, so each of
    /// these is read until one fits.
    ///
    /// # Errors
    ///
    /// Returns [`OciError::Document`] if there is none, and the errors of reading the documents.
    pub(crate) fn choose(mut self, index: &Value) -> Result<Descriptor, OciError> {
        self.search(index, 1)?.ok_or_else(|| {
            let found = if self.others.is_empty() { "none".into() } else { self.others.join(", ") };
            problem(format!("expected a manifest for {}, found {found}", self.platform))
        })
    }

    fn search(&mut self, index: &Value, depth: usize) -> Result<Option<Descriptor>, OciError> {
        let list = index["manifests"]
            .as_array()
            .ok_or_else(|| problem("it has no list of manifests".into()))?;
        if list.len() > self.limits.manifests {
            return Err(OciError::Limit {
                what: "number of manifests in an index",
                limit: self.limits.manifests as u64,
            });
        }
        let mut without_platform = Vec::new();
        let mut chosen = None;
        for entry in list {
            check_data("a manifest of the index", entry)?;
            if text(&entry["annotations"], REFERENCE_TYPE).is_some() {
                continue;
            }
            let platform = &entry["platform"];
            if platform.is_null() {
                without_platform.push(entry);
            } else if chosen.is_none() && self.platform.runs(platform) {
                chosen = Some(descriptor("a manifest of the index", entry)?);
            } else if self.others.len() < 20 {
                self.others.push(describe(platform));
            }
        }
        if let Some(chosen) = chosen {
            return match chosen.kind.as_str() {
                kind if MANIFEST_TYPES.contains(&kind) => Ok(Some(chosen)),
                kind if INDEX_TYPES.contains(&kind) => self.nested(&chosen, depth),
                other => Err(problem(format!(
                    "expected one of {MANIFEST_TYPES:?} for {}, found {other:?}",
                    self.platform
                ))),
            };
        }
        for entry in without_platform {
            let kind = text(entry, "mediaType").unwrap_or_default();
            let found = if INDEX_TYPES.contains(&kind) {
                self.nested(&descriptor("a manifest of the index", entry)?, depth)?
            } else if MANIFEST_TYPES.contains(&kind) {
                let entry = descriptor("a manifest of the index", entry)?;
                self.fits(&entry)?.then_some(entry)
            } else {
                None
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn nested(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<Descriptor>, OciError> {
        if depth == MAX_DEPTH {
            return Err(OciError::Limit {
                what: "depth of indexes in indexes",
                limit: MAX_DEPTH as u64,
            });
        }
        let index = self.read("the manifest", entry, MANIFEST)?;
        if !is_index(&index)? {
            return Err(problem("an entry says that it is an index, and is a manifest".into()));
        }
        self.search(&index, depth + 1)
    }

    /// Reports whether a manifest is of an image for the platform, by its config.
    fn fits(&mut self, entry: &Descriptor) -> Result<bool, OciError> {
        let manifest = self.read("the manifest", entry, MANIFEST)?;
        let is_image =
            text(&manifest["config"], "mediaType").is_some_and(|kind| CONFIG_TYPES.contains(&kind));
        if !is_image {
            return Ok(false);
        }
        let config = descriptor("the manifest's config", &manifest["config"])?;
        let config = self.read("the config", &config, CONFIG)?;
        let fits = self.platform.runs(&config);
        if !fits && self.others.len() < 20 {
            self.others.push(describe(&config));
        }
        Ok(fits)
    }

    fn read(
        &mut self,
        what: &'static str,
        entry: &Descriptor,
        shape: crate::json::Shape,
    ) -> Result<Value, OciError> {
        self.documents = self.documents.checked_sub(1).ok_or(OciError::Limit {
            what: "number of documents that are read to find the platform in an index",
            limit: MAX_DOCUMENTS as u64,
        })?;
        let name = (entry.digest.as_str(), Some(entry.size));
        Ok(read(self.blobs, what, name, shape, self.limits)?.1)
    }
}
