//! Containers and images as the engine reports them.

use std::net::IpAddr;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum};

use super::config_digest::{ConfigDigest, config_digest};

/// Container in the engine's list.
#[derive(Debug, Clone)]
pub struct Container {
    /// Full ID.
    pub id: String,
    /// Name without the leading slash.
    pub name: String,
    /// Digest of the image's manifest.
    pub image: String,
    /// Whether its main process runs.
    pub running: bool,
}

/// Image in the engine's list.
#[derive(Debug, Clone)]
pub struct EngineImage {
    /// Digest of the manifest.
    pub digest: String,
    /// All tags, `REPOSITORY:TAG`.
    pub tags: Vec<String>,
}

/// Current state of one container.
#[derive(Debug)]
pub struct Inspection {
    /// Digest of its configuration.
    pub config_digest: ConfigDigest,
    /// Whether its main process runs.
    pub running: bool,
    /// Whether it was created and never started.
    pub never_started: bool,
    /// Result of the engine's health check, if it has one.
    pub health: Option<HealthStatusEnum>,
    /// Whether it has exec sessions, including those of the engine's health check.
    pub has_execs: bool,
    /// Address on one of its networks.
    pub address: Option<IpAddr>,
    /// Exit code of the main process; 0 while it runs.
    pub exit_code: Option<i64>,
}

impl From<ContainerInspectResponse> for Inspection {
    fn from(found: ContainerInspectResponse) -> Self {
        let config_digest = config_digest(&found);
        let state = found.state.unwrap_or_default();
        let networks = found.network_settings.and_then(|n| n.networks).unwrap_or_default();
        let address = networks.values().find_map(|n| n.ip_address.as_deref()?.parse().ok());
        Self {
            config_digest,
            running: state.running.unwrap_or_default(),
            never_started: state.status == Some(ContainerStateStatusEnum::CREATED),
            health: state.health.and_then(|h| h.status),
            has_execs: found.exec_ids.is_some_and(|ids| !ids.is_empty()),
            address,
            exit_code: state.exit_code,
        }
    }
}

/// Returns the only tag that an image may have in the engine. Each digest has its own tag.
pub fn image_tag(digest: &str) -> String {
    format!("basalt.local/image:{}", digest.trim_start_matches("sha256:"))
}
