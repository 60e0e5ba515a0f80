//! The arguments of `trustctl` and its list of commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use trustctl::client::Address;

use crate::cli::attest::{Attest, Peers, Verify};
use crate::cli::chain::ChainCommand;
use crate::cli::image::VerifyImage;
use crate::cli::key::KeyCommand;
use crate::cli::log::{Approve, Approvers, LogCommand, Revoke};
use crate::cli::module::ModuleCommand;
use crate::cli::node::{ImageCommand, ServiceVerb};
use crate::cli::policy::{PolicyCommand, RecoveryCommand};
use crate::cli::relay::Relay;
use crate::cli::vrf::Vrf;

/// Arguments of `trustctl`.
#[derive(Parser)]
#[command(
    name = "trustctl",
    version,
    about = "Manage keys and approvals, operate Basalt nodes, and attest them",
    after_help = "Exit status: 0 success, 1 error, 2 wrong usage, 3 the node answered with an \
                  error, 4 negative result (a proof, a quote or a module failed).\n\
                  Start with: trustctl key show, then trustctl --node HOST:7443 status"
)]
pub(crate) struct Cli {
    /// Address of the node: HOST:PORT (TLS with the owner's certificate) or unix:PATH
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        env = "BASALT_NODE",
        default_value = "127.0.0.1:7443"
    )]
    pub(crate) node: Address,
    /// Folder of keys: owner.key, owner.crt, the other keys and known_nodes [default:
    /// $BASALT_CONFIG, or basalt in the user's configuration folder]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Commands of `trustctl`.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key, or show the public keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Approve an image in a log
    Approve(Approve),
    /// Revoke an image in a log, which is final
    Revoke(Revoke),
    /// Replace the set of approvers in a log; needs as many signatures of the current approvers as
    /// an approval does
    Approvers(Approvers),
    /// Show, verify, sign or cosign a log, fetch it from a node or push it to one
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
    /// Show a node's version, engine, ledger and memory, or why it is locked
    Status {
        /// Write the node's status page to FILE instead: one HTML document that loads nothing
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Print a node's metrics in the text format of Prometheus (GET /metrics)
    Metrics,
    /// List a node's modules with their state and the ledger's decision
    Modules,
    /// Upload images to a node
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Run, upgrade, stop, roll back or remove a module
    Module {
        #[command(subcommand)]
        command: ModuleCommand,
    },
    /// Print a node's audit events since its boot
    Audit,
    /// Request evidence from a node and appraise it: a fresh TPM quote, the event logs and the
    /// TPM's identity
    Attest(Attest),
    /// Appraise saved evidence of a node, or evidence from one of its modules, without a network
    Verify(Verify),
    /// Attest a list of nodes and require that a quorum of them is as expected
    Peers(Peers),
    /// Manage the policies that let a node unseal its root key, from which all keys of modules are
    /// derived
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Save a node's root key in escrow, and restore it to a node that lost it
    Recovery {
        #[command(subcommand)]
        command: RecoveryCommand,
    },
    /// Approve and revoke images in the registry contract of a chain, and show its records
    Chain {
        #[command(subcommand)]
        command: ChainCommand,
    },
    /// Make bundles of a chain's headers and proofs, which nodes request and verify
    Relay(Relay),
    /// Verify the proof of a verifiable random function (VRF)
    Vrf(Vrf),
    /// Verify a built image offline: the signature of its manifest, every file, and the predicted
    /// measurements
    VerifyImage(VerifyImage),
    /// Restart a service of a node, or kill it as a crash would
    Service {
        /// Action
        #[arg(value_enum)]
        verb: ServiceVerb,
        /// Name of the service, for example dockerd
        name: String,
    },
    /// Print a completion script for a shell: `source <(trustctl completions bash)`
    Completions {
        /// Shell that the script is for
        shell: clap_complete::Shell,
    },
    /// Shut a node down and start it again
    Reboot,
    /// Shut a node down and switch it off
    Poweroff,
}
