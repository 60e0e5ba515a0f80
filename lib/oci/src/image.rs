//! The documents of an image: index, manifest and config.

use serde_json::{Value, json};

use crate::document::{CONFIG, MANIFEST, descriptor, digest_of, open, read, text};
use crate::index::{Search, is_index};
use crate::layer::{Layer, LayerInfo};
use crate::media_type::{CONFIG_TYPES, MANIFEST_TYPES};
use crate::platform::describe;
use crate::{Blobs, Checked, Limits, OciError, Platform, inspect};

/// An image whose documents are verified. Its layers are not.
#[derive(Debug, Clone)]
pub struct Image {
    /// Requested digest, of the manifest or of the index that lists it.
    pub asked: String,
    /// Digest of the manifest, which identifies the image in the engine.
    pub digest: String,
    pub(crate) manifest: Vec<u8>,
    /// Digest of the config.
    pub config_digest: String,
    pub(crate) config: Vec<u8>,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// Media type of the manifest.
    pub media_type: String,
    /// Platform of the image.
    pub platform: Platform,
}

/// An image whose documents and layers are verified.
#[derive(Debug, Clone)]
pub struct Verified(pub(crate) Image);

impl std::ops::Deref for Verified {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.0
    }
}

/// Reads the documents of the image with this digest, of a manifest or of an index that lists one
/// for the platform.
///
/// # Errors
///
/// Returns [`OciError::Absent`] with the digest of the next document that is missing; the caller
/// can fetch it and retry. Every other error is final.
pub fn resolve(
    blobs: &impl Blobs,
    digest: &str,
    platform: &Platform,
    limits: &Limits,
) -> Result<Image, OciError> {
    let asked = digest.to_owned();
    let mut digest = digest.to_owned();
    let what = "the manifest";
    let (mut manifest, mut value) = read(blobs, what, (&digest, None), MANIFEST, limits)?;
    if is_index(&value)? {
        let chosen = Search::new(blobs, platform, limits).choose(&value)?;
        let name = (chosen.digest.as_str(), Some(chosen.size));
        (manifest, value) = read(blobs, what, name, MANIFEST, limits)?;
        digest = chosen.digest;
    }
    let media_type = check_manifest(&value)?.to_owned();
    let config_descriptor = descriptor("the manifest's config", &value["config"])?;
    if !CONFIG_TYPES.contains(&config_descriptor.kind.as_str()) {
        return Err(OciError::Document {
            what: "the manifest's config",
            problem: format!(
                "expected one of {CONFIG_TYPES:?}, found {:?}",
                config_descriptor.kind
            ),
        });
    }
    let name = (config_descriptor.digest.as_str(), Some(config_descriptor.size));
    let (config, config_value) = read(blobs, "the config", name, CONFIG, limits)?;
    check_config(&config_value, platform)?;
    let layers = layers(&value, &config_value, limits)?;
    Ok(Image {
        asked,
        digest,
        manifest,
        config_digest: config_descriptor.digest,
        config,
        layers,
        media_type,
        platform: platform.clone(),
    })
}

/// Checks the form of a manifest and returns its media type. Older tools leave the type out.
fn check_manifest(manifest: &Value) -> Result<&str, OciError> {
    let problem = |problem: String| OciError::Document { what: "the manifest", problem };
    if !manifest["fsLayers"].is_null() || manifest["schemaVersion"] == 1 {
        return Err(problem(
            "it has Docker's schema 1, which the engine does not load; push the image again with a \
             current tool"
                .into(),
        ));
    }
    let media_type = text(manifest, "mediaType").unwrap_or(MANIFEST_TYPES[0]);
    if manifest["schemaVersion"] != 2 || !MANIFEST_TYPES.contains(&media_type) {
        return Err(problem(format!(
            "expected schemaVersion 2 and one of {MANIFEST_TYPES:?}, found {media_type:?}"
        )));
    }
    if is_index(manifest)? {
        return Err(problem("an index lists it as a manifest, and it is an index".into()));
    }
    Ok(media_type)
}

