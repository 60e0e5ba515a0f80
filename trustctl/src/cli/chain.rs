//! `trustctl chain`: the registry contract of an Ethereum-like chain, from the approvers' side, and
//! the settings of nodes that follow the chain.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Subcommand;
use ledger::ethereum::types::Hex;
use ledger::ethereum::{ApprovalLevel, Hash};
use serde_json::json;
use trustctl::chain::{
    BeaconNode, ExecutionNode, FinalityProgress, Receipt, Registry, Signer, code_hash,
    parse_address, parse_digest, pin, wait_until_final,
};
use trustctl::client::Client;

use crate::cli::output::print_result;
use crate::cli::registry;

const SECONDS_PER_DAY: u64 = 86_400;

#[derive(Subcommand)]
pub(crate) enum ChainCommand {
    /// Deploy a registry
    Deploy {
        #[command(flatten)]
        transaction: TransactionArgs,
        #[command(flatten)]
        set: ApproverSet,
        /// Number of approvers that an approval needs
        #[arg(long, value_name = "N", default_value_t = 1)]
        quorum: u16,
    },
    /// Vote for approving an image; the approval takes effect when a quorum has voted for the same
    Approve {
        #[command(flatten)]
        vote: Vote,
        /// Approve with proof: you reproduced the image, or verified its provenance
        #[arg(long)]
        proof: bool,
        /// Days until the approval expires, at the end of that day (UTC); approvers who vote on the
        /// same day vote for the same
        #[arg(long, value_name = "N", default_value_t = 365)]
        days: u64,
        /// Time at which the approval expires, in seconds since 1970; the first approver's command
        /// prints it for the others
        #[arg(long, value_name = "SECONDS", conflicts_with = "days")]
        until: Option<u64>,
    },
    /// Vote for revoking an image, which is final
    Revoke {
        #[command(flatten)]
        vote: Vote,
    },
    /// Vote for another set of approvers
    Approvers {
        #[command(flatten)]
        transaction: TransactionArgs,
        #[command(flatten)]
        contract: ContractArgs,
        #[command(flatten)]
        set: ApproverSet,
        /// Number of approvers that an approval needs
        #[arg(long, value_name = "N")]
        quorum: u16,
    },
    /// Withdraw your open vote: it no longer counts towards a change. A vote is closed by itself after
    /// 30 days, and a new vote about the same image replaces it
    Withdraw {
        #[command(flatten)]
        transaction: TransactionArgs,
        #[command(flatten)]
        contract: ContractArgs,
        /// Digest of the image's manifest that the vote is about: sha256:…
        #[arg(
            value_parser = parse_digest,
            required_unless_present = "approvers",
            conflicts_with = "approvers"
        )]
        digest: Option<Hash>,
        /// Withdraw your vote for another set of approvers
        #[arg(long)]
        approvers: bool,
    },
    /// List the open votes with their age: changes that take effect as soon as more approvers vote
    /// for the same
    Votes {
        #[command(flatten)]
        node: ExecutionArgs,
        #[command(flatten)]
        contract: ContractArgs,
        /// Digests of images, sha256:…; without any, all that the node's events of the last 30 days
        /// name
        #[arg(value_parser = parse_digest)]
        digest: Vec<Hash>,
    },
    /// Show the registry's approvers, and the records of images at the newest and at the finalized
    /// block
    Show {
        #[command(flatten)]
        node: ExecutionArgs,
        #[command(flatten)]
        contract: ContractArgs,
        /// Digests of images: sha256:…
        #[arg(value_parser = parse_digest)]
        digest: Vec<Hash>,
    },
    /// Print the section [ledger.chain] for configs/node.toml: the network, its forks, the
    /// registry, and the finalized block as checkpoint
    Pin {
        #[command(flatten)]
        node: ExecutionArgs,
        #[command(flatten)]
        contract: ContractArgs,
        /// HTTP API of a beacon node
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5052")]
        beacon: String,
        /// Relay that the nodes request bundles from; once for each
        #[arg(long, value_name = "URL")]
        relay: Vec<String>,
    },
    /// Send a bundle that trustctl relay --out wrote to the node
    Push {
        /// File with the bundle
        bundle: PathBuf,
    },
}

#[derive(clap::Args)]
pub(crate) struct ExecutionArgs {
    /// JSON-RPC of an execution node
    #[arg(
        long,
        value_name = "URL",
        env = "BASALT_EXECUTION",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8545"
    )]
    execution: String,
}

#[derive(clap::Args)]
pub(crate) struct ContractArgs {
    /// Address of the registry contract
    #[arg(long, value_name = "ADDRESS", env = "BASALT_CONTRACT", value_parser = parse_address)]
    contract: Hex<20>,
}

