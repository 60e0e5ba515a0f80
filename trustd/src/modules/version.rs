//! Versions of a module and their history.

use config::{Image, ImageSource, Module};
use deployment::{DesiredState, SignedSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::SpecRejection;

/// Version of a module: a spec whose signature was verified, or a module file of the image.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// Generation of the spec; 0 for a module file of the image that no spec mentions.
    pub(super) generation: u64,
    /// Desired state.
    pub(super) desired: DesiredState,
    /// Text of the module file, as an owner may sign it.
    pub(super) toml: String,
    /// Parsed module file.
    pub(super) settings: Module,
    /// Image that the module file names.
    pub(super) source: ImageSource,
    /// Whether the module file is the one that the node's image ships.
    pub(super) shipped: bool,
    /// Signed spec; `None` for a module file of the image that no spec mentions.
    pub(super) signed: Option<SignedSpec>,
}

impl Version {
    /// Creates a version that runs and that no owner signed.
    pub(super) fn new(toml: &str, settings: Module) -> Result<Self, SpecRejection> {
        let Image::Source(source) = settings.image.clone() else {
            return Err(SpecRejection::Build);
        };
        let (toml, desired) = (toml.to_owned(), DesiredState::Run);
        Ok(Self { generation: 0, desired, toml, settings, source, shipped: false, signed: None })
    }

    /// Returns the fingerprint of the settings, which is in events and quotes. Settings with
    /// another effect have another fingerprint. The place that the image is fetched from does not
    /// count, because the digest determines the image's content.
    pub(super) fn fingerprint(&self) -> String {
        let mut settings = self.settings.clone();
        settings.image =
            Image::Source(ImageSource { registry: None, archive: None, ..self.source.clone() });
        let text = serde_json::to_string(&settings).unwrap_or_default();
        format!("sha256:{}", measure::hex(&Sha256::digest(text.as_bytes())))
    }
}

/// Spec that was tried and rolled back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailedRollout {
    /// Generation of the spec.
    pub(super) generation: u64,
    /// Reason of the rollback.
    pub(super) reason: String,
}

/// Persistent history of a module.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// Generation of the newest spec of the owner; 0 if there is none.
    pub(super) generation: u64,
    /// Newest version.
    pub(super) desired: Option<Version>,
    /// Last version that was healthy.
    pub(super) last_good: Option<Version>,
    /// Version that was healthy before the last one.
    pub(super) previous_good: Option<Version>,
    /// Last version that was rolled back.
    pub(super) failed: Option<FailedRollout>,
    /// Module file of the node's image, if it ships this module.
    pub(super) shipped: Option<Version>,
}

impl History {
    /// Creates the history of a module that ships and for which there is no spec. Its module file
    /// counts as healthy.
    pub(super) fn of_shipped(shipped: &Version) -> Self {
        let version = || Some(shipped.clone());
        Self { desired: version(), last_good: version(), shipped: version(), ..Self::default() }
    }

    /// Returns the reason why the newest version was rolled back, if it was.
    pub(super) fn rollback_reason(&self) -> Option<&str> {
        let failed = self.failed.as_ref()?;
        (failed.generation == self.desired.as_ref()?.generation).then_some(&failed.reason)
    }

    /// Returns all versions that may run again.
    pub(super) fn versions(&self) -> impl Iterator<Item = &Version> {
        [&self.desired, &self.last_good, &self.previous_good]
            .into_iter()
            .flatten()
            .filter(|version| version.desired != DesiredState::Remove)
    }
}
