//! The documents of an image: index, manifest and config.

use std::io::Read as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::layer::{Layer, LayerInfo};
use crate::{Blobs, Checked, Descriptor, Limits, OciError, inspect};

/// Media types of a manifest.
pub const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Media types of an index.
pub const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Platform of an image, by its Go names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture, such as `arm64`.
    pub architecture: String,
}

impl Platform {
    /// Returns the platform of Linux on this architecture.
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".into(), architecture: architecture.into() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

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
    let mut manifest = document(blobs, "the manifest", &digest, None, limits)?;
    let mut value = parse("the manifest", &manifest)?;
    if is_index(&value) {
        let chosen = choose(&value, platform, limits)?;
        manifest = document(blobs, "the manifest", &chosen.digest, Some(chosen.size), limits)?;
        value = parse("the manifest", &manifest)?;
        digest = chosen.digest;
    }
    let media_type = text(&value, "mediaType").unwrap_or(MANIFEST_TYPES[0]).to_owned();
    if value["schemaVersion"] != 2 || !MANIFEST_TYPES.contains(&media_type.as_str()) {
        return Err(OciError::Document {
            what: "the manifest",
            problem: format!(
                "expected schemaVersion 2 and one of {MANIFEST_TYPES:?}, found {media_type:?}"
            ),
        });
    }
    if value.get("manifests").is_some() {
        return Err(OciError::Document {
            what: "the manifest",
            problem: "it is also an index".into(),
        });
    }
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
    let config = document(
        blobs,
        "the config",
        &config_descriptor.digest,
        Some(config_descriptor.size),
        limits,
    )?;
    let config_value = parse("the config", &config)?;
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
            .map(|l| json!({ "mediaType": l.media_type(), "digest": l.digest, "size": l.size }))
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

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(bytes)))
}

fn is_index(value: &Value) -> bool {
    match text(value, "mediaType") {
        Some(kind) => INDEX_TYPES.contains(&kind),
        None => value.get("manifests").is_some() && value.get("config").is_none(),
    }
}

/// Returns the first manifest of an index that matches the platform, as the engine does.
fn choose(index: &Value, platform: &Platform, limits: &Limits) -> Result<Descriptor, OciError> {
    let problem = |problem: String| OciError::Document { what: "the index", problem };
    let list = index["manifests"]
        .as_array()
        .ok_or_else(|| problem("it has no list of manifests".into()))?;
    if list.len() > limits.layers {
        return Err(OciError::Limit {
            what: "number of manifests in an index",
            limit: limits.layers as u64,
        });
    }
    for entry in list {
        let platform_key = |key: &str| entry["platform"][key].as_str();
        // The variant v8 is the default of arm64. Any other variant is another processor.
        let variant =
            platform_key("variant").is_none_or(|v| v == "v8" && platform.architecture == "arm64");
        if platform_key("os") == Some(&platform.os)
            && platform_key("architecture") == Some(&platform.architecture)
            && variant
        {
            let chosen = descriptor("a manifest of the index", entry)?;
            if !MANIFEST_TYPES.contains(&chosen.kind.as_str()) {
                return Err(problem(format!(
                    "expected one of {MANIFEST_TYPES:?} for {platform}, found {:?}",
                    chosen.kind
                )));
            }
            return Ok(chosen);
        }
    }
    let platforms: Vec<String> = list
        .iter()
        .map(|e| {
            format!(
                "{}/{}",
                e["platform"]["os"].as_str().unwrap_or("?"),
                e["platform"]["architecture"].as_str().unwrap_or("?")
            )
        })
        .collect();
    Err(problem(format!("expected a manifest for {platform}, found {}", platforms.join(", "))))
}

fn check_config(config: &Value, platform: &Platform) -> Result<(), OciError> {
    let problem = |problem: String| Err(OciError::Document { what: "the config", problem });
    if config["config"]["Volumes"].as_object().is_some_and(|v| !v.is_empty()) {
        // The engine would create a writable folder without a limit for each.
        return problem(
            "it declares Volumes; only the file of a module can declare writable folders".into(),
        );
    }
    let found =
        (text(config, "os").unwrap_or("linux"), text(config, "architecture").unwrap_or_default());
    if found != (&platform.os, &platform.architecture) {
        return problem(format!("expected an image for {platform}, found {}/{}", found.0, found.1));
    }
    Ok(())
}

fn layers(manifest: &Value, config: &Value, limits: &Limits) -> Result<Vec<Layer>, OciError> {
    let listed = manifest["layers"].as_array().ok_or_else(|| OciError::Document {
        what: "the manifest",
        problem: "it has no list of layers".into(),
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

/// Opens a blob and checks its size.
fn open<B: Blobs>(
    blobs: &B,
    what: &'static str,
    digest: &str,
    size: Option<u64>,
) -> Result<(u64, B::Blob), OciError> {
    let (found, content) = blobs.blob(digest)?.ok_or_else(|| OciError::Absent {
        what,
        digest: digest.to_owned(),
        size,
    })?;
    match size {
        Some(expected) if expected != found => Err(OciError::Mismatch {
            what: "the blob",
            digest: digest.to_owned(),
            expected: format!("{expected} bytes"),
            found: format!("{found} bytes"),
        }),
        _ => Ok((found, content)),
    }
}

fn document(
    blobs: &impl Blobs,
    what: &'static str,
    digest: &str,
    size: Option<u64>,
    limits: &Limits,
) -> Result<Vec<u8>, OciError> {
    if size.is_some_and(|s| s > limits.json) {
        return Err(OciError::Limit {
            what: "size of a JSON document in bytes",
            limit: limits.json,
        });
    }
    let (size, content) = open(blobs, what, digest, size)?;
    if size > limits.json {
        return Err(OciError::Limit {
            what: "size of a JSON document in bytes",
            limit: limits.json,
        });
    }
    let mut bytes = Vec::new();
    Checked::new(content, digest, size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(what: &'static str, bytes: &[u8]) -> Result<Value, OciError> {
    crate::json::parse(bytes)
        .map_err(|error| OciError::Document { what, problem: error.to_string() })
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// Reports whether a text is `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").and_then(measure::unhex).is_some_and(|b| b.len() == 32)
}

/// Parses a descriptor. Inline data and URLs are rejected, because they would be a second source of
/// the blob.
fn descriptor(what: &'static str, value: &Value) -> Result<Descriptor, OciError> {
    let problem = |problem: &str| OciError::Document { what, problem: problem.to_owned() };
    let digest = text(value, "digest").ok_or_else(|| problem("digest is missing"))?;
    if !is_digest(digest) {
        return Err(problem("expected a digest of sha256: and 64 hex digits"));
    }
    if value.get("data").is_some() || value.get("urls").is_some() {
        return Err(problem("data and urls are not allowed"));
    }
    let size = value["size"].as_u64().ok_or_else(|| problem("size is missing"))?;
    let kind = text(value, "mediaType").ok_or_else(|| problem("mediaType is missing"))?;
    Ok(Descriptor { digest: digest.to_owned(), size, kind: kind.to_owned() })
}
