//! `trustctl chain`: the registry of an Ethereum-like chain, from the approvers' and the builders'
//! side.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Subcommand;
use ledger::ethereum::types::Hex;
use ledger::ethereum::{Approval, Hash, Record};
use serde_json::json;
use trustctl::chain::registry::{Finality, Mined, Shown, code_hash, wait_final};
use trustctl::chain::{Beacon, Execution, Registry, Signer, nodes, pin};
use trustctl::client::Client;

use crate::cli::output::said;

const DAY: u64 = 86_400;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Deploy a registry
    Deploy {
        #[command(flatten)]
        as_who: AsWho,
        /// An approver's address; again for each
        #[arg(long, required = true, value_parser = nodes::address)]
        approver: Vec<Hex<20>>,
        /// How many of them an approval needs
        #[arg(long, default_value_t = 1)]
        quorum: u16,
        /// How many of them a revocation needs
        #[arg(long, default_value_t = 1)]
        revocation_quorum: u16,
    },
    /// Vote for letting an image run
    Approve {
        #[command(flatten)]
        vote: Vote,
        /// You saw a proof of how it was built: you reproduced it, or checked its provenance
        #[arg(long)]
        proof: bool,
        /// For so long, to the end of that day (UTC): who votes on the same day votes for the same
        #[arg(long, default_value_t = 365)]
        days: u64,
        /// Until then, in seconds since 1970: what the first one of you voted for
        #[arg(long, value_name = "SECONDS", conflicts_with = "days")]
        until: Option<u64>,
    },
    /// Vote for never letting an image run again; that is final
    Revoke {
        #[command(flatten)]
        vote: Vote,
    },
    /// Vote for other approvers
    Approvers {
        #[command(flatten)]
        as_who: AsWho,
        #[command(flatten)]
        at: At,
        #[arg(long, required = true, value_parser = nodes::address)]
        approver: Vec<Hex<20>>,
        #[arg(long)]
        quorum: u16,
        #[arg(long, default_value_t = 1)]
        revocation_quorum: u16,
    },
    /// What the registry says, at the newest and at the final block
    #[command(alias = "status")]
    Show {
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        at: At,
        #[arg(value_parser = nodes::digest)]
        digest: Vec<Hash>,
    },
    /// Print [ledger.chain] for configs/node.toml: the network, its forks, the registry, and the
    /// final block as checkpoint
    Pin {
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        at: At,
        /// A beacon node's API
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5052")]
        beacon: String,
        /// Who will bring bundles to the nodes; again for each
        #[arg(long, value_name = "URL")]
        relay: Vec<String>,
    },
    /// Send a bundle that `trustctl relay --out` wrote to the node
    Push { bundle: PathBuf },
}

#[derive(clap::Args)]
pub(crate) struct Node {
    /// An execution node's JSON-RPC
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
pub(crate) struct At {
    /// The registry's address
    #[arg(long, env = "BASALT_CONTRACT", value_parser = nodes::address)]
    contract: Hex<20>,
}

#[derive(clap::Args)]
pub(crate) struct AsWho {
    #[command(flatten)]
    node: Node,
    /// A file with the account's key, 64 hex digits [default: chain.key in the folder of keys]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A JSON-RPC signer that takes eth_sendTransaction, instead of a key
    #[arg(long, value_name = "URL", requires = "from", conflicts_with = "key")]
    signer: Option<String>,
    /// The signer's account
    #[arg(long, value_parser = nodes::address, requires = "signer")]
    from: Option<Hex<20>>,
    /// Do not wait until it is final
    #[arg(long)]
    no_wait: bool,
    /// Wait so long at most, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    within: u64,
}

#[derive(clap::Args)]
pub(crate) struct Vote {
    #[command(flatten)]
    as_who: AsWho,
    #[command(flatten)]
    at: At,
    /// The image's manifest: sha256:…
    #[arg(value_parser = nodes::digest)]
    digest: Hash,
}

impl AsWho {
    fn signer(&self, folder: &Path) -> Result<Signer> {
        if let (Some(url), Some(from)) = (&self.signer, self.from) {
            return Ok(Signer::Rpc { signer: Execution::new(url), from });
        }
        let path = self.key.clone().unwrap_or_else(|| folder.join(trustctl::keys::CHAIN));
        Signer::load(&path)
    }

