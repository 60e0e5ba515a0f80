//! The owner's side: questions to a node.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use measure::{Measurements, hex, unhex};
use serde_json::{Value, json};
use trustctl::client::Client;
use trustctl::evidence;

#[derive(Subcommand)]
pub(crate) enum ModuleCommand {
    /// Send an archive and a module's file; it runs if its image is approved
    Apply {
        name: String,
        /// The module's file; its [image] names the digest
        #[arg(long)]
        file: PathBuf,
        /// The image: an OCI layout as one tar
        #[arg(long)]
        archive: PathBuf,
    },
    /// What a running module wrote
    Log { name: String },
}

#[derive(clap::Args)]
pub(crate) struct Quote {
    /// The image's measurements.json: every difference is named
    #[arg(long)]
    expect: Option<PathBuf>,
    /// The node.toml that you put on its boot partition, where there is one
    #[arg(long, requires = "expect")]
    settings: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Vrf {
    /// The suite, for example ECVRF-P256-SHA256-TAI
    #[arg(long)]
    suite: String,
    /// The prover's public key, hex
    #[arg(long)]
    public_key: String,
    /// The input, hex
    #[arg(long)]
    alpha: String,
    /// The proof, hex
    #[arg(long)]
    pi: String,
}

#[derive(clap::ValueEnum, Clone, Copy)]
pub(crate) enum ServiceVerb {
    Restart,
    Kill,
}

/// What was asked for was answered, and the answer is no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DoesNotHold(pub(crate) String);

pub(crate) fn print_json(value: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(crate) fn status(client: &Client, as_json: bool) -> Result<()> {
    let s = client.get("/v1/status")?;
    if as_json {
        return print_json(&s);
    }
    println!(
        "{}: Basalt {} ({} {}), up for {} s",
        text(&s["hostname"]),
        text(&s["version"]),
        text(&s["variant"]),
        text(&s["machine"]),
        s["uptime_s"].as_f64().unwrap_or_default().round()
    );
    println!("engine   {}", text(&s["engine"]));
    match s["ledger"]["problem"].as_str() {
        Some(problem) => println!("ledger   CANNOT BE USED: {problem}"),
        None => println!("ledger   {} statements", s["ledger"]["statements"]),
    }
    let free = |key: &str| s["memory"][key].as_u64().unwrap_or_default() / 1024;
    println!("memory   {} MiB, {} MiB available, {} processes", free("total_kb"), free("available_kb"), s["processes"]);
    Ok(())
}

pub(crate) fn modules(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.get("/v1/modules")?;
    if as_json {
        return print_json(&answer);
    }
    for m in answer["modules"].as_array().into_iter().flatten() {
        println!("{:16} {:9} {}", text(&m["name"]), text(&m["status"]["state"]), text(&m["digest"]));
        for reason in [&m["status"]["reason"], &m["ledger"]["reason"]] {
            if let Some(reason) = reason.as_str() {
                println!("{:16} {reason}", "");
            }
        }
    }
    Ok(())
}

pub(crate) fn module(client: &Client, command: &ModuleCommand) -> Result<()> {
    match command {
        ModuleCommand::Apply { name, file, archive } => {
            let toml = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let bytes = std::fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
            client.upload(&format!("/v1/modules/{name}/archive"), bytes)?;
            client.put(&format!("/v1/modules/{name}"), &json!({ "toml": toml }))?;
            println!("the node has it; what becomes of it: trustctl modules");
        }
        ModuleCommand::Log { name } => print!("{}", text(&client.get(&format!("/v1/modules/{name}/log"))?["log"])),
    }
    Ok(())
}

pub(crate) fn audit(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.get("/v1/audit")?;
    if as_json {
        return print_json(&answer);
    }
    for e in answer["events"].as_array().into_iter().flatten() {
        println!("{:5}  {:18} {}", e["recnum"].to_string(), text(&e["content"]["type"]), text(&e["content"]["data"]));
    }
    Ok(())
}

fn expected(path: &Path, settings: Option<&Path>) -> Result<Measurements> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut expected: Measurements =
        serde_json::from_slice(&read(path)?).with_context(|| format!("{} is not a measurements.json", path.display()))?;
    if let Some(settings) = settings {
        let settings = read(settings)?;
        expected.boards = expected.boards.iter().map(|board| board.with_settings(&settings)).collect();
    }
    Ok(expected)
}

pub(crate) fn quote(client: &Client, args: &Quote, as_json: bool) -> Result<()> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let answer = client.post("/v1/quote", &json!({ "nonce": hex(&nonce) }))?;
    let expected: Option<Measurements> = match &args.expect {
        Some(path) => Some(expected(path, args.settings.as_deref())?),
        None => None,
    };
    let checked =
        evidence::check(&answer, &nonce, expected.as_ref()).map_err(|e| DoesNotHold(format!("the quote does not hold: {e:#}")))?;
    if as_json {
        return print_json(&answer);
    }
    for record in checked.platform.iter().chain(&checked.modules) {
        println!("PCR {}  {:20} {}", record.pcr, record.content.kind, record.content.data);
    }
    for (pcr, value) in &checked.pcrs {
        println!("PCR {pcr} = {}", hex(&value.0));
    }
    println!("signed by the TPM's key {}", text(&answer["key"]));
    println!(
        "{}",
        if expected.is_some() {
            "The quote holds: this boot is the expected image, event by event."
        } else {
            "The quote holds. --expect measurements.json compares it with an image."
        }
    );
    Ok(())
}

pub(crate) fn vrf(args: &Vrf, as_json: bool) -> Result<()> {
    let bytes = |what: &str, text: &str| unhex(text).with_context(|| format!("--{what}: expected hex digits"));
    let suite: vrf::Suite = serde_json::from_value(json!(args.suite)).with_context(|| format!("--suite {:?}", args.suite))?;
    let beta = suite
        .verify(&bytes("public-key", &args.public_key)?, &bytes("alpha", &args.alpha)?, &bytes("pi", &args.pi)?)
        .map_err(|e| DoesNotHold(e.to_string()))?;
    let Some(beta) = beta else { return Err(DoesNotHold("the proof does not hold".into()).into()) };
    if as_json {
        return print_json(&json!({ "valid": true, "beta": hex(&beta) }));
    }
    println!("the proof holds\nbeta {}", hex(&beta));
    Ok(())
}

pub(crate) fn service(client: &Client, verb: ServiceVerb, name: &str) -> Result<()> {
    let verb = match verb {
        ServiceVerb::Restart => "restart",
        ServiceVerb::Kill => "kill",
    };
    client.post(&format!("/v1/services/{name}/{verb}"), &json!({}))?;
    println!("asked: {verb} {name}");
    Ok(())
}

pub(crate) fn machine(client: &Client, verb: &str) -> Result<()> {
    client.post(&format!("/v1/node/{verb}"), &json!({}))?;
    println!("asked: {verb}");
    Ok(())
}
