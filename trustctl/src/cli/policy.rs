//! What brings a node to its root key: policies for boots, and the way back by the recovery key.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use policy::{Escrow, Policies};
use serde_json::json;
use trustctl::client::Client;
use trustctl::{appraisal, keys};

use crate::cli::attest::Wanted;
use crate::cli::node::DoesNotHold;
use crate::cli::output::said;

#[derive(clap::Subcommand)]
pub(crate) enum PolicyCommand {
    /// Sign, with your builder's key, that boots of an image may have a node's root key
    Sign {
        /// The image's measurements.json
        #[arg(long)]
        expect: PathBuf,
        /// The node.toml that is put on the boot partition, where there is one
        #[arg(long)]
        settings: Option<PathBuf>,
        /// Where the policies go; on a boot partition the file is called policies.json
        #[arg(long, default_value = policy::FILE)]
        out: PathBuf,
    },
    /// Give policies to a node, for this boot or before an update: it says whether it will take
    /// them
    Send { policies: PathBuf },
    /// Whose policies the node takes, and for which PCR 14 it needs one now
    Show,
}

#[derive(clap::Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Keep a node's root key as only the recovery key reads it
    Save { escrow: PathBuf },
    /// Bring a root key to a node that lost it, once the node has shown what it is
    Restore {
        escrow: PathBuf,
        #[command(flatten)]
        wanted: Wanted,
    },
}

pub(crate) fn policy(
    client: &Client,
    command: &PolicyCommand,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    match command {
        PolicyCommand::Sign { expect, settings, out } => {
            let signer = keys::policy_signer(&keys::load(&folder.join(keys::BUILDER), "builder")?);
            let image = appraisal::Expected::image(expect, settings.as_deref())?;
            let policies = Policies::sign(&signer, &image.boards);
            std::fs::write(out, policies.text())
                .with_context(|| format!("cannot write {}", out.display()))?;
            said(as_json, &json!(policies), || {
                let boards: Vec<&str> =
                    policies.policies.iter().map(|policy| policy.board.as_str()).collect();
                let file = out.display();
                format!(
                    "{file}: policies for {}\nNext: trustctl policy send {file}, or onto the card's boot partition",
                    boards.join(", ")
                )
            });
            Ok(())
        }
        PolicyCommand::Send { policies } => {
            let text = std::fs::read(policies)
                .with_context(|| format!("cannot read {}", policies.display()))?;
            let read = Policies::read(&text).with_context(|| policies.display().to_string())?;
            let answer = client.put("/v1/policies", &json!(read))?;
            said(as_json, &answer, || {
                let boots: Vec<String> = read
                    .policies
                    .iter()
                    .map(|policy| format!("{}  {}", policy.pcr14, policy.board))
                    .collect();
                let now = if answer["this_boot"] == true {
                    "This boot is one of them."
                } else {
                    "This boot is none of them."
                };
                format!(
                    "The node will have its root key after boots with PCR 14 =\n{}\n{now}",
                    boots.join("\n")
                )
            });
            Ok(())
        }
        PolicyCommand::Show => {
            let answer = client.get("/v1/policies")?;
            let text = |key: &str| answer[key].as_str().unwrap_or("?").to_owned();
            said(as_json, &answer, || {
                format!("signer  {}\nPCR 14  {}", text("signer"), text("pcr14"))
            });
            Ok(())
        }
    }
}

pub(crate) fn recovery(
    client: &Client,
    command: &RecoveryCommand,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    match command {
        RecoveryCommand::Save { escrow: file } => {
            let answer = client.get("/v1/recovery")?;
            let escrow: Escrow =
                serde_json::from_value(answer.clone()).context("the node's answer is no escrow")?;
            // What cannot be opened is found out now, and not when it is needed; only who has the
            // key here can look.
            let opened = match keys::load_recovery(folder) {
                Ok(key) => Some(escrow.open(&key).map_err(|e| DoesNotHold(e.to_string()))?),
                Err(_) => None,
            };
            std::fs::write(file, answer.to_string() + "\n")
                .with_context(|| format!("cannot write {}", file.display()))?;
            said(as_json, &answer, || match opened {
                Some(_) => format!("{}: kept, and your recovery key opens it", file.display()),
                None => format!(
                    "{}: kept; for the recovery key {}, which is not here",
                    file.display(),
                    escrow.recovery()
                ),
            });
            Ok(())
        }
        RecoveryCommand::Restore { escrow: file, wanted } => {
            let text =
                std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let escrow: Escrow = serde_json::from_slice(&text)
                .with_context(|| format!("{} is no escrow", file.display()))?;
            let root = escrow
                .open(&keys::load_recovery(folder)?)
                .with_context(|| file.display().to_string())?;
            if !wanted.names_an_image() {
                bail!(
                    "--expect is wanted: whoever gets the root key has the keys of all modules, so the node shows first what it is"
                );
            }
            let (_, verdict) = appraisal::ask(client, &wanted.read()?)?;
            verdict.map_err(|error| {
                DoesNotHold(format!(
                    "the root key was not sent, for the node is not what was expected: {error:#}"
                ))
            })?;
            let answer = client.put("/v1/recovery", &json!({ "root": measure::hex(&root) }))?;
            said(as_json, &answer, || {
                "The node has its root key again and starts its modules.\nNext: trustctl log reset, for another TPM counts anew; trustctl status".into()
            });
            Ok(())
        }
    }
}
