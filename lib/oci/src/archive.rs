use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{json, layer};

/// Bytes and counts beyond which an archive is refused.
#[derive(Debug, Clone)]
pub struct Limits {
    pub archive: u64,
    /// Of all layers together, unpacked.
    pub unpacked: u64,
    /// Of one JSON document.
    pub json: u64,
    pub layers: usize,
    /// Members of the archive, and of each layer.
    pub members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { archive: 2 << 30, unpacked: 8 << 30, json: 1 << 20, layers: 64, members: 200_000 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("cannot read the archive: {0}")]
    Io(#[from] io::Error),
    #[error("the archive's member {member:?} is refused: {why}")]
    Member { member: String, why: String },
    #[error("the archive does not hold {what} {digest}")]
    Absent { what: &'static str, digest: String },
    #[error("{what} is not as it should be: {problem}")]
    Document { what: &'static str, problem: String },
    #[error("{what} {digest}: expected {expected}, found {found}")]
    Mismatch { what: &'static str, digest: String, expected: String, found: String },
    #[error("too much: {what} is limited to {limit}")]
    Limit { what: &'static str, limit: u64 },
    #[error("layer {digest} is refused: {problem}")]
    Layer { digest: String, problem: String },
}

/// A layer, and where its bytes lie in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub digest: String,
    pub size: u64,
    pub(crate) offset: u64,
}

/// An image of which every byte was checked.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Of the manifest: the identity of the image in ledger and engine.
    pub digest: String,
    pub(crate) manifest: Vec<u8>,
    pub config_digest: String,
    pub(crate) config: Vec<u8>,
    pub layers: Vec<Layer>,
    pub media_type: String,
    pub architecture: String,
}

struct Member {
    offset: u64,
    size: u64,
}

const MANIFEST_TYPES: [&str; 2] = ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Checks that an archive holds the image with this manifest digest, whole and true down to its unpacked layers.
///
/// # Errors
/// The first thing that is not as it should be, by name.
pub fn verify<R: Read + Seek>(archive: &mut R, digest: &str, limits: &Limits) -> Result<Verified, OciError> {
    let blobs = index(archive, limits)?;
    let manifest = document(archive, &blobs, "the manifest", digest, limits)?;
    let value = parse("the manifest", &manifest)?;
    let media_type = text(&value, "mediaType").unwrap_or(MANIFEST_TYPES[0]).to_owned();
    if value["schemaVersion"] != 2 || !MANIFEST_TYPES.contains(&media_type.as_str()) {
        return Err(OciError::Document {
            what: "the manifest",
            problem: format!("expected schemaVersion 2 and one of {MANIFEST_TYPES:?}, found {media_type:?}"),
        });
    }
    let (config_digest, config_size, kind) = descriptor("the manifest's config", &value["config"])?;
    if !CONFIG_TYPES.contains(&kind.as_str()) {
        return Err(OciError::Document {
            what: "the manifest's config",
            problem: format!("expected one of {CONFIG_TYPES:?}, found {kind:?}"),
        });
    }
    let config = document(archive, &blobs, "the config", &config_digest, limits)?;
    same_size("the config", &config_digest, config_size, config.len() as u64)?;
    let config_value = parse("the config", &config)?;
    if config_value["config"]["Volumes"].as_object().is_some_and(|v| !v.is_empty()) {
        // The engine would make each a writable folder without limit, beside trustd's own.
        return Err(OciError::Document {
            what: "the config",
            problem: "it declares Volumes; what a module may write is the module's file to say".into(),
        });
    }
    let architecture = text(&config_value, "architecture").unwrap_or_default().to_owned();

    let listed =
        value["layers"].as_array().ok_or_else(|| OciError::Document { what: "the manifest", problem: "it lists no layers".into() })?;
    let diff_ids = config_value["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    if listed.len() != diff_ids.len() || listed.is_empty() {
        return Err(OciError::Document { what: "the config", problem: format!("{} diff_ids for {} layers", diff_ids.len(), listed.len()) });
    }
    if listed.len() > limits.layers {
        return Err(OciError::Limit { what: "the number of layers", limit: limits.layers as u64 });
    }
    let mut left = limits.unpacked;
    let mut layers = Vec::new();
    for (entry, diff_id) in listed.iter().zip(&diff_ids) {
        let (digest, size, kind) = descriptor("a layer of the manifest", entry)?;
        let member = blobs.get(&digest).ok_or_else(|| OciError::Absent { what: "the layer", digest: digest.clone() })?;
        same_size("the layer", &digest, size, member.size)?;
        archive.seek(SeekFrom::Start(member.offset))?;
        let found = layer::check(archive.take(member.size), &kind, &digest, &mut left, limits)?;
        if diff_id.as_str() != Some(&found) {
            return Err(OciError::Mismatch { what: "the unpacked layer", digest, expected: diff_id.to_string(), found });
        }
        layers.push(Layer { digest, size, offset: member.offset });
    }
    Ok(Verified { digest: digest.to_owned(), manifest, config_digest, config, layers, media_type, architecture })
}

/// Reads the whole archive once. Every blob is hashed; one that is not what its name says ends it all.
fn index<R: Read + Seek>(archive: &mut R, limits: &Limits) -> Result<BTreeMap<String, Member>, OciError> {
    let length = archive.seek(SeekFrom::End(0))?;
    if length > limits.archive {
        return Err(OciError::Limit { what: "the archive in bytes", limit: limits.archive });
    }
    archive.seek(SeekFrom::Start(0))?;
    let mut blobs = BTreeMap::new();
    let mut names = std::collections::BTreeSet::new();
    let mut tar = tar::Archive::new(archive);
    // Raw: extensions (long names, sparse files, other attributes) are members of their own and are refused as such.
    for entry in tar.entries()?.raw(true) {
        let mut entry = entry?;
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |why: &str| OciError::Member { member: member.clone(), why: why.to_owned() };
        let kind = entry.header().entry_type();
        if !names.insert(member.trim_end_matches('/').to_owned()) {
            return Err(refuse("it is there twice"));
        }
        if names.len() > limits.members {
            return Err(OciError::Limit { what: "the number of members", limit: limits.members as u64 });
        }
        if kind.is_dir() && ["blobs", "blobs/sha256"].contains(&member.trim_end_matches('/')) {
            continue;
        }
        if !kind.is_file() {
            return Err(refuse("only plain files (and the folders blobs and blobs/sha256) may be in it"));
        }
        if ["oci-layout", "index.json", "manifest.json", "repositories"].contains(&member.as_str()) {
            // Not read: what is in the image follows from the digest that was asked for.
            continue;
        }
        let hex = member
            .strip_prefix("blobs/sha256/")
            .filter(|h| measure::unhex(h).is_some_and(|b| b.len() == 32))
            .ok_or_else(|| refuse("it is none of oci-layout, index.json, manifest.json, repositories, blobs/sha256/<64 hex digits>"))?;
        let (offset, size) = (entry.raw_file_position(), entry.header().entry_size()?);
        let mut hasher = Sha256::new();
        let copied = io::copy(&mut entry, &mut HashWriter(&mut hasher))?;
        if copied != size {
            return Err(refuse("the archive ends early"));
        }
        let found = measure::hex(&hasher.finalize());
        if found != hex {
            return Err(OciError::Mismatch { what: "the blob named", digest: hex.to_owned(), expected: hex.to_owned(), found });
        }
        blobs.insert(format!("sha256:{hex}"), Member { offset, size });
    }
    Ok(blobs)
}

pub(crate) struct HashWriter<'a>(pub(crate) &'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn document<R: Read + Seek>(
    archive: &mut R,
    blobs: &BTreeMap<String, Member>,
    what: &'static str,
    digest: &str,
    limits: &Limits,
) -> Result<Vec<u8>, OciError> {
    let member = blobs.get(digest).ok_or_else(|| OciError::Absent { what, digest: digest.to_owned() })?;
    if member.size > limits.json {
        return Err(OciError::Limit { what: "a JSON document in bytes", limit: limits.json });
    }
    archive.seek(SeekFrom::Start(member.offset))?;
    let mut bytes = Vec::new();
    archive.take(member.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(what: &'static str, bytes: &[u8]) -> Result<Value, OciError> {
    json::parse(bytes).map_err(|problem| OciError::Document { what, problem })
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// Digest, size and media type of a descriptor. Inline data and foreign URLs are refused: they would be a second source.
fn descriptor(what: &'static str, value: &Value) -> Result<(String, u64, String), OciError> {
    let problem = |problem: &str| OciError::Document { what, problem: problem.to_owned() };
    let digest = text(value, "digest").ok_or_else(|| problem("it has no digest"))?;
    if digest.strip_prefix("sha256:").and_then(measure::unhex).is_none_or(|b| b.len() != 32) {
        return Err(problem("its digest is not sha256: and 64 hex digits"));
    }
    if value.get("data").is_some() || value.get("urls").is_some() {
        return Err(problem("it carries data or urls"));
    }
    let size = value["size"].as_u64().ok_or_else(|| problem("it has no size"))?;
    let kind = text(value, "mediaType").ok_or_else(|| problem("it has no mediaType"))?;
    Ok((digest.to_owned(), size, kind.to_owned()))
}

fn same_size(what: &'static str, digest: &str, expected: u64, found: u64) -> Result<(), OciError> {
    if expected == found {
        return Ok(());
    }
    Err(OciError::Mismatch { what, digest: digest.to_owned(), expected: format!("{expected} bytes"), found: format!("{found} bytes") })
}