#[derive(clap::Args)]
pub(crate) struct ApproverSet {
    /// Address of an approver's account; once for each
    #[arg(long, value_name = "ADDRESS", required = true, value_parser = parse_address)]
    approver: Vec<Hex<20>>,
    /// Number of approvers that a revocation needs
    #[arg(long, value_name = "N", default_value_t = 1)]
    revocation_quorum: u16,
}

/// Account that sends a transaction, and how long to wait for it.
#[derive(clap::Args)]
pub(crate) struct TransactionArgs {
    #[command(flatten)]
    node: ExecutionArgs,
    /// File with the account's key, 64 hex digits [default: chain.key in the folder of keys]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// JSON-RPC signer that serves eth_sendTransaction, instead of a key
    #[arg(long, value_name = "URL", requires = "from", conflicts_with = "key")]
    signer: Option<String>,
    /// Address of the account at the signer
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address, requires = "signer")]
    from: Option<Hex<20>>,
    /// Return when the transaction is in a block, without waiting until it is final
    #[arg(long)]
    no_wait: bool,
    /// Longest time to wait until the transaction is final
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

#[derive(clap::Args)]
pub(crate) struct Vote {
    #[command(flatten)]
    transaction: TransactionArgs,
    #[command(flatten)]
    contract: ContractArgs,
    /// Digest of the image's manifest: sha256:…
    #[arg(value_parser = parse_digest)]
    digest: Hash,
}

pub(crate) fn run(
    command: &ChainCommand,
    client: &Client,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    match command {
        ChainCommand::Deploy { transaction, set, quorum } => {
            deploy(transaction, set, *quorum, folder, as_json)
        }
        ChainCommand::Approve { vote, proof, days, until } => {
            let not_after = until.unwrap_or_else(|| end_of_day(*days));
            let level = if *proof { ApprovalLevel::Proof } else { ApprovalLevel::Clear };
            approve(vote, level, not_after, folder, as_json)
        }
        ChainCommand::Revoke { vote } => {
            let node = vote.transaction.node();
            let registry = Registry { node: &node, address: vote.contract.contract };
            let receipt = registry.revoke(&vote.transaction.signer(folder)?, &vote.digest)?;
            vote.transaction.finish(&node, receipt, &vote_effect("revoked"), as_json)
        }
        ChainCommand::Approvers { transaction, contract, set, quorum } => {
            let node = transaction.node();
            let registry = Registry { node: &node, address: contract.contract };
            let receipt = registry.set_approvers(
                &transaction.signer(folder)?,
                &set.approver,
                *quorum,
                set.revocation_quorum,
            )?;
            transaction.finish(&node, receipt, &vote_effect("the approvers were replaced"), as_json)
        }
        ChainCommand::Withdraw { transaction, contract, digest, approvers: _ } => {
            let node = transaction.node();
            let registry = Registry { node: &node, address: contract.contract };
            let receipt = registry.withdraw(&transaction.signer(folder)?, digest.as_ref())?;
            transaction.finish(&node, receipt, &WITHDRAWAL, as_json)
        }
        ChainCommand::Votes { node, contract, digest } => {
            let node = ExecutionNode::new(&node.execution);
            registry::votes(&Registry { node: &node, address: contract.contract }, digest, as_json)
        }
        ChainCommand::Show { node, contract, digest } => {
            let node = ExecutionNode::new(&node.execution);
            registry::show(&Registry { node: &node, address: contract.contract }, digest, as_json)
        }
        ChainCommand::Pin { node, contract, beacon, relay } => {
            let node = ExecutionNode::new(&node.execution);
            print!("{}", pin(&BeaconNode::new(beacon), &node, contract.contract, relay)?);
            Ok(())
        }
        ChainCommand::Push { bundle } => {
            let answer = client.push_bundle(bundle)?;
            print_result(as_json, &answer, || match answer.updated {
                true => "the node accepted the bundle".into(),
                false => "the node accepted the bundle and knew all of it already".into(),
            })
        }
    }
}

/// Description of a transaction's effect.
struct Effect<'a> {
    /// Effect if the registry changed.
    changed: &'a str,
    /// Effect if it did not.
    unchanged: &'a str,
}

/// Effect of a withdrawal, which never changes the registry.
const WITHDRAWAL: Effect = Effect { changed: "", unchanged: "the vote is withdrawn" };

/// Returns the effect of a vote. `changed` describes it for a vote that completes the quorum.
fn vote_effect(changed: &str) -> Effect<'_> {
    Effect { changed, unchanged: "the vote is counted; more approvers must vote for the same" }
}

impl TransactionArgs {
    fn node(&self) -> ExecutionNode {
        ExecutionNode::new(&self.node.execution)
    }

