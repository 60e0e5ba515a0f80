//! An owner's operations on the modules of a node.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use api::owner::Module;
use deployment::{DesiredState, Spec};

use crate::client::Client;
use crate::keys::Owner;

/// Signs a spec with the owner's key and sends it. The generation is the present time in
/// milliseconds since 1970.
///
/// # Errors
/// Returns an error if the module file is invalid, if the owner's key cannot be read, or if the
/// node rejects the spec.
pub fn send_spec(
    client: &Client,
    keys: &Path,
    module: &str,
    desired: DesiredState,
    toml: &str,
) -> Result<()> {
    let generation = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let spec = Spec { desired, module: module.to_owned(), generation, toml: toml.to_owned() };
    // The node would reject an invalid module file, too; nothing has to be sent to find that out.
    spec.settings()?;
    client.apply_spec(module, &Owner::load(keys)?.sign(&spec)?)?;
    Ok(())
}

/// Returns one module of the node.
///
/// # Errors
/// Returns an error that lists the node's modules if this is not one of them, and the errors of
/// [`Client::modules`].
pub fn find(client: &Client, name: &str) -> Result<Module> {
    let modules = client.modules()?.modules;
    let names: Vec<String> = modules.iter().map(|module| module.name.clone()).collect();
    match modules.into_iter().find(|module| module.name == name) {
        Some(module) => Ok(module),
        None => bail!("the node has no module {name}; it has: {}", names.join(", ")),
    }
}

/// Returns the module file that is in effect.
///
/// # Errors
/// Returns the errors of [`find`].
pub fn current_file(client: &Client, name: &str) -> Result<String> {
    Ok(find(client, name)?.toml)
}

/// Returns the module file of the version that a rollback returns to.
///
/// # Errors
/// Returns the errors of [`find`], and an error if there is no such version.
pub fn previous_file(client: &Client, name: &str) -> Result<String> {
    let previous = find(client, name)?.previous;
    let previous =
        previous.with_context(|| format!("the node has no earlier healthy version of {name}"))?;
    Ok(previous.toml)
}
