//! Media types of documents and layers, and what the engine can unpack.

use crate::Compression;

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
/// Media types of a config.
pub(crate) const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Media type of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerType {
    /// Name of the type.
    pub(crate) name: &'static str,
    /// Compression that the name states.
    pub(crate) compression: Compression,
    /// Whether the engine recognises the compression by the data instead of by the name
    /// (containerd, `DiffCompression`).
    pub(crate) recognised: bool,
}

const fn layer(name: &'static str, compression: Compression, recognised: bool) -> LayerType {
    LayerType { name, compression, recognised }
}

/// Types of layers that the engine of the image unpacks: containerd 1.7.24. From containerd 2.0 on,
/// [`DOCKER_ZSTD`] is one of them.
const LAYER_TYPES: [LayerType; 5] = [
    layer("application/vnd.oci.image.layer.v1.tar", Compression::None, false),
    layer("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip, true),
    layer("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd, true),
    layer("application/vnd.docker.image.rootfs.diff.tar", Compression::None, true),
    layer("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip, true),
];
/// Type of a layer that the engine of the image does not unpack yet.
const DOCKER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Beginnings of types of layers that a registry need not store.
const FOREIGN_TYPES: [&str; 2] = [
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
];

/// Reason why a layer of this type is rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerTypeError {
    #[error(
        "media type {DOCKER_ZSTD:?}: the engine cannot unpack Docker layers that are compressed \
         with zstd; rebuild with `oci-mediatypes=true` (BuildKit) or with gzip"
    )]
    DockerZstd,
    #[error(
        "media type {0:?}: layers that are stored outside of the registry are not fetched; rebuild \
         with a base image whose layers are distributable"
    )]
    Foreign(String),
    #[error("media type {0:?}: the layer is encrypted; push the image without encryption")]
    Encrypted(String),
    #[error(
        "media type: expected one of {expected:?}, found {found:?}",
        expected = LAYER_TYPES.map(|known| known.name)
    )]
    Unknown { found: String },
}

impl LayerType {
    /// Returns the type with this name.
    ///
    /// # Errors
    ///
    /// Returns [`LayerTypeError`] if the engine cannot unpack such a layer.
    pub(crate) fn parse(name: &str) -> Result<Self, LayerTypeError> {
        if let Some(known) = LAYER_TYPES.into_iter().find(|known| known.name == name) {
            return Ok(known);
        }
        let found: String = name.chars().take(200).collect();
        Err(if found == DOCKER_ZSTD {
            LayerTypeError::DockerZstd
        } else if FOREIGN_TYPES.iter().any(|start| found.starts_with(start)) {
            LayerTypeError::Foreign(found)
        } else if found.ends_with("+encrypted") {
            LayerTypeError::Encrypted(found)
        } else {
            LayerTypeError::Unknown { found }
        })
    }
}