    fn signer(&self, folder: &Path) -> Result<Signer> {
        if let (Some(url), Some(from)) = (&self.signer, self.from) {
            return Ok(Signer::Rpc { signer: ExecutionNode::new(url), from });
        }
        let path = self.key.clone().unwrap_or_else(|| folder.join(trustctl::keys::CHAIN));
        Signer::load(&path)
    }

    /// Prints the effect of a transaction, and waits until it is final.
    fn finish(
        &self,
        node: &ExecutionNode,
        receipt: Receipt,
        effect: &Effect,
        as_json: bool,
    ) -> Result<()> {
        let text = |receipt: &Receipt| match receipt.changed {
            true => effect.changed,
            false => effect.unchanged,
        };
        if !as_json {
            let Receipt { transaction, block, gas, .. } = receipt;
            println!("{} (transaction {transaction}, block {block}, {gas} gas)", text(&receipt));
        }
        let last = if self.no_wait { receipt } else { self.wait(node, receipt, as_json)? };
        if as_json {
            let value = json!({
                "transaction": last.transaction, "block": last.block, "gas": last.gas,
                "changed": last.changed, "final": !self.no_wait,
            });
            println!("{value}");
        } else if self.no_wait {
            println!("It takes effect on nodes once it is final. Next: trustctl chain show");
        } else if last.changed == receipt.changed {
            println!("It is final: nodes that follow the chain see it with their next bundle.");
        } else {
            println!(
                "It is final, in another block than before, with this effect: {}",
                text(&last)
            );
        }
        Ok(())
    }

    /// Waits until a transaction is final and shows the progress: one line that changes on a
    /// terminal, and a line for each finalized block elsewhere.
    fn wait(&self, node: &ExecutionNode, receipt: Receipt, quiet: bool) -> Result<Receipt> {
        let terminal = std::io::stderr().is_terminal();
        let mut reported = None;
        let report = |progress: FinalityProgress| {
            let FinalityProgress { block, finalized, latest } = progress;
            let moved = reported.replace(finalized) != Some(finalized);
            let line = format!(
                "waiting until block {block} is final: finalized {finalized}, newest {latest}"
            );
            if terminal && !quiet {
                eprint!("\r{line}\x1b[K");
                let _ = std::io::stderr().flush();
            } else if moved && !quiet {
                eprintln!("{line}");
            }
        };
        let last = wait_until_final(node, receipt, Duration::from_secs(self.timeout), report)?;
        if terminal && !quiet {
            eprintln!();
        }
        Ok(last)
    }
}

fn deploy(
    transaction: &TransactionArgs,
    set: &ApproverSet,
    quorum: u16,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    let node = transaction.node();
    let (registry, receipt) = Registry::deploy(
        &node,
        &transaction.signer(folder)?,
        &set.approver,
        quorum,
        set.revocation_quorum,
    )?;
    let address = registry.address;
    // Printed at once: the deployment is paid, even if waiting for finality fails.
    eprintln!("deployed at {address} by the transaction {}", receipt.transaction);
    if !transaction.no_wait {
        transaction.wait(&node, receipt, as_json)?;
    }
    let (code, Receipt { block, gas, .. }) = (code_hash()?, receipt);
    let value = json!({ "contract": address, "code_hash": code, "block": block, "gas": gas });
    print_result(as_json, &value, || {
        format!(
            "contract = \"{address}\"\ncode-hash = \"{code}\"\n({gas} gas, block {block})\n\
             Next: trustctl chain pin --contract {address}"
        )
    })
}

fn approve(
    vote: &Vote,
    level: ApprovalLevel,
    not_after: u64,
    folder: &Path,
    as_json: bool,
) -> Result<()> {
    let (node, address) = (vote.transaction.node(), vote.contract.contract);
    let registry = Registry { node: &node, address };
    let signer = vote.transaction.signer(folder)?;
    let receipt = registry.approve(&signer, &vote.digest, level, not_after)?;
    if !receipt.changed && !as_json {
        let digest = measure::hex(&vote.digest.0);
        let proof = if matches!(level, ApprovalLevel::Proof) { " --proof" } else { "" };
        println!(
            "Next, for the other approvers: trustctl chain approve sha256:{digest} \
             --contract {address}{proof} --until {not_after}\n\
             To withdraw the vote: trustctl chain withdraw sha256:{digest} --contract {address}"
        );
    }
    let effect = format!("approved until {not_after}");
    vote.transaction.finish(&node, receipt, &vote_effect(&effect), as_json)
}

/// Returns the end of the day after `days` more days, in seconds since 1970.
fn end_of_day(days: u64) -> u64 {
    (now() / SECONDS_PER_DAY + 1).saturating_add(days).saturating_mul(SECONDS_PER_DAY)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
