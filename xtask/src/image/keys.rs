//! The keys that an image pins: those of `configs/node.toml`, or the user's own keys, which are
//! created on first use.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use config::{Ledger, Node};
use ledger::{HighWaterMark, ImageStatement, Log, SigningKey, Status, TrustPolicy};
use policy::{PublicKey, RecoveryPublicKey};

use crate::engine::{host, layers, progress, toml_file};
use crate::image::recipe;

/// Validity of the approval of a shipped module, in seconds: about ten years.
const APPROVAL_VALIDITY_SECONDS: u64 = 10 * 365 * 86_400;

/// Reads `configs/node.toml`; adds the user's owner and approver keys if it lists none.
///
/// # Errors
///
/// Fails if the file is invalid, if a key in it is unusable, or if a key of the user cannot be
/// loaded or created.
pub fn node() -> Result<Node> {
    let mut node: Node = toml_file::read(&layers::current().find("configs/node.toml"))?;
    if node.owner.certificates.is_empty() {
        node.owner.certificates.push(owner()?.fingerprint());
    }
    if node.ledger.approvers.is_empty() {
        node.ledger.approvers.push(trustctl::keys::public_hex(&approver()?));
    }
    // Keys that a node could not use are rejected at build time.
    node.keys
        .signer
        .as_deref()
        .map(PublicKey::from_hex)
        .transpose()
        .context("keys.signer of configs/node.toml")?;
    node.keys
        .recovery
        .as_deref()
        .map(RecoveryPublicKey::from_hex)
        .transpose()
        .context("keys.recovery of configs/node.toml")?;
    Ok(node)
}

/// Loads the owner's key; `trustctl` creates it if it does not exist.
fn owner() -> Result<trustctl::keys::Owner> {
    let dir = trustctl::keys::folder()?;
    if !dir.join("owner.key").exists() {
        let trustctl = host::build_trustctl()?;
        host::shell()?.cmd(trustctl).args(["key", "new", "owner"]).quiet().ignore_stdout().run()?;
        progress::line(&format!(
            "created the owner's key {} (mode 0600): it operates the nodes built here; back it up",
            dir.join("owner.key").display()
        ));
    }
    trustctl::keys::Owner::load(&dir)
}

/// Loads the user's approver key; creates it if it does not exist.
fn approver() -> Result<SigningKey> {
    let path = approver_path()?;
    if path.exists() {
        return trustctl::keys::load_approver(&path);
    }
    let dir = trustctl::keys::folder()?;
    let key = trustctl::keys::new_approver(&dir)?;
    progress::line(&format!(
        "created the approver's key {} (mode 0600): its holder approves the modules that run on \
         the nodes built here; back it up",
        path.display()
    ));
    Ok(key)
}

/// Loads the builder's key, which signs the manifests of images; creates it if it does not exist.
///
/// # Errors
///
/// Fails if the key cannot be loaded or created.
pub fn builder() -> Result<SigningKey> {
    let dir = trustctl::keys::folder()?;
    let path = dir.join(trustctl::keys::BUILDER);
    if path.exists() {
        return trustctl::keys::load(&path, "builder");
    }
    let key = trustctl::keys::new_signing(&dir, "builder")?;
    progress::line(&format!(
        "created the builder's key {} (mode 0600): it signs the manifest of every image built here",
        path.display()
    ));
    Ok(key)
}

/// Returns the signer of the TPM policies that release the root key to boots of images built here.
/// Its key is derived from the builder's.
///
/// # Errors
///
/// Fails if the builder's key cannot be loaded or created.
pub fn policy_signer() -> Result<policy::Signer> {
    Ok(trustctl::keys::policy_signer(&builder()?))
}

/// Returns the path of the user's approver key, which may not exist.
fn approver_path() -> Result<PathBuf> {
    Ok(trustctl::keys::folder()?.join("approver.key"))
}

/// Returns the public key of the user's approver in hex, or `none` if there is none. The shipped
/// log depends on it.
///
/// # Errors
///
/// Fails if the key cannot be loaded.
pub fn own_approver() -> Result<String> {
    let path = approver_path()?;
    if path.exists() {
        Ok(trustctl::keys::public_hex(&trustctl::keys::load_approver(&path)?))
    } else {
        Ok("none".into())
    }
}

/// Returns the approval log that the image contains: `configs/ledger.jsonl` if it exists, and
/// approvals of the shipped modules by the user's key if that key alone meets the threshold.
///
/// `digests` lists the name and the image digest of each shipped module.
///
/// # Errors
///
/// Fails if a node would reject the log or its trust policy, or if the log or a key cannot be read.
pub fn shipped_log(node: &Node, digests: &[(String, String)]) -> Result<String> {
    let Ledger { name, approvers, threshold, checkpoints, .. } = &node.ledger;
    let path = layers::current().find("configs/ledger.jsonl");
    let mut log = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
    let own = if approver_path()?.exists() { Some(approver()?) } else { None };
    // A new log has no witness signatures yet, so a log that requires checkpoints is not extended.
    let key_suffices = *threshold == 1 && checkpoints.is_none();
    let own =
        own.filter(|key| key_suffices && approvers.contains(&trustctl::keys::public_hex(key)));
    let iat = recipe::release()?.source_date_epoch;
    for (module, digest) in digests {
        if log.contains(digest.as_str()) {
            continue;
        }
        let Some(key) = &own else {
            progress::line(&format!(
                "NOTICE: the shipped module {module} ({digest}) has no approval in \
                 configs/ledger.jsonl, and your key alone cannot approve it: it will not run until \
                 it is approved"
            ));
            continue;
        };
        let exp = iat + APPROVAL_VALIDITY_SECONDS;
        let statement = |seq| {
            ImageStatement { digest: digest.clone(), exp, iat, seq, status: Status::Approved }
                .into()
        };
        log = trustctl::statement::append(&log, name, key, statement)?;
    }
    // A log that the node would reject is rejected here, before it is flashed.
    let policy = TrustPolicy::try_from(&node.ledger).context("[ledger] of configs/node.toml")?;
    if !(log.is_empty() && policy.witness_policy.is_some()) {
        Log::replay(&policy, &log, &HighWaterMark::default()).context("configs/ledger.jsonl")?;
    }
    Ok(log)
}
