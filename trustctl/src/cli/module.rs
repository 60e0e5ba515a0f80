//! The commands about modules.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use api::owner::{LedgerDecision, Module, ModuleStatus};
use clap::Subcommand;
use deployment::DesiredState;
use serde_json::json;
use trustctl::client::Client;
use trustctl::module::{self, Verb};

use crate::cli::output::{NegativeResult, print_json};

/// Interval between two queries while a module is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Characters of a layer's digest that are printed: `sha256:` and twelve digits.
const SHORT_DIGEST_CHARS: usize = 19;

#[derive(Subcommand)]
pub(crate) enum ModuleCommand {
    /// Sign a module file and send it to the node; the module runs once its image is approved and
    /// present
    Apply {
        /// Name of the module
        name: String,
        /// Module file (TOML); its [image] section names the digest
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Upload this image first: an OCI image layout as one tar archive
        #[arg(long, value_name = "FILE")]
        archive: Option<PathBuf>,
        /// Wait until the module runs or has failed, for at most SECONDS, 300 if not given
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "300")]
        wait: Option<u64>,
    },
    /// List the modules with their state and the ledger's decision
    List,
    /// Print the output of a running module
    Logs {
        /// Name of the module
        name: String,
        /// Number of lines, counted from the end
        #[arg(long, value_name = "N", default_value_t = 200)]
        lines: u32,
    },
    /// Stop a module; the node keeps its spec, so it can be started again
    Stop {
        /// Name of the module
        name: String,
    },
    /// Start a module that was stopped, or a shipped one that was removed
    Start {
        /// Name of the module
        name: String,
    },
    /// Roll back to the previous version that was healthy
    Rollback {
        /// Name of the module
        name: String,
    },
    /// Stop a module and delete its spec; its data folders stay
    Remove {
        /// Name of the module
        name: String,
    },
    /// Run the version of a module that the node's image ships, also after updates of the image
    Restore {
        /// Name of the module
        name: String,
    },
    /// Sign a spec without a node, and print it; `trustctl module send` sends it
    Sign {
        /// Name of the module
        name: String,
        /// Module file (TOML); without it the spec is about the file that the node's image ships
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Desired state
        #[arg(long, value_enum, default_value_t = Desired::Run)]
        desired: Desired,
        /// Node that the spec is for: the SHA-256 of its certificate, as trustctl status shows it;
        /// repeat it to print a spec for each of several nodes
        #[arg(long = "for", value_name = "CERTIFICATE", required = true)]
        nodes: Vec<String>,
    },
    /// Send the spec for this node from the output of `trustctl module sign`
    Send {
        /// File with one signed spec in each line
        file: PathBuf,
    },
}

#[derive(clap::ValueEnum, Clone, Copy)]
pub(crate) enum Desired {
    /// The module runs
    Run,
    /// The module is stopped
    Stop,
    /// The module is removed
    Remove,
}

impl From<Desired> for DesiredState {
    fn from(desired: Desired) -> Self {
        match desired {
            Desired::Run => Self::Run,
            Desired::Stop => Self::Stop,
            Desired::Remove => Self::Remove,
        }
    }
}

