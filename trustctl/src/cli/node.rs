//! The commands that query and operate a node: status, images, audit log, services.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use api::owner::{
    AcceptedRequest, ChainStatus, EngineState, LedgerState, LogSummary, NodeStatus, SourceStatus,
    Status,
};
use clap::Subcommand;
use serde_json::json;
use trustctl::client::Client;

use crate::cli::output::{print_json, print_result};

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
            println!("node     {}", s.certificate);
            println!("LOCKED   no module runs: {}", s.locked);
        }
        NodeStatus::Unlocked(s) => {
            print_head(&s.hostname, &s.version, &s.variant, &s.machine, s.uptime_s);
            println!("node     {}", s.certificate);
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