    /// Says what came of it, and waits until it is final.
    fn finish(&self, node: &Execution, mined: Mined, what: &str, json_: bool) -> Result<()> {
        let voted = |mined: &Mined| {
            if mined.changed {
                what
            } else {
                "the vote is counted; more approvers must vote for the same"
            }
            .to_owned()
        };
        if !json_ {
            println!(
                "{} (transaction {}, block {}, {} gas)",
                voted(&mined),
                mined.hash,
                mined.block,
                mined.gas
            );
        }
        let last = if self.no_wait {
            mined
        } else {
            wait(node, mined, Duration::from_secs(self.within), json_)?
        };
        if json_ {
            let value = json!({ "transaction": last.hash, "block": last.block, "gas": last.gas, "changed": last.changed, "final": !self.no_wait });
            println!("{value}");
        } else if self.no_wait {
            println!("nodes count it once it is final: trustctl chain show");
        } else if last.changed == mined.changed {
            println!("it is final: nodes that follow the chain know it with their next bundle");
        } else {
            println!("it is final in another block than first, and there: {}", voted(&last));
        }
        Ok(())
    }
}

/// One line that moves on a terminal, and a line now and then elsewhere.
fn wait(node: &Execution, mined: Mined, within: Duration, quiet: bool) -> Result<Mined> {
    let terminal = std::io::stderr().is_terminal();
    let mut begun = None;
    let last = wait_final(node, mined, within, |Finality { wanted, finalized, latest }| {
        let moved = begun.replace(finalized) != Some(finalized);
        let line =
            format!("waiting until block {wanted} is final: final is {finalized}, newest {latest}");
        if terminal && !quiet {
            eprint!("\r{line}\x1b[K");
            let _ = std::io::stderr().flush();
        } else if moved && !quiet {
            eprintln!("{line}");
        }
    })?;
    if terminal && !quiet {
        eprintln!();
    }
    Ok(last)
}

pub(crate) fn run(command: &Command, client: &Client, folder: &Path, as_json: bool) -> Result<()> {
    match command {
        Command::Deploy { as_who, approver, quorum, revocation_quorum } => {
            let node = Execution::new(&as_who.node.execution);
            let (registry, mined) = Registry::deploy(
                &node,
                &as_who.signer(folder)?,
                approver,
                *quorum,
                *revocation_quorum,
            )?;
            // Paid for already: whatever comes, it is known where it is.
            eprintln!("deployed at {} by the transaction {}", registry.address, mined.hash);
            if !as_who.no_wait {
                wait(&node, mined, Duration::from_secs(as_who.within), as_json)?;
            }
            let code = code_hash()?;
            let value = json!({ "contract": registry.address, "code_hash": code, "block": mined.block, "gas": mined.gas });
            said(as_json, &value, || {
                format!(
                    "contract = \"{}\"\ncode-hash = \"{code}\"\n({} gas, block {})\nNext: trustctl chain pin --contract {}",
                    registry.address, mined.gas, mined.block, registry.address
                )
            });
            Ok(())
        }
        Command::Approve { vote, proof, days, until } => {
            let node = Execution::new(&vote.as_who.node.execution);
            let registry = Registry { node: &node, address: vote.at.contract };
            let not_after = until
                .unwrap_or_else(|| (now() / DAY + 1).saturating_add(*days).saturating_mul(DAY));
            let approval = if *proof { Approval::Proof } else { Approval::Clear };
            let mined = registry.approve(
                &vote.as_who.signer(folder)?,
                &vote.digest,
                approval,
                not_after,
            )?;
            if !mined.changed && !as_json {
                let (digest, kind) =
                    (measure::hex(&vote.digest.0), if *proof { " --proof" } else { "" });
                println!(
                    "the others: trustctl chain approve sha256:{digest} --contract {}{kind} --until {not_after}",
                    vote.at.contract
                );
            }
            vote.as_who.finish(&node, mined, &format!("approved until {not_after}"), as_json)
        }
        Command::Revoke { vote } => {
            let node = Execution::new(&vote.as_who.node.execution);
            let registry = Registry { node: &node, address: vote.at.contract };
            let mined = registry.revoke(&vote.as_who.signer(folder)?, &vote.digest)?;
            vote.as_who.finish(&node, mined, "revoked", as_json)
        }
        Command::Approvers { as_who, at, approver, quorum, revocation_quorum } => {
            let node = Execution::new(&as_who.node.execution);
            let registry = Registry { node: &node, address: at.contract };
            let mined = registry.set_approvers(
                &as_who.signer(folder)?,
                approver,
                *quorum,
                *revocation_quorum,
            )?;
            as_who.finish(&node, mined, "the approvers are others now", as_json)
        }
        Command::Show { node, at, digest } => show(&node.execution, at.contract, digest, as_json),
        Command::Pin { node, at, beacon, relay } => {
            print!(
                "{}",
                pin(&Beacon::new(beacon), &Execution::new(&node.execution), at.contract, relay)?
            );
            Ok(())
        }
        Command::Push { bundle } => {
            let answer = client.upload("/v1/ledger/bundle", bundle)?;
            let new = answer["new"] == true;
            said(as_json, &answer, || {
                if new { "the node took it".into() } else { "the node knew all of it".into() }
            });
            Ok(())
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn show(url: &str, address: Hex<20>, digests: &[Hash], as_json: bool) -> Result<()> {
    let node = Execution::new(url);
    let registry = Registry { node: &node, address };
    registry.check()?;
    let (who, quorum, revocations) = registry.approvers()?;
    let mut value = json!({ "contract": address, "approvers": who, "quorum": quorum, "revocation_quorum": revocations, "images": {} });
    if !as_json {
        println!("{address}: {quorum} of {} approve, {revocations} revoke", who.len());
        who.iter().for_each(|one| println!("         {one}"));
    }
    for digest in digests {
        let newest = registry.record(digest, "latest")?;
        // A young chain has nothing final.
        let last = registry.record(digest, "finalized");
        if let Err(error) = &last {
            eprintln!("at the final block: {error:#}");
        }
        let last = last.ok();
        let told = |shown: &Shown| json!({ "record": shown.record, "block": shown.block, "age_s": now().saturating_sub(shown.time) });
        value["images"][digest.to_string()] =
            json!({ "latest": told(&newest), "final": last.as_ref().map(told) });
        if !as_json {
            println!("sha256:{}", measure::hex(&digest.0));
            println!("  newest {}", line(&newest));
            println!("  final  {}", last.as_ref().map_or("not known".into(), line));
        }
    }
    if as_json {
        println!("{value}");
    }
    Ok(())
}

fn line(Shown { record, block, time }: &Shown) -> String {
    let said = match record {
        Record::Absent => "not approved".into(),
        Record::Approved { approval: Approval::Clear, not_after, seq, .. } => {
            format!("clear until {not_after} (change {seq})")
        }
        Record::Approved { approval: Approval::Proof, not_after, seq, .. } => {
            format!("proof until {not_after} (change {seq})")
        }
        Record::Revoked { seq, .. } => format!("REVOKED (change {seq})"),
    };
    format!("{said}, at block {block}, {} s ago", now().saturating_sub(*time))
}