pub(crate) fn run(
    client: &Client,
    keys: &Path,
    command: &ModuleCommand,
    as_json: bool,
) -> Result<()> {
    let carry_out = |name: &str, verb: Verb, action: &str| {
        module::carry_out(client, keys, name, verb)?;
        print_done(name, action, as_json)
    };
    match command {
        ModuleCommand::Apply { name, file, archive, wait } => {
            let toml = read(file)?;
            if let Some(archive) = archive {
                client.upload_image(archive)?;
            }
            module::send_spec(client, keys, name, DesiredState::Run, Some(&toml))?;
            match wait {
                Some(seconds) => wait_for(client, name, Duration::from_secs(*seconds), as_json),
                None => print_done(name, "applied", as_json),
            }
        }
        ModuleCommand::List => list(client, as_json),
        ModuleCommand::Logs { name, lines } => {
            let answer = client.module_log(name, *lines)?;
            if as_json {
                return print_json(&answer);
            }
            print!("{}", answer.log);
            Ok(())
        }
        ModuleCommand::Stop { name } => carry_out(name, Verb::Stop, "stopping"),
        ModuleCommand::Start { name } => carry_out(name, Verb::Start, "starting"),
        ModuleCommand::Rollback { name } => carry_out(name, Verb::Rollback, "rolling back"),
        ModuleCommand::Remove { name } => carry_out(name, Verb::Remove, "removing"),
        ModuleCommand::Restore { name } => carry_out(name, Verb::Restore, "restoring"),
        ModuleCommand::Sign { name, file, desired, nodes } => {
            let toml = file.as_deref().map(read).transpose()?;
            for node in nodes {
                let desired = (*desired).into();
                let signed = module::sign_spec(keys, node, name, desired, toml.as_deref())?;
                println!("{}", serde_json::to_string(&signed)?);
            }
            Ok(())
        }
        ModuleCommand::Send { file } => {
            print_done(&module::send_signed(client, &read(file)?)?, "applied", as_json)
        }
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn print_done(name: &str, action: &str, as_json: bool) -> Result<()> {
    if as_json {
        return print_json(&json!({ "module": name, "done": action }));
    }
    println!("{name}: {action}; trustctl module list shows the progress");
    Ok(())
}

pub(crate) fn list(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.modules()?;
    if as_json {
        return print_json(&answer);
    }
    answer.modules.iter().for_each(print_module);
    for rejected in &answer.rejected {
        println!(
            "{:16} rejected  the spec that the node has: {}",
            rejected.module, rejected.reason
        );
    }
    Ok(())
}

fn print_module(module: &Module) {
    println!("{:16} {:9} {}", module.name, module.status.state(), module.digest);
    for layer in module.progress.iter().flat_map(|progress| &progress.layers) {
        let digest: String = layer.digest.chars().take(SHORT_DIGEST_CHARS).collect();
        let (received, size) = (layer.received as f64 / 1e6, layer.size as f64 / 1e6);
        println!("{:16} {digest} {received:.1} of {size:.1} MB", "");
    }
    let denial = match &module.ledger {
        LedgerDecision::Allow { .. } => None,
        LedgerDecision::Deny { reason, .. } => Some(reason.as_str()),
    };
    // The reasons often contain each other; each is printed once.
    let mut printed: Vec<&str> = Vec::new();
    let reasons = [module.status.reason(), module.last_error.as_deref(), denial];
    for reason in reasons.into_iter().flatten() {
        if !printed.iter().any(|other| other.contains(reason)) {
            println!("{:16} {reason}", "");
            printed.push(reason);
        }
    }
}

/// Queries a module until its newest spec runs or has failed.
fn wait_for(client: &Client, name: &str, timeout: Duration, as_json: bool) -> Result<()> {
    let (deadline, mut printed) = (Instant::now() + timeout, "");
    loop {
        let module = module::find(client, name)?;
        let state = module.status.state();
        match &module.last_error {
            // The old version may still run after a failed upgrade, but the new one is awaited.
            Some(error) if !matches!(module.status, ModuleStatus::Fetching) => {
                return Err(NegativeResult(format!("{name}: {error}")).into());
            }
            None if module.reconciled => {
                if as_json {
                    return print_json(&module);
                }
                println!("{name} runs");
                return Ok(());
            }
            _ => {}
        }
        if state != printed && !as_json {
            eprintln!("{name}: {state}");
            printed = state;
        }
        if Instant::now() >= deadline {
            let reason = module.status.reason().map(|reason| format!(": {reason}"));
            return Err(NegativeResult(format!(
                "{name} does not run after {} s; its state is {state}{}",
                timeout.as_secs(),
                reason.unwrap_or_default()
            ))
            .into());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
