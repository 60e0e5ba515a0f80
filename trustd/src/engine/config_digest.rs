//! Digest of a container's configuration, by which later changes are detected.

use std::collections::BTreeMap;

use bollard::models::ContainerInspectResponse;
use sha2::{Digest as _, Sha256};

/// SHA-256, as hex, of each part of a container's configuration. The digest stays the same as long
/// as the container is not altered. The keys are names of parts for messages.
pub type ConfigDigest = BTreeMap<String, String>;

/// Digests the configuration that the engine reports for a container.
pub(super) fn config_digest(found: &ContainerInspectResponse) -> ConfigDigest {
    let mut host = found.host_config.clone().unwrap_or_default();
    // With cgroup v2 the engine leaves this setting out before the start and reports "no" after it.
    host.oom_kill_disable.get_or_insert(false);
    let networks = network_names(found);
    let parts = serde_json::json!({
        "image": found.image,
        "name": found.name,
        "program": [&found.path],
        "arguments": found.args,
        "host config": host,
        "container config": found.config,
        "networks": networks,
    });
    // A JSON value has its keys in a fixed order, a map of the engine client does not.
    let hash = |value: &serde_json::Value| measure::hex(&Sha256::digest(value.to_string()));
    parts
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), hash(value)))
        .collect()
}

/// Returns the sorted names of the networks that a container is attached to.
pub(super) fn network_names(found: &ContainerInspectResponse) -> Vec<String> {
    let settings = found.network_settings.iter();
    let networks = settings.flat_map(|settings| settings.networks.iter().flatten());
    let mut names: Vec<String> = networks.map(|(name, _)| name.clone()).collect();
    names.sort();
    names
}
