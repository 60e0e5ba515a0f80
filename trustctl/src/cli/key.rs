//! `trustctl key`: makes keys and shows the public ones.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use trustctl::keys;

use crate::cli::output::print_result;

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key; an existing key is never overwritten
    New {
        /// Role of the key
        #[arg(value_enum)]
        role: KeyRole,
        /// Name of the log, for example example.org/fleet; only for the role log [default: made
        /// from the key, in the form that sigsum's witnesses require]
        #[arg(long)]
        origin: Option<String>,
    },
    /// Show the public keys, as configs/node.toml pins them
    Show,
}

#[derive(ValueEnum, Clone, Copy)]
pub(crate) enum KeyRole {
    /// Commands nodes
    Owner,
    /// Decides which images run on nodes
    Approver,
    /// Signs the manifests of images, and policies
    Builder,
    /// Signs the checkpoints of a log
    Log,
    /// Opens the escrow of nodes' root keys
    Recovery,
    /// Votes in the registry of a chain
    Chain,
}

const PIN_HINT: &str = "Put the line above into configs/node.toml. \
                        If it names no key, the build pins yours.";

pub(crate) fn run(command: &KeyCommand, folder: &Path, json: bool) -> Result<()> {
    match command {
        KeyCommand::New { role, origin } => new(*role, origin.as_deref(), folder, json),
        KeyCommand::Show => show(folder, json),
    }
}

fn new(role: KeyRole, origin: Option<&str>, folder: &Path, json: bool) -> Result<()> {
    ensure!(
        origin.is_none() || matches!(role, KeyRole::Log),
        "--origin is only for the key of a log"
    );
    let (public, hint) = match role {
        KeyRole::Owner => {
            let fingerprint = keys::new_owner(folder)?.fingerprint();
            let hint = format!("owner.certificates = [\"{fingerprint}\"]\n{PIN_HINT}");
            (fingerprint, hint)
        }
        KeyRole::Approver => {
            let key = keys::public_hex(&keys::new_approver(folder)?);
            let hint = format!("ledger.approvers = [\"{key}\"]\n{PIN_HINT}");
            (key, hint)
        }
        KeyRole::Builder => {
            let key = keys::public_hex(&keys::new_signing(folder, "builder")?);
            let hint = format!(
                "{key}\nUsers verify your images with: trustctl verify-image DIR --builder KEY"
            );
            (key, hint)
        }
        KeyRole::Recovery => {
            let key = keys::new_recovery(folder)?.public()?.to_string();
            let hint = format!(
                "keys.recovery = \"{key}\"\nPut the line above into configs/node.toml or a card's \
                 node.toml, and store the private key away from nodes (docs/crypto.md)."
            );
            (key, hint)
        }
        KeyRole::Chain => {
            let signer = trustctl::chain::Signer::from_hex(&keys::new_chain(folder)?)?;
            let address = signer.address().to_string();
            let hint = format!(
                "{address}\nThis approver's account needs some of the network's currency to vote \
                 (trustctl chain --help)."
            );
            (address, hint)
        }
        KeyRole::Log => {
            let key = keys::new_log(folder, origin)?.to_string();
            let hint = format!(
                "[ledger.checkpoints]\nlog = \"{key}\"\nGive this key to the witnesses, and name \
                 theirs in configs/node.toml (docs/ledger.md)."
            );
            (key, hint)
        }
    };
    print_result(json, &json!({ "public": public, "folder": folder }), || {
        format!("{hint}\nThe key is in {}.", folder.display())
    })
}

fn show(folder: &Path, as_json: bool) -> Result<()> {
    let builder = || keys::load(&folder.join(keys::BUILDER), "builder");
    let public_keys = [
        ("owner", keys::Owner::load(folder).map(|owner| owner.fingerprint())),
        (
            "approver",
            keys::load_approver(&folder.join("approver.key")).map(|key| keys::public_hex(&key)),
        ),
        ("builder", builder().map(|key| keys::public_hex(&key))),
        ("signer", builder().map(|key| keys::policy_signer(&key).public().hex())),
        ("recovery", keys::load_recovery(folder).and_then(|key| Ok(key.public()?.to_string()))),
        (
            "chain",
            trustctl::chain::Signer::load(&folder.join(keys::CHAIN))
                .map(|signer| signer.address().to_string()),
        ),
        ("log", keys::load_log(&folder.join(keys::LOG)).map(|(_, vkey)| vkey.to_string())),
    ];
    if as_json {
        let object: Map<String, Value> =
            public_keys.into_iter().map(|(role, key)| (role.to_owned(), key.ok().into())).collect();
        println!("{}", Value::Object(object));
        return Ok(());
    }
    for (role, key) in public_keys {
        println!("{role:9} {}", key.unwrap_or_else(|error| format!("none ({error})")));
    }
    Ok(())
}