impl Image {
    /// Returns an image of the first layers, which has no command. The engine can unpack it while
    /// the other layers are fetched.
    #[must_use]
    pub fn first_layers(&self, layers: usize) -> Self {
        let layers: Vec<Layer> = self.layers.iter().take(layers).cloned().collect();
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let listed: Vec<Value> = layers
            .iter()
            .map(|l| json!({ "mediaType": l.media_type.name, "digest": l.digest, "size": l.size }))
            .collect();
        let (config, media_type) = (config.to_string().into_bytes(), MANIFEST_TYPES[0]);
        let config_digest = digest_of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "layers": listed,
            "config": {
                "mediaType": CONFIG_TYPES[0],
                "digest": config_digest,
                "size": config.len(),
            },
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = digest_of(&manifest);
        Self {
            asked: digest.clone(),
            digest,
            manifest,
            config_digest,
            config,
            layers,
            media_type: media_type.into(),
            platform: self.platform.clone(),
        }
    }

    /// Returns digest and size of each blob of the image: manifest, config, layers.
    pub fn blobs(&self) -> impl Iterator<Item = (&str, u64)> {
        let documents = [
            (self.digest.as_str(), self.manifest.len() as u64),
            (&self.config_digest, self.config.len() as u64),
        ];
        documents.into_iter().chain(self.layers.iter().map(|l| (l.digest.as_str(), l.size)))
    }

    /// Verifies the layers with the results of unpacking them, which `info` returns.
    ///
    /// # Errors
    ///
    /// Returns the errors of `info`, [`OciError::Mismatch`] for the first layer that does not match
    /// manifest and config, and [`OciError::Limit`] if all layers together are too large.
    pub fn verify_layers(
        self,
        limits: &Limits,
        mut info: impl FnMut(&Layer) -> Result<LayerInfo, OciError>,
    ) -> Result<Verified, OciError> {
        let mut left = limits.unpacked;
        for layer in &self.layers {
            let info = info(layer)?;
            layer.check(&info)?;
            left = left.checked_sub(info.unpacked).ok_or(OciError::Limit {
                what: "size of all unpacked layers in bytes",
                limit: limits.unpacked,
            })?;
        }
        Ok(Verified(self))
    }

    /// Unpacks and verifies all layers.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`inspect`] and [`Image::verify_layers`], and those of the storage.
    pub fn verify(self, blobs: &impl Blobs, limits: &Limits) -> Result<Verified, OciError> {
        self.verify_layers(limits, |layer| {
            let (size, content) = open(blobs, "the layer", &layer.digest, Some(layer.size))?;
            inspect(Checked::new(content, &layer.digest, size), limits)
                .map_err(|error| error.in_layer(&layer.digest))
        })
    }
}

fn check_config(config: &Value, platform: &Platform) -> Result<(), OciError> {
    let problem = |problem: String| Err(OciError::Document { what: "the config", problem });
    if config["config"]["Volumes"].as_object().is_some_and(|v| !v.is_empty()) {
        // The engine would create a writable folder without a limit for each.
        return problem(
            "it declares Volumes; only the file of a module can declare writable folders".into(),
        );
    }
    if !platform.runs(config) {
        let found = describe(config);
        return problem(format!("expected an image for {platform}, found {found}"));
    }
    Ok(())
}

fn layers(manifest: &Value, config: &Value, limits: &Limits) -> Result<Vec<Layer>, OciError> {
    let listed = manifest["layers"].as_array().ok_or_else(|| OciError::Document {
        what: "the manifest",
        problem: "it has no list of layers; only images can be modules".into(),
    })?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    if listed.len() != diff_ids.len() || listed.is_empty() {
        return Err(OciError::Document {
            what: "the config",
            problem: format!(
                "expected at least one layer and a diff ID in diff_ids for each, found {} diff_ids \
                 for {} layers",
                diff_ids.len(),
                listed.len()
            ),
        });
    }
    if listed.len() > limits.layers {
        return Err(OciError::Limit { what: "number of layers", limit: limits.layers as u64 });
    }
    let layers: Vec<Layer> = listed
        .iter()
        .zip(&diff_ids)
        .map(|(entry, diff_id)| {
            Layer::new(
                descriptor("a layer of the manifest", entry)?,
                diff_id.as_str().unwrap_or_default(),
            )
        })
        .collect::<Result<_, _>>()?;
    // The sizes come from the manifest and can overflow the sum.
    let total = layers.iter().try_fold(0u64, |sum, l| sum.checked_add(l.size));
    if total.is_none_or(|t| t > limits.archive) {
        return Err(OciError::Limit { what: "size of all layers in bytes", limit: limits.archive });
    }
    Ok(layers)
}
