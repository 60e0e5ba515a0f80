//! `trustctl`: for approvers, and for owners of nodes.
#![forbid(unsafe_code)]

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use trustctl::client::{Address, Client, Refusal};
use trustctl::keys;

#[derive(Parser)]
#[command(
    name = "trustctl",
    version,
    about = "Keys, approvals, and what a Basalt node says of itself",
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the node refused, 4 a proof or quote does not hold.\n\
                  Start with: trustctl key show, then trustctl --node HOST:7443 status"
)]
struct Cli {
    /// The node: HOST:PORT (TLS with the owner's certificate) or unix:PATH
    #[arg(long, global = true, env = "BASALT_NODE", default_value = "127.0.0.1:7443")]
    node: Address,
    /// Folder with owner.key, owner.crt, the other keys and known_nodes
    #[arg(long, global = true)]
    keys: Option<PathBuf>,
    /// JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make or show keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Approve an image in a log
    Approve(cli::log::Approve),
    /// Revoke an image in a log; that is final
    Revoke(cli::log::Revoke),
    /// Change who approves from here on, in a log; as many of those before must sign it as an
    /// approval needs
    Approvers(cli::log::Approvers),
    /// Show, check, sign, cosign or send a log
    Log {
        #[command(subcommand)]
        command: cli::log::LogCommand,
    },
    /// What the node is and how it is
    Status {
        /// Write the node's status page into this file instead: one HTML document that loads
        /// nothing
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// What Prometheus would be told (GET /metrics)
    Metrics,
    /// The node's modules and what the ledger says of them
    Modules,
    /// Send images to the node
    Image {
        #[command(subcommand)]
        command: cli::node::ImageCommand,
    },
    /// Run, upgrade, stop or roll back a module
    Module {
        #[command(subcommand)]
        command: cli::node::ModuleCommand,
    },
    /// What happened to modules since the boot
    Audit,
    /// Find out what a node is: a fresh quote, its logs, its TPM, compared with an image's
    /// measurements
    #[command(alias = "quote")]
    Attest(cli::attest::Attest),
    /// Check evidence that was saved, or that a module of a node gave
    Verify(cli::attest::Verify),
    /// Attest a list of nodes, and say whether enough of them are what they should be
    Peers(cli::attest::Peers),
    /// Let boots of an image have a node's root key, on which all keys of modules depend
    Policy {
        #[command(subcommand)]
        command: cli::policy::PolicyCommand,
    },
    /// Keep a node's root key for another board, and bring it there
    Recovery {
        #[command(subcommand)]
        command: cli::policy::RecoveryCommand,
    },
    /// Approve and revoke images in a chain's registry, and show what it says
    #[cfg(feature = "chain")]
    Chain {
        #[command(subcommand)]
        command: cli::chain::Command,
    },
    /// Bring nodes what a chain says: bundles of headers and proofs, which they check themselves
    #[cfg(feature = "chain")]
    Relay(cli::relay::Args),
    /// Verify the proof of a verifiable random function
    Vrf(cli::node::Vrf),
    /// Check an image offline: signature of its manifest, every file, the prediction
    VerifyImage(cli::image::VerifyImage),
    /// Restart a service, or kill it as a crash would
    Service {
        #[arg(value_enum)]
        verb: cli::node::ServiceVerb,
        name: String,
    },
    /// Print completions for a shell: `source <(trustctl completions bash)`
    Completions { shell: clap_complete::Shell },
    /// Reboot the node in good order
    Reboot,
    /// Switch the node off in good order
    Poweroff,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key; an existing one is never overwritten
    New {
        #[arg(value_enum)]
        whose: Whose,
        /// What a log is called, like example.org/fleet [default: one made from the key, as
        /// sigsum's witnesses want it]
        #[arg(long)]
        origin: Option<String>,
    },
    /// Show what configs/node.toml pins
    Show,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum Whose {
    /// Commands nodes
    Owner,
    /// Decides what runs on nodes
    Approver,
    /// Signs the manifests of images
    Builder,
    /// Signs the checkpoints of a log
    Log,
    /// Opens the escrow of nodes' root keys
    Recovery,
    /// Votes in a chain's registry
    #[cfg(feature = "chain")]
    Chain,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Refusal>() {
                ExitCode::from(3)
            } else if error.is::<cli::node::DoesNotHold>() {
                ExitCode::from(4)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let folder = cli.keys.clone().map_or_else(keys::folder, Ok)?;
    let client = Client::new(cli.node.clone(), &folder);
    match cli.command {
        Command::Key { command: KeyCommand::New { whose, origin } } => {
            new_key(whose, origin.as_deref(), &folder, cli.json)
        }
        Command::Key { command: KeyCommand::Show } => show_keys(&folder, cli.json),
        Command::Approve(args) => cli::log::approve(&args, &folder, cli.json),
        Command::Revoke(args) => cli::log::revoke(&args, &folder, cli.json),
        Command::Approvers(args) => cli::log::approvers(&args, &folder, cli.json),
        Command::Log { command } => cli::log::log(&command, &folder, &client, cli.json),
        Command::Status { html: Some(file) } => cli::node::page(&client, &file, cli.json),
        Command::Status { html: None } => cli::node::status(&client, cli.json),
        Command::Metrics => {
            print!("{}", client.text("/metrics")?);
            Ok(())
        }
        Command::Modules => cli::node::modules(&client, cli.json),
        Command::Image { command } => cli::node::image(&client, &command, cli.json),
        Command::Module { command } => cli::node::module(&client, &folder, &command, cli.json),
        Command::Audit => cli::node::audit(&client, cli.json),
        Command::Attest(args) => cli::attest::attest(&args, &cli.node, &folder, cli.json),
        Command::Verify(args) => cli::attest::verify(&args, cli.json),
        Command::Peers(args) => cli::attest::peers(&args, &folder, cli.json),
        Command::Policy { command } => cli::policy::policy(&client, &command, &folder, cli.json),
        Command::Recovery { command } => {
            cli::policy::recovery(&client, &command, &folder, cli.json)
        }
        #[cfg(feature = "chain")]
        Command::Chain { command } => cli::chain::run(&command, &client, &folder, cli.json),
        #[cfg(feature = "chain")]
        Command::Relay(args) => cli::relay::run(&args, cli.json),
        Command::Vrf(args) => cli::node::vrf(&args, cli.json),
        Command::VerifyImage(args) => cli::image::verify_image(&args, &folder, cli.json),
        Command::Service { verb, name } => cli::node::service(&client, verb, &name, cli.json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "trustctl", &mut std::io::stdout());
            Ok(())
        }
        Command::Reboot => cli::node::machine(&client, "reboot", cli.json),
        Command::Poweroff => cli::node::machine(&client, "poweroff", cli.json),
    }
}

fn new_key(whose: Whose, origin: Option<&str>, folder: &std::path::Path, json: bool) -> Result<()> {
    anyhow::ensure!(origin.is_none() || matches!(whose, Whose::Log), "only a log has an origin");
    let (public, next) = match whose {
        Whose::Owner => {
            let print = keys::new_owner(folder)?.fingerprint();
            (print.clone(), format!("owner.certificates = [\"{print}\"]\n{PINS}"))
        }
        Whose::Approver => {
            let key = keys::public_hex(&keys::new_approver(folder)?);
            (key.clone(), format!("ledger.approvers = [\"{key}\"]\n{PINS}"))
        }
        Whose::Builder => {
            let key = keys::public_hex(&keys::new_signing(folder, "builder")?);
            (
                key.clone(),
                format!(
                    "{key}\nWho checks your images names it: trustctl verify-image DIR --builder KEY"
                ),
            )
        }
        Whose::Recovery => {
            let key = keys::new_recovery(folder)?.public()?.to_string();
            (
                key.clone(),
                format!(
                    "keys.recovery = \"{key}\"\nPut the line above into configs/node.toml or a card's node.toml, and keep the key away from nodes (docs/crypto.md)."
                ),
            )
        }
        #[cfg(feature = "chain")]
        Whose::Chain => {
            let address =
                trustctl::chain::Signer::from_hex(&keys::new_chain(folder)?)?.address().to_string();
            (
                address.clone(),
                format!(
                    "{address}\nAn approver's account: it needs some of the network's currency to vote (trustctl chain --help)."
                ),
            )
        }
        Whose::Log => {
            let key = keys::new_log(folder, origin)?.to_string();
            (
                key.clone(),
                format!(
                    "[ledger.checkpoints]\nlog = \"{key}\"\nGive it to the witnesses, and name theirs in configs/node.toml (docs/ledger.md)."
                ),
            )
        }
    };
    cli::output::said(json, &serde_json::json!({ "public": public, "folder": folder }), || {
        format!("{next}\nThe key is in {}.", folder.display())
    });
    Ok(())
}

const PINS: &str =
    "Put the line above into configs/node.toml; an image that names none pins your keys by itself.";

fn show_keys(folder: &std::path::Path, json: bool) -> Result<()> {
    let shown = [
        ("owner", keys::Owner::load(folder).map(|o| o.fingerprint())),
        (
            "approver",
            keys::load_approver(&folder.join("approver.key")).map(|k| keys::public_hex(&k)),
        ),
        (
            "builder",
            keys::load(&folder.join(keys::BUILDER), "builder").map(|k| keys::public_hex(&k)),
        ),
        (
            "signer",
            keys::load(&folder.join(keys::BUILDER), "builder")
                .map(|k| keys::policy_signer(&k).public().hex()),
        ),
        ("recovery", keys::load_recovery(folder).and_then(|k| Ok(k.public()?.to_string()))),
        #[cfg(feature = "chain")]
        (
            "chain",
            trustctl::chain::Signer::load(&folder.join(keys::CHAIN))
                .map(|signer| signer.address().to_string()),
        ),
        ("log", keys::load_log(&folder.join(keys::LOG)).map(|(_, vkey)| vkey.to_string())),
    ];
    if json {
        let keys: serde_json::Map<_, _> =
            shown.into_iter().map(|(who, key)| (who.to_owned(), key.ok().into())).collect();
        println!("{}", serde_json::Value::Object(keys));
        return Ok(());
    }
    for (who, key) in shown {
        println!("{who:9} {}", key.unwrap_or_else(|e| format!("none ({e})")));
    }
    Ok(())
}
