//! An image from layers and documents that a test writes.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::images::{archive_of, program, sha};
use crate::tools::tar_bytes::TarBytes;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// A packed layer.
#[derive(Debug, Clone)]
pub(crate) struct PackedLayer {
    pub(crate) media_type: String,
    pub(crate) packed: Vec<u8>,
    pub(crate) diff_id: String,
}

impl PackedLayer {
    /// Packs a layer with gzip.
    pub(crate) fn gzip(media_type: &str, layer: &[u8]) -> Self {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(layer).unwrap();
        Self {
            media_type: media_type.to_owned(),
            packed: gz.finish().unwrap(),
            diff_id: sha(layer),
        }
    }

    /// Takes a layer as it is.
    pub(crate) fn plain(layer: &[u8]) -> Self {
        Self { media_type: OCI_LAYER.to_owned(), packed: layer.to_vec(), diff_id: sha(layer) }
    }
}

/// An image as documents that can be altered before they are serialized.
#[derive(Debug, Clone)]
pub(crate) struct ImageParts {
    pub(crate) layers: Vec<PackedLayer>,
    pub(crate) config: Value,
    pub(crate) manifest: Value,
}

/// A descriptor of the OCI image specification.
pub(crate) fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha(blob), "size": blob.len() })
}

impl ImageParts {
    /// Creates an image in the OCI's form.
    pub(crate) fn oci(layers: Vec<PackedLayer>, entrypoint: &str) -> Self {
        Self::new(layers, entrypoint, OCI_MANIFEST, OCI_CONFIG)
    }

    /// Creates an image in Docker's form (Image Manifest Version 2, Schema 2).
    pub(crate) fn docker(layers: Vec<PackedLayer>, entrypoint: &str) -> Self {
        Self::new(layers, entrypoint, DOCKER_MANIFEST, DOCKER_CONFIG)
    }

    fn new(
        layers: Vec<PackedLayer>,
        entrypoint: &str,
        manifest_type: &str,
        config_type: &str,
    ) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        Self {
            config: json!({
                "architecture": "amd64",
                "os": "linux",
                "config": { "Entrypoint": [entrypoint], "User": "65532:65532" },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
            manifest: json!({
                "schemaVersion": 2,
                "mediaType": manifest_type,
                "config": { "mediaType": config_type },
            }),
            layers,
        }
    }

    /// Serializes the documents.
    pub(crate) fn build(&self) -> Blobs {
        self.build_with(&self.config.to_string(), |_, _| ())
    }

    /// Serializes the manifest for a config that is given as text. `alter` receives the manifest
    /// and the config's bytes.
    pub(crate) fn build_with(&self, config: &str, alter: impl FnOnce(&mut Value, &[u8])) -> Blobs {
        let config = config.as_bytes().to_vec();
        let mut manifest = self.manifest.clone();
        let kind = manifest["config"]["mediaType"].as_str().unwrap().to_owned();
        manifest["config"] = descriptor(&kind, &config);
        manifest["layers"] =
            self.layers.iter().map(|l| descriptor(&l.media_type, &l.packed)).collect();
        alter(&mut manifest, &config);
        let media_type = manifest["mediaType"].as_str().unwrap_or(OCI_MANIFEST).to_owned();
        let manifest = manifest.to_string().into_bytes();
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|l| l.packed.clone()).collect();
        blobs.extend([config, manifest.clone()]);
        Blobs { descriptor: descriptor(&media_type, &manifest), manifest, blobs }
    }
}

/// The blobs of an image.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    /// Layers, config and manifest.
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    /// Descriptor of the manifest.
    pub(crate) descriptor: Value,
}

impl Blobs {
    /// Returns the digest of the manifest.
    pub(crate) fn digest(&self) -> String {
        sha(&self.manifest)
    }

    /// Adds an index with these entries; returns its digest.
    pub(crate) fn add_index(&mut self, entries: &[Value]) -> String {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries })
            .to_string()
            .into_bytes();
        self.blobs.push(index.clone());
        sha(&index)
    }

    /// Returns the blobs as an archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        archive_of(&self.blobs)
    }

    /// Returns the files of an OCI layout: names and contents.
    pub(crate) fn layout(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": [self.descriptor] }).to_string();
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.into_bytes()),
        ];
        files.extend(
            self.blobs.iter().map(|b| (sha(b).replace("sha256:", "blobs/sha256/"), b.clone())),
        );
        files
    }
}

/// Returns a layer with the test program and its word below a folder, which ends with `/` or is
/// empty.
pub(crate) fn program_layer(folder: &str, word: &str) -> TarBytes {
    let mut tar = TarBytes::default();
    tar.file(&format!("{folder}stay"), 0o755, program());
    tar.file(&format!("{folder}word"), 0o644, word.as_bytes());
    tar
}

/// Returns an OCI layout of several images as an archive. `entries` are those of its index.
pub(crate) fn layout_archive<'a>(
    images: impl Iterator<Item = &'a Blobs>,
    entries: &[Value],
) -> Vec<u8> {
    let mut tar = TarBytes::default();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    tar.file("index.json", 0o644, index.to_string().as_bytes());
    for blob in images.flat_map(|image| &image.blobs) {
        tar.file(&sha(blob).replace("sha256:", "blobs/sha256/"), 0o644, blob);
    }
    tar.finish(10240)
}
