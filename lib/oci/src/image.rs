use std::io::Read as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::layer::{Facts, Layer};
use crate::{Blobs, Checked, Limits, OciError, inspect};

pub const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
pub const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What an index is resolved for, and what an image must be made for. As Go names it: `linux`,
/// `arm64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
}

impl Platform {
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".into(), architecture: architecture.into() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// A reference to a blob, as OCI image-spec "descriptor" has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: String,
    pub size: u64,
    pub kind: String,
}

/// An image whose documents are true; of its layers only the names are known.
#[derive(Debug, Clone)]
pub struct Image {
    /// What was asked for: the manifest, or the index that lists it.
    pub asked: String,
    /// Of the manifest: the identity of the image in the engine.
    pub digest: String,
    pub(crate) manifest: Vec<u8>,
    pub config_digest: String,
    pub(crate) config: Vec<u8>,
    pub layers: Vec<Layer>,
    pub media_type: String,
    pub platform: Platform,
}

/// An image of which every byte was checked.
#[derive(Debug, Clone)]
pub struct Verified(pub(crate) Image);

impl std::ops::Deref for Verified {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.0
    }
}

/// Reads the documents of the image with this digest (of a manifest, or of an index that lists one
/// for the platform).
///
/// # Errors
/// [`OciError::Absent`] names the next document that is missing, for those who fetch as they go;
/// all else is final.
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
            problem: "it is an index too".into(),
        });
    }
    let described = descriptor("the manifest's config", &value["config"])?;
    if !CONFIG_TYPES.contains(&described.kind.as_str()) {
        return Err(OciError::Document {
            what: "the manifest's config",
            problem: format!("expected one of {CONFIG_TYPES:?}, found {:?}", described.kind),
        });
    }
    let config = document(blobs, "the config", &described.digest, Some(described.size), limits)?;
    let config_value = parse("the config", &config)?;
    check_config(&config_value, platform)?;
    let layers = layers(&value, &config_value, limits)?;
    Ok(Image {
        asked,
        digest,
        manifest,
        config_digest: described.digest,
        config,
        layers,
        media_type,
        platform: platform.clone(),
    })
}

