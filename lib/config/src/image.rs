//! Images of modules.

use serde::{Deserialize, Serialize};

use crate::{ConfigProblem, InvalidValue};

/// Image of a module.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged, rename_all = "kebab-case")]
pub enum Image {
    /// On a node: the digest that must be approved, and the place to fetch it from.
    Source(ImageSource),
    /// In the repository: the program that the build makes the image from.
    Build(ImageBuild),
}

/// Digest of an image and the place to fetch it from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageSource {
    /// Digest of a manifest, or of an index that lists a manifest for this node's platform.
    pub digest: String,
    /// Repository that holds the image: `HOST[:PORT]/REPOSITORY`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// Path of an archive on the node's read-only root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
}

/// An image that the build makes and puts into the root partition.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageBuild {
    /// Name of a program of image/recipes/programs, the only file of the image.
    pub program: String,
}

impl ImageSource {
    pub(crate) fn check(&self) -> Result<(), ConfigProblem> {
        crate::check_digest(&self.digest).map_err(|e| e.at("image.digest"))?;
        if self.registry.is_some() && self.archive.is_some() {
            return Err(InvalidValue::new("registry or archive", "both").at("image"));
        }
        match &self.registry {
            Some(registry) => {
                crate::parse_repository(registry).map(drop).map_err(|e| e.at("image.registry"))
            }
            None => Ok(()),
        }
    }
}
