//! The commands that query and operate a node: status, modules, images, audit log, services.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use api::owner::{
    AcceptedRequest, ChainStatus, EngineState, LedgerDecision, LedgerState, LogSummary, Module,
    ModuleStatus, NodeStatus, SourceStatus, Status,
};
use clap::Subcommand;
use deployment::DesiredState;
use serde_json::json;
use trustctl::client::Client;
use trustctl::module;

use crate::cli::output::{NegativeResult, print_json, print_result};

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
    /// Start a module that was stopped
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
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Upload an image to the node
    Push {
        /// OCI image layout as one tar archive (skopeo copy docker://… oci-archive:FILE)
        archive: PathBuf,
    },
}

#[derive(clap::ValueEnum, Clone, Copy)]
pub(crate) enum ServiceVerb {
    /// Stop the service and start it again
    Restart,
    /// Kill the service, as a crash would
    Kill,
}

pub(crate) fn page(client: &Client, file: &Path, as_json: bool) -> Result<()> {
    std::fs::write(file, client.text("/")?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    print_result(as_json, &json!({ "written": file }), || {
        format!("written to {}; open it in a browser", file.display())
    })
}

pub(crate) fn status(client: &Client, as_json: bool) -> Result<()> {
    let status = client.status()?;
    if as_json {
        return print_json(&status);
    }
    let print_head = |hostname: &str, version: &str, variant: &str, machine: &str, uptime_s| {
        let uptime = Option::<f64>::unwrap_or_default(uptime_s).round();
        println!("{hostname}: Basalt {version} ({variant} {machine}), up for {uptime} s");
    };
    match status {
        NodeStatus::Locked(s) => {
            print_head(&s.hostname, &s.version, &s.variant, &s.machine, s.uptime_s);
            println!("LOCKED   no module runs: {}", s.locked);
        }
        NodeStatus::Unlocked(s) => {
            print_head(&s.hostname, &s.version, &s.variant, &s.machine, s.uptime_s);
            print_status(&s);
        }
    }
    Ok(())
}

fn print_status(status: &Status) {
    let engine = match status.engine {
        EngineState::Available => "answers",
        EngineState::Unavailable => "does not answer",
    };
    println!("engine   {engine}");
    match &status.ledger.log {
        LedgerState::Unusable { problem } => println!("ledger   CANNOT BE USED: {problem}"),
        LedgerState::Usable(log) => {
            println!("ledger   {} statements{}", log.statements, log_age(log, status.time));
        }
    }
    for (address, source) in &status.ledger.sources {
        print_source(address, source);
    }
    if let Some(chain) = status.ledger.log.usable().and_then(|log| log.chain.as_ref()) {
        print_chain(chain);
    }
    for (address, relay) in &status.ledger.relays {
        print_source(address, relay);
    }
    let mib = |kib: Option<u64>| kib.unwrap_or_default() / 1024;
    println!(
        "memory   {} MiB, {} MiB available, {} processes",
        mib(status.memory.total_kib),
        mib(status.memory.available_kib),
        status.processes
    );
}

/// Returns the age of the log, if the node requires witnesses.
fn log_age(log: &LogSummary, now: u64) -> String {
    match (log.witnessed, log.max_age_s) {
        (Some(witnessed), Some(max_age)) => {
            let age = now.saturating_sub(witnessed);
            format!(", witnessed {age} s ago (fresh for {max_age} s)")
        }
        _ => String::new(),
    }
}

fn print_source(address: &str, source: &SourceStatus) {
    println!("         {address}: {}", source.problem.as_deref().unwrap_or("works"));
}

fn print_chain(chain: &ChainStatus) {
    match (&chain.problem, &chain.head) {
        (Some(problem), _) => println!("chain    {problem}"),
        (None, Some(head)) => println!(
            "chain    block {} is finalized, {} s ago (fresh for {} s); {} is attested; \
             records of {} images",
            head.block, head.age_s, chain.max_age_s, head.attested_block, head.records
        ),
        (None, None) => {}
    }
}

pub(crate) fn modules(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.modules()?;
    if as_json {
        return print_json(&answer);
    }
    answer.modules.iter().for_each(print_module);
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

pub(crate) fn image(client: &Client, command: &ImageCommand, as_json: bool) -> Result<()> {
    let ImageCommand::Push { archive } = command;
    let answer = client.upload_image(archive)?;
    if as_json {
        return print_json(&answer);
    }
    println!("the node has all {} blobs of the image", answer.blobs.len());
    println!("Next: trustctl module apply NAME --file FILE; its [image] names the digest");
    Ok(())
}

pub(crate) fn module(
    client: &Client,
    keys: &Path,
    command: &ModuleCommand,
    as_json: bool,
) -> Result<()> {
    let send = |name: &str, desired: DesiredState, toml: &str| {
        module::send_spec(client, keys, name, desired, toml)
    };
    let done = |name: &str, action: &str| {
        if as_json {
            return print_json(&json!({ "module": name, "done": action }));
        }
        println!("{name}: {action}; trustctl module list shows the progress");
        Ok(())
    };
    match command {
        ModuleCommand::Apply { name, file, archive, wait } => {
            let toml = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            if let Some(archive) = archive {
                client.upload_image(archive)?;
            }
            send(name, DesiredState::Run, &toml)?;
            match wait {
                Some(seconds) => wait_for(client, name, Duration::from_secs(*seconds), as_json),
                None => done(name, "applied"),
            }
        }
        ModuleCommand::List => modules(client, as_json),
        ModuleCommand::Logs { name, lines } => {
            let answer = client.module_log(name, *lines)?;
            if as_json {
                return print_json(&answer);
            }
            print!("{}", answer.log);
            Ok(())
        }
        ModuleCommand::Stop { name } => {
            send(name, DesiredState::Stop, &module::current_file(client, name)?)?;
            done(name, "stopping")
        }
        ModuleCommand::Start { name } => {
            send(name, DesiredState::Run, &module::current_file(client, name)?)?;
            done(name, "starting")
        }
        ModuleCommand::Rollback { name } => {
            send(name, DesiredState::Run, &module::previous_file(client, name)?)?;
            done(name, "rolling back")
        }
        ModuleCommand::Remove { name } => {
            send(name, DesiredState::Remove, &module::current_file(client, name)?)?;
            done(name, "removing")
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

pub(crate) fn audit(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.audit_log()?;
    if as_json {
        return print_json(&answer);
    }
    for record in &answer.events {
        println!("{:<5}  {:18} {}", record.recnum, record.content.kind, record.content.data);
    }
    Ok(())
}

pub(crate) fn service(client: &Client, verb: ServiceVerb, name: &str, as_json: bool) -> Result<()> {
    let verb = match verb {
        ServiceVerb::Restart => "restart",
        ServiceVerb::Kill => "kill",
    };
    print_accepted(&client.control_service(name, verb)?, as_json)
}

pub(crate) fn machine(client: &Client, verb: &str, as_json: bool) -> Result<()> {
    print_accepted(&client.control_node(verb)?, as_json)
}

fn print_accepted(answer: &AcceptedRequest, as_json: bool) -> Result<()> {
    print_result(as_json, answer, || format!("requested: {}", answer.requested))
}
