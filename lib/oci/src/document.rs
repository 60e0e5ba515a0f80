//! Reading of JSON documents and of the descriptors in them.

use std::io::Read as _;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::json::Shape;
use crate::{Blobs, Checked, Descriptor, Limits, OciError};

const STRINGS: Shape = Shape::Map(&Shape::Text);
const TEXTS: Shape = Shape::List(&Shape::Text);
const PLATFORM: Shape = Shape::Struct(&[
    ("os", Shape::Text),
    ("architecture", Shape::Text),
    ("variant", Shape::Text),
    ("os.version", Shape::Text),
    ("os.features", TEXTS),
]);
const DESCRIPTOR: Shape = Shape::Struct(&[
    ("mediaType", Shape::Text),
    ("digest", Shape::Text),
    ("size", Shape::Integer),
    ("urls", TEXTS),
    ("annotations", STRINGS),
    ("data", Shape::Text),
    ("platform", PLATFORM),
    ("artifactType", Shape::Text),
]);
/// A manifest or an index (OCI image-spec, `specs-go/v1`).
pub(crate) const MANIFEST: Shape = Shape::Struct(&[
    ("schemaVersion", Shape::Integer),
    ("mediaType", Shape::Text),
    ("artifactType", Shape::Text),
    ("config", DESCRIPTOR),
    ("layers", Shape::List(&DESCRIPTOR)),
    ("manifests", Shape::List(&DESCRIPTOR)),
    ("subject", DESCRIPTOR),
    ("annotations", STRINGS),
    ("fsLayers", Shape::Any),
]);
const CONTAINER: Shape = Shape::Struct(&[
    ("User", Shape::Text),
    ("ExposedPorts", Shape::Map(&Shape::Any)),
    ("Env", TEXTS),
    ("Entrypoint", TEXTS),
    ("Cmd", TEXTS),
    ("Volumes", Shape::Map(&Shape::Any)),
    ("WorkingDir", Shape::Text),
    ("Labels", STRINGS),
    ("StopSignal", Shape::Text),
    ("ArgsEscaped", Shape::Boolean),
    ("Shell", TEXTS),
    ("OnBuild", TEXTS),
]);
/// The config of an image (OCI image-spec, "image config"), with Docker's `container_config`.
pub(crate) const CONFIG: Shape = Shape::Struct(&[
    ("os", Shape::Text),
    ("architecture", Shape::Text),
    ("variant", Shape::Text),
    ("os.version", Shape::Text),
    ("os.features", TEXTS),
    ("author", Shape::Text),
    ("created", Shape::Text),
    ("config", CONTAINER),
    ("container_config", CONTAINER),
    ("rootfs", Shape::Struct(&[("type", Shape::Text), ("diff_ids", TEXTS)])),
    (
        "history",
        Shape::List(&Shape::Struct(&[
            ("created", Shape::Text),
            ("created_by", Shape::Text),
            ("author", Shape::Text),
            ("comment", Shape::Text),
            ("empty_layer", Shape::Boolean),
        ])),
    ),
]);

/// Returns the digest of a blob.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(bytes)))
}

/// Reports whether a text is `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").and_then(measure::unhex).is_some_and(|b| b.len() == 32)
}

/// Opens a blob and checks its size.
pub(crate) fn open<B: Blobs>(
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

/// Reads and parses a document.
///
/// # Errors
///
/// Returns the errors of the storage, [`OciError::Absent`], [`OciError::Mismatch`],
/// [`OciError::Limit`] and [`OciError::Document`].
pub(crate) fn read(
    blobs: &impl Blobs,
    what: &'static str,
    (digest, size): (&str, Option<u64>),
    shape: Shape,
    limits: &Limits,
) -> Result<(Vec<u8>, Value), OciError> {
    let too_large = |size: u64| size > limits.json;
    let limit = || OciError::Limit { what: "size of a JSON document in bytes", limit: limits.json };
    if size.is_some_and(too_large) {
        return Err(limit());
    }
    let (size, content) = open(blobs, what, digest, size)?;
    if too_large(size) {
        return Err(limit());
    }
    let mut bytes = Vec::new();
    Checked::new(content, digest, size).read_to_end(&mut bytes)?;
    let value = crate::json::parse(&bytes, shape)
        .map_err(|error| OciError::Document { what, problem: error.to_string() })?;
    if !value.is_object() {
        return Err(OciError::Document { what, problem: "expected an object".into() });
    }
    Ok((bytes, value))
}

/// Returns a text that is not empty. Go takes an absent, null and empty text for the same.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// Parses a descriptor.
///
/// # Errors
///
/// Returns [`OciError::Document`] if a property is missing, embedded data does not match the
/// digest, or the blob is to be fetched from URLs.
pub(crate) fn descriptor(what: &'static str, value: &Value) -> Result<Descriptor, OciError> {
    let problem = |problem: &str| OciError::Document { what, problem: problem.to_owned() };
    let digest = text(value, "digest").ok_or_else(|| problem("digest is missing"))?;
    if !is_digest(digest) {
        return Err(problem("expected a digest of sha256: and 64 hex digits"));
    }
    check_data(what, value)?;
    if value["urls"].as_array().is_some_and(|urls| !urls.is_empty()) {
        return Err(problem(
            "urls: blobs that are stored outside of the registry are not fetched; rebuild with a \
             base image whose layers are distributable",
        ));
    }
    let size = value["size"].as_u64().ok_or_else(|| problem("size is missing"))?;
    let kind = text(value, "mediaType").ok_or_else(|| problem("mediaType is missing"))?;
    Ok(Descriptor { digest: digest.to_owned(), size, kind: kind.to_owned() })
}

/// Checks that embedded data is the blob itself, so that it is no second source. It is not used.
///
/// # Errors
///
/// Returns [`OciError::Document`] if the data is not Base64, or has another size or digest.
pub(crate) fn check_data(what: &'static str, value: &Value) -> Result<(), OciError> {
    let Some(data) = text(value, "data") else { return Ok(()) };
    let problem = |problem: &str| OciError::Document { what, problem: problem.to_owned() };
    let bytes = decode_base64(data).ok_or_else(|| problem("its data is not Base64"))?;
    let matches = value["digest"] == digest_of(&bytes).as_str()
        && value["size"].as_u64() == Some(bytes.len() as u64);
    if matches { Ok(()) } else { Err(problem("its data does not match digest and size")) }
}

/// Decodes Base64 with padding (RFC 4648, section 4), in its only canonical form.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(u32::from(c - b'A')),
        b'a'..=b'z' => Some(u32::from(c - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(c - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=').as_bytes();
    let padding = text.len() - digits.len();
    if padding > 2 || !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let bits = group.iter().try_fold(0, |bits, c| Some(bits << 6 | digit(*c)?))?;
        let [_, decoded @ ..] = (bits << (6 * (4 - group.len()))).to_be_bytes();
        let (used, unused) = decoded.split_at(group.len() * 3 / 4);
        if unused.iter().any(|b| *b != 0) {
            return None;
        }
        bytes.extend_from_slice(used);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_is_decoded_in_its_canonical_form() {
        // RFC 4648, section 10.
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("+/+/", b"\xfb\xff\xbf"),
        ] {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Zg", "Zg=", "Zh==", "Zg===", "=Zg=", "Zm9\n", "Zm-_", "A===", "===="] {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }
}
