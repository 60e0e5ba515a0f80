//! `trustctl policy` and `trustctl recovery`: which boots can unseal a node's root key, and the way
//! back if no boot can.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use policy::{Escrow, Policies};
use trustctl::client::Client;
use trustctl::evidence::EvidenceError;
use trustctl::{appraisal, image, keys};

use crate::cli::attest::ReferenceArgs;
use crate::cli::output::{NegativeResult, print_result};

#[derive(clap::Subcommand)]
pub(crate) enum PolicyCommand {
    /// Sign policies with your builder's key, so that boots of an image can unseal a node's root
    /// key
    Sign {
        /// measurements.json of the image
        #[arg(long, value_name = "FILE")]
        expect: PathBuf,
        /// node.toml of the node's boot partition, if it has one
        #[arg(long, value_name = "FILE")]
        settings: Option<PathBuf>,
        /// Output file; on a boot partition its name is policies.json
        #[arg(long, value_name = "FILE", default_value = policy::FILE_NAME)]
        out: PathBuf,
    },
    /// Send policies to a node, for this boot or before an update; the node reports whether it
    /// accepts them
    Send {
        /// File with the policies
        policies: PathBuf,
    },
    /// Show whose policies a node accepts, and its present PCR 14, which needs one
    Show,
}

#[derive(clap::Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Save a node's root key in escrow, encrypted for the recovery key
    Save {
        /// Output file
        escrow: PathBuf,
    },
    /// Attest a node, and if it is as expected, restore its root key from escrow
    Restore {
        /// File that recovery save wrote
        escrow: PathBuf,
        #[command(flatten)]
        reference: ReferenceArgs,
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
            sign(expect, settings.as_deref(), out, folder, as_json)
        }
        PolicyCommand::Send { policies } => send(client, policies, as_json),
        PolicyCommand::Show => {
            let answer = client.required_policy()?;
            print_result(as_json, &answer, || {
                format!("signer  {}\nPCR 14  {}", answer.signer, answer.pcr14)
            })
        }
    }
}

fn sign(
    expect: &Path,
    settings: Option<&Path>,
    out: &Path,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    let signer = keys::policy_signer(&keys::load(&folder.join(keys::BUILDER), "builder")?);
    let policies = Policies::sign(&signer, &image::read_measurements(expect, settings)?.boards);
    std::fs::write(out, policies.text())
        .with_context(|| format!("cannot write {}", out.display()))?;
    print_result(as_json, &policies, || {
        let boards: Vec<&str> =
            policies.policies.iter().map(|policy| policy.board.as_str()).collect();
        let file = out.display();
        format!(
            "{file}: policies for {}\n\
             Next: trustctl policy send {file}, or copy it onto the card's boot partition",
            boards.join(", ")
        )
    })
}

fn send(client: &Client, file: &Path, as_json: bool) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let policies = Policies::parse(&text).with_context(|| file.display().to_string())?;
    let answer = client.send_policies(&policies)?;
    print_result(as_json, &answer, || {
        let boots: Vec<String> = policies
            .policies
            .iter()
            .map(|policy| format!("{}  {}", policy.pcr14, policy.board))
            .collect();
        let this_boot = if answer.this_boot {
            "This boot is one of them."
        } else {
            "This boot is not one of them."
        };
        format!(
            "The node can unseal its root key after boots with PCR 14 =\n{}\n{this_boot}",
            boots.join("\n")
        )
    })
}

pub(crate) fn recovery(
    client: &Client,
    command: &RecoveryCommand,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    match command {
        RecoveryCommand::Save { escrow } => save(client, escrow, folder, as_json),
        RecoveryCommand::Restore { escrow, reference } => {
            restore(client, escrow, reference, folder, as_json)
        }
    }
}

fn save(client: &Client, file: &Path, folder: &Path, as_json: bool) -> Result<()> {
    let escrow = client.escrow()?;
    // With the recovery key at hand the escrow is opened now, so that a damaged one is found before
    // it is needed.
    let opened = match keys::load_recovery(folder) {
        Ok(key) => Some(escrow.open(&key).map_err(NegativeResult::from_error)?),
        Err(_) => None,
    };
    std::fs::write(file, serde_json::to_string(&escrow)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    print_result(as_json, &escrow, || match opened {
        Some(_) => format!("{}: saved, and your recovery key opens it", file.display()),
        None => format!(
            "{}: saved for the recovery key {}, which is not in {}, so it was not opened",
            file.display(),
            escrow.recovery(),
            folder.display()
        ),
    })
}

fn restore(
    client: &Client,
    file: &Path,
    reference: &ReferenceArgs,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let escrow: Escrow = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not an escrow", file.display()))?;
    let root =
        escrow.open(&keys::load_recovery(folder)?).with_context(|| file.display().to_string())?;
    if !reference.names_an_image() {
        bail!(
            "--expect FILE is required: the root key gives all keys of the modules, \
             so the node must be attested first"
        );
    }
    let result = match appraisal::attest(client, &reference.read()?) {
        Ok((_, result)) => result,
        Err(error) if error.is::<EvidenceError>() => Err(error),
        Err(error) => return Err(error.context("the root key was not sent")),
    };
    result.map_err(|error| {
        NegativeResult(format!(
            "the root key was not sent, because the node is not as expected: {error:#}"
        ))
    })?;
    let answer = client.restore_root_key(&root)?;
    print_result(as_json, &answer, || {
        "The node has its root key again and starts its modules.\n\
         Next: trustctl log reset, because another TPM has another counter; trustctl status"
            .into()
    })
}