impl Image {
    /// The first layers as an image of their own, for an engine that unpacks while the others are
    /// still on their way. It has no program.
    #[must_use]
    pub fn beginning(&self, layers: usize) -> Self {
        let layers: Vec<Layer> = self.layers.iter().take(layers).cloned().collect();
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = json!({
            "architecture": self.platform.architecture, "os": self.platform.os, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let listed: Vec<Value> = layers
            .iter()
            .map(|l| json!({ "mediaType": l.media_type(), "digest": l.digest, "size": l.size }))
            .collect();
        let (config, media_type) = (config.to_string().into_bytes(), MANIFEST_TYPES[0]);
        let config_digest = digest_of(&config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": listed,
            "config": { "mediaType": CONFIG_TYPES[0], "digest": config_digest, "size": config.len() },
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

    /// Every blob that the image consists of, with its size: manifest, config, layers.
    pub fn blobs(&self) -> impl Iterator<Item = (&str, u64)> {
        let documents = [
            (self.digest.as_str(), self.manifest.len() as u64),
            (&self.config_digest, self.config.len() as u64),
        ];
        documents.into_iter().chain(self.layers.iter().map(|l| (l.digest.as_str(), l.size)))
    }

    /// Takes the image as verified if its layers are, as unpacking each of them showed, what
    /// manifest and config say.
    ///
    /// # Errors
    /// The first layer that is not, or the limit that all of them together exceed.
    pub fn judge(
        self,
        limits: &Limits,
        mut facts: impl FnMut(&Layer) -> Result<Facts, OciError>,
    ) -> Result<Verified, OciError> {
        let mut left = limits.unpacked;
        for layer in &self.layers {
            let facts = facts(layer)?;
            layer.judge(&facts)?;
            left = left.checked_sub(facts.unpacked).ok_or(OciError::Limit {
                what: "all layers unpacked, in bytes,",
                limit: limits.unpacked,
            })?;
        }
        Ok(Verified(self))
    }

    /// Reads and unpacks every layer to see what it is.
    ///
    /// # Errors
    /// As [`Image::judge`], and what the storage says.
    pub fn verify(self, blobs: &impl Blobs, limits: &Limits) -> Result<Verified, OciError> {
        self.judge(limits, |layer| {
            let (size, content) = found(blobs, "the layer", &layer.digest, Some(layer.size))?;
            inspect(Checked::new(content, &layer.digest, size), limits)
                .map_err(|error| error.of(&layer.digest))
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

/// The manifest of an index that is for the platform: the first, as the engine would have it.
fn choose(index: &Value, platform: &Platform, limits: &Limits) -> Result<Descriptor, OciError> {
    let problem = |problem: String| OciError::Document { what: "the index", problem };
    let list =
        index["manifests"].as_array().ok_or_else(|| problem("it lists no manifests".into()))?;
    if list.len() > limits.layers {
        return Err(OciError::Limit {
            what: "the number of manifests in an index",
            limit: limits.layers as u64,
        });
    }
    for entry in list {
        let of = |key: &str| entry["platform"][key].as_str();
        // ARMv8 is what arm64 means; another variant would be another processor.
        let variant = of("variant").is_none_or(|v| v == "v8" && platform.architecture == "arm64");
        if of("os") == Some(&platform.os)
            && of("architecture") == Some(&platform.architecture)
            && variant
        {
            let chosen = descriptor("a manifest of the index", entry)?;
            if !MANIFEST_TYPES.contains(&chosen.kind.as_str()) {
                return Err(problem(format!(
                    "for {platform} it names {:?}; expected one of {MANIFEST_TYPES:?}",
                    chosen.kind
                )));
            }
            return Ok(chosen);
        }
    }
    let has: Vec<String> = list
        .iter()
        .map(|e| {
            format!(
                "{}/{}",
                e["platform"]["os"].as_str().unwrap_or("?"),
                e["platform"]["architecture"].as_str().unwrap_or("?")
            )
        })
        .collect();
    Err(problem(format!("nothing in it is for {platform}; it has {}", has.join(", "))))
}

fn check_config(config: &Value, platform: &Platform) -> Result<(), OciError> {
    let problem = |problem: String| Err(OciError::Document { what: "the config", problem });
    if config["config"]["Volumes"].as_object().is_some_and(|v| !v.is_empty()) {
        // The engine would make each a writable folder without limit, beside trustd's own.
        return problem(
            "it declares Volumes; what a module may write is the module's file to say".into(),
        );
    }
    let found =
        (text(config, "os").unwrap_or("linux"), text(config, "architecture").unwrap_or_default());
    if found != (&platform.os, &platform.architecture) {
        return problem(format!(
            "the image is for {}/{}, this node is {platform}",
            found.0, found.1
        ));
    }
    Ok(())
}

fn layers(manifest: &Value, config: &Value, limits: &Limits) -> Result<Vec<Layer>, OciError> {
    let listed = manifest["layers"].as_array().ok_or_else(|| OciError::Document {
        what: "the manifest",
        problem: "it lists no layers".into(),
    })?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    if listed.len() != diff_ids.len() || listed.is_empty() {
        return Err(OciError::Document {
            what: "the config",
            problem: format!("{} diff_ids for {} layers", diff_ids.len(), listed.len()),
        });
    }
    if listed.len() > limits.layers {
        return Err(OciError::Limit { what: "the number of layers", limit: limits.layers as u64 });
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
    // Summed without overflow: a size is whatever somebody wrote there.
    let total = layers.iter().try_fold(0u64, |sum, l| sum.checked_add(l.size));
    if total.is_none_or(|t| t > limits.archive) {
        return Err(OciError::Limit {
            what: "all layers together, in bytes,",
            limit: limits.archive,
        });
    }
    Ok(layers)
}

fn found<B: Blobs>(
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
        return Err(OciError::Limit { what: "a JSON document in bytes", limit: limits.json });
    }
    let (size, content) = found(blobs, what, digest, size)?;
    if size > limits.json {
        return Err(OciError::Limit { what: "a JSON document in bytes", limit: limits.json });
    }
    let mut bytes = Vec::new();
    Checked::new(content, digest, size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(what: &'static str, bytes: &[u8]) -> Result<Value, OciError> {
    crate::json::parse(bytes).map_err(|problem| OciError::Document { what, problem })
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").and_then(measure::unhex).is_some_and(|b| b.len() == 32)
}

/// Inline data and foreign URLs are refused: they would be a second source.
fn descriptor(what: &'static str, value: &Value) -> Result<Descriptor, OciError> {
    let problem = |problem: &str| OciError::Document { what, problem: problem.to_owned() };
    let digest = text(value, "digest").ok_or_else(|| problem("it has no digest"))?;
    if !is_digest(digest) {
        return Err(problem("its digest is not sha256: and 64 hex digits"));
    }
    if value.get("data").is_some() || value.get("urls").is_some() {
        return Err(problem("it carries data or urls"));
    }
    let size = value["size"].as_u64().ok_or_else(|| problem("it has no size"))?;
    let kind = text(value, "mediaType").ok_or_else(|| problem("it has no mediaType"))?;
    Ok(Descriptor { digest: digest.to_owned(), size, kind: kind.to_owned() })
}
