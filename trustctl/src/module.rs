//! An owner's specs for modules, sent to a node.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use deployment::{DesiredState, Spec};
use serde_json::{Value, json};

use crate::client::Client;
use crate::keys::Owner;

/// Sends the blobs of an image: an OCI layout as one tar.
pub fn push(client: &Client, archive: &Path) -> Result<Value> {
    client.upload("/v1/images", archive)
}

/// Signs a spec with the owner's key and sends it.
pub fn send(
    client: &Client,
    keys: &Path,
    module: &str,
    desired: DesiredState,
    toml: &str,
) -> Result<()> {
    let generation = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let spec = Spec { desired, module: module.to_owned(), generation, toml: toml.to_owned() };
    // What the node would refuse is said here, before anything is sent.
    spec.settings().map_err(|problem| anyhow::anyhow!(problem))?;
    let signed = Owner::load(keys)?.sign(&spec)?;
    client.put(&format!("/v1/modules/{module}"), &json!(signed))?;
    Ok(())
}

/// What a node says of one module.
pub fn view(client: &Client, name: &str) -> Result<Value> {
    let answer = client.get("/v1/modules")?;
    let found = answer["modules"].as_array().into_iter().flatten().find(|m| m["name"] == name);
    let names = || {
        answer["modules"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["name"].as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match found {
        Some(module) => Ok(module.clone()),
        None => bail!("the node has no module {name}; it has: {}", names()),
    }
}

/// The module's file as it is in force.
pub fn current(client: &Client, name: &str) -> Result<String> {
    Ok(view(client, name)?["toml"]
        .as_str()
        .context("the node does not show the module's file")?
        .to_owned())
}

/// The module's file of the version before.
pub fn previous(client: &Client, name: &str) -> Result<String> {
    let view = view(client, name)?;
    Ok(view["previous"]["toml"]
        .as_str()
        .with_context(|| format!("the node keeps no earlier version of {name} that was healthy"))?
        .to_owned())
}
