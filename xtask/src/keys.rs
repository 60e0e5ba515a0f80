//! The keys that an image pins: those of configs/node.toml, or the user's own, made when there are
//! none.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use config::{Ledger, Node};
use ledger::{HighWater, ImageStatement, Log, Policy, SigningKey, Status};
use policy::{PublicKey, RecoveryPublic};

use crate::{config as files, layers, progress, recipe};

/// How long the approval of a shipped module holds, in seconds: some ten years.
const SHIPPED_FOR: u64 = 10 * 365 * 86_400;

/// configs/node.toml with the user's keys put in where it names none.
pub fn node() -> Result<Node> {
    let mut node: Node = files::read(&layers::current().find("configs/node.toml"))?;
    if node.owner.certificates.is_empty() {
        node.owner.certificates.push(owner()?.fingerprint());
    }
    if node.ledger.approvers.is_empty() {
        node.ledger.approvers.push(trustctl::keys::public_hex(&approver()?));
    }
    // What a node could not use is refused here.
    node.keys
        .signer
        .as_deref()
        .map(PublicKey::from_hex)
        .transpose()
        .context("keys.signer of configs/node.toml")?;
    node.keys
        .recovery
        .as_deref()
        .map(RecoveryPublic::from_hex)
        .transpose()
        .context("keys.recovery of configs/node.toml")?;
    Ok(node)
}

fn owner() -> Result<trustctl::keys::Owner> {
    let dir = trustctl::keys::folder()?;
    if dir.join("owner.key").exists() {
        return trustctl::keys::Owner::load(&dir);
    }
    let owner = trustctl::keys::new_owner(&dir)?;
    progress::line(&format!(
        "made the owner's key {} (mode 0600): who has it commands the nodes built here; keep a copy",
        dir.join("owner.key").display()
    ));
    Ok(owner)
}

fn approver() -> Result<SigningKey> {
    let path = approver_path()?;
    if path.exists() {
        return trustctl::keys::load_approver(&path);
    }
    let dir = trustctl::keys::folder()?;
    let key = trustctl::keys::new_approver(&dir)?;
    progress::line(&format!(
        "made the approver's key {} (mode 0600): who has it decides what runs on the nodes built here; keep a copy",
        path.display()
    ));
    Ok(key)
}

/// Who signs the manifests of what is built here.
pub fn builder() -> Result<SigningKey> {
    let dir = trustctl::keys::folder()?;
    let path = dir.join(trustctl::keys::BUILDER);
    if path.exists() {
        return trustctl::keys::load(&path, "builder");
    }
    let key = trustctl::keys::new_signing(&dir, "builder")?;
    progress::line(&format!(
        "made the builder's key {} (mode 0600): it signs the manifest of every image built here",
        path.display()
    ));
    Ok(key)
}

/// Who lets boots of what is built here have the root key.
pub fn policy_signer() -> Result<policy::Signer> {
    Ok(trustctl::keys::policy_signer(&builder()?))
}

fn approver_path() -> Result<PathBuf> {
    Ok(trustctl::keys::folder()?.join("approver.key"))
}

/// The public key of the user's own approver, or nothing: the shipped log depends on it.
pub fn own_approver() -> Result<String> {
    let path = approver_path()?;
    if path.exists() {
        Ok(trustctl::keys::public_hex(&trustctl::keys::load_approver(&path)?))
    } else {
        Ok("none".into())
    }
}

/// The approval log that ships in the image: configs/ledger.jsonl if there is one, and approvals of
/// the shipped images by the user's own key where that is enough.
pub fn shipped_log(node: &Node, digests: &[(String, String)]) -> Result<String> {
    let Ledger { name, approvers, threshold, checkpoints, .. } = &node.ledger;
    let path = layers::current().find("configs/ledger.jsonl");
    let mut log = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
    let own = if approver_path()?.exists() { Some(approver()?) } else { None };
    // Nobody can witness a log before it is made: one that needs witnesses ships as it is.
    let alone = *threshold == 1 && checkpoints.is_none();
    let own = own.filter(|key| alone && approvers.contains(&trustctl::keys::public_hex(key)));
    let iat = recipe::release()?.source_date_epoch;
    for (module, digest) in digests {
        if log.contains(digest.as_str()) {
            continue;
        }
        let Some(key) = &own else {
            progress::line(&format!(
                "NOTICE: nobody approved the shipped module {module} ({digest}) in configs/ledger.jsonl, and your key alone cannot: it will not run until it is approved"
            ));
            continue;
        };
        let exp = iat + SHIPPED_FOR;
        let statement = |seq| {
            ImageStatement { digest: digest.clone(), exp, iat, seq, status: Status::Approved }
                .into()
        };
        log = trustctl::statement::append(&log, name, key, statement)?;
    }
    // What the node would refuse is refused here, before anybody flashes it.
    let policy = Policy::try_from(&node.ledger).context("[ledger] of configs/node.toml")?;
    if !(log.is_empty() && policy.witnessing.is_some()) {
        Log::replay(&policy, &log, &HighWater::default()).context("configs/ledger.jsonl")?;
    }
    Ok(log)
}
