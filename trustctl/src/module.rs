//! An owner's operations on the modules of a node.
//!
//! Invariant: every spec is for one node, which is known by the certificate that it presents.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use api::owner::{Module, SignedSpec};
use deployment::{DesiredState, Spec};

use crate::client::Client;
use crate::keys::Owner;

/// An owner's action on a module that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Runs the module file that is in effect.
    Start,
    /// Stops the module.
    Stop,
    /// Returns to the last version that was healthy before.
    Rollback,
    /// Removes the module.
    Remove,
    /// Returns to the module file that the node's image ships.
    Restore,
}

/// Signs a spec for one node. The generation is the present time in milliseconds since 1970.
/// Without a module file the spec is about the one that the node's image ships.
///
/// # Errors
/// Returns an error if `node` is not a node's identity, if the module's name or its file is
/// invalid, or if the owner's key cannot be read.
pub fn sign_spec(
    keys: &Path,
    node: &str,
    module: &str,
    desired: DesiredState,
    toml: Option<&str>,
) -> Result<SignedSpec> {
    let generation = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let spec = Spec {
        desired,
        generation,
        module: module.to_owned(),
        node: node.to_owned(),
        toml: toml.map(str::to_owned),
    };
    // The node would reject an invalid spec, too; nothing has to be sent to find that out.
    Spec::read(&spec.text())?.settings()?;
    Owner::load(keys)?.sign(&spec)
}

/// Signs a spec for the client's node and sends it.
///
/// # Errors
/// Returns the errors of [`sign_spec`] and [`Client::identity`], and an error if the node rejects
/// the spec.
pub fn send_spec(
    client: &Client,
    keys: &Path,
    module: &str,
    desired: DesiredState,
    toml: Option<&str>,
) -> Result<()> {
    client.apply_spec(module, &sign_spec(keys, &client.identity()?, module, desired, toml)?)?;
    Ok(())
}

/// Carries out a verb on a module.
///
/// # Errors
/// Returns the errors of [`find`] and [`send_spec`], and an error if there is no version to return
/// to.
pub fn carry_out(client: &Client, keys: &Path, name: &str, verb: Verb) -> Result<()> {
    let desired = match verb {
        Verb::Start | Verb::Rollback | Verb::Restore => DesiredState::Run,
        Verb::Stop => DesiredState::Stop,
        Verb::Remove => DesiredState::Remove,
    };
    let (shipped, toml) = match verb {
        Verb::Restore => (true, String::new()),
        Verb::Rollback => {
            let previous = find(client, name)?.previous;
            let previous = previous
                .with_context(|| format!("the node has no earlier healthy version of {name}"))?;
            (previous.shipped, previous.toml)
        }
        Verb::Start | Verb::Stop | Verb::Remove => {
            let module = find(client, name)?;
            (module.shipped, module.toml)
        }
    };
    // A spec without a file follows the file that ships over updates of the node's image.
    let toml = (!shipped).then_some(toml.as_str());
    send_spec(client, keys, name, desired, toml)
}

/// Sends the spec that a list of signed specs has for the client's node, and returns the module's
/// name. Each line is one signed spec in JSON.
///
/// # Errors
/// Returns an error if a line is not a signed spec, if there is not exactly one for this node, or
/// if the node rejects it.
pub fn send_signed(client: &Client, lines: &str) -> Result<String> {
    let node = client.identity()?;
    let mut found = None;
    for (index, line) in lines.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let context = || format!("line {} is not a signed spec", index + 1);
        let signed: SignedSpec = serde_json::from_str(line).with_context(context)?;
        let spec = Spec::read(&signed.spec).with_context(context)?;
        if spec.node == node && found.replace((spec.module, signed)).is_some() {
            bail!("the file has more than one spec for the node {node}; leave one of them");
        }
    }
    let (module, signed) = found.with_context(|| {
        format!("the file has no spec for the node {node}; sign one: trustctl module sign --for")
    })?;
    client.apply_spec(&module, &signed)?;
    Ok(module)
}

/// Returns one module of the node.
///
/// # Errors
/// Returns an error that lists the node's modules if this is not one of them, and the errors of
/// [`Client::modules`].
pub fn find(client: &Client, name: &str) -> Result<Module> {
    let answer = client.modules()?;
    if let Some(rejected) = answer.rejected.iter().find(|rejected| rejected.module == name)
        && !answer.modules.iter().any(|module| module.name == name)
    {
        bail!("the node rejects the spec that it has for {name}: {}", rejected.reason);
    }
    let names: Vec<String> = answer.modules.iter().map(|module| module.name.clone()).collect();
    match answer.modules.into_iter().find(|module| module.name == name) {
        Some(module) => Ok(module),
        None => bail!("the node has no module {name}; it has: {}", names.join(", ")),
    }
}
