//! The owner's side: questions to a node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use deployment::DesiredState;
use measure::{hex, unhex};
use serde_json::{Value, json};
use trustctl::client::Client;
use trustctl::module;

use crate::cli::output::said;

#[derive(Subcommand)]
pub(crate) enum ModuleCommand {
    /// Sign a module's file and send it: it runs once its image is approved and there
    Apply {
        name: String,
        /// The module's file; its [image] names the digest
        #[arg(long)]
        file: PathBuf,
        /// Send this image first: an OCI layout as one tar
        #[arg(long)]
        archive: Option<PathBuf>,
        /// Wait until it runs, or is known not to; seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "300")]
        wait: Option<u64>,
    },
    /// The modules, and what the ledger says of them
    List,
    /// What a running module wrote
    #[command(alias = "log")]
    Logs {
        name: String,
        /// So many of the last lines
        #[arg(long, default_value_t = 200)]
        lines: u32,
    },
    /// End a module; it stays known and can be started again
    Stop { name: String },
    /// Start a module that was stopped
    Start { name: String },
    /// Go back to the last version that was healthy
    Rollback { name: String },
    /// End a module and forget it; its folders stay
    Remove { name: String },
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Send an image to the node: an OCI layout as one tar (skopeo copy docker://…
    /// oci-archive:FILE)
    Push { archive: PathBuf },
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

pub(crate) fn page(client: &Client, file: &Path, as_json: bool) -> Result<()> {
    std::fs::write(file, client.text("/")?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    said(as_json, &json!({ "written": file }), || {
        format!("written to {}; open it in a browser", file.display())
    });
    Ok(())
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
    if let Some(why) = s["locked"].as_str() {
        println!("LOCKED   no module runs: {why}");
        return Ok(());
    }
    println!("engine   {}", text(&s["engine"]));
    match s["ledger"]["problem"].as_str() {
        Some(problem) => println!("ledger   CANNOT BE USED: {problem}"),
        None => println!("ledger   {} statements{}", s["ledger"]["statements"], age(&s)),
    }
    let heard = |list: &Value| {
        for (source, heard) in list.as_object().into_iter().flatten() {
            println!("         {source}: {}", heard["problem"].as_str().unwrap_or("good"));
        }
    };
    heard(&s["ledger"]["sources"]);
    let chain = &s["ledger"]["chain"];
    match chain["problem"].as_str() {
        Some(problem) => println!("chain    {problem}"),
        None if chain.is_object() => println!(
            "chain    block {} is final, {} s ago (it counts for {} s); attested is {}; {} images known",
            chain["block"],
            chain["age_s"],
            chain["max_age_s"],
            chain["attested_block"],
            chain["records"]
        ),
        None => {}
    }
    heard(&s["ledger"]["relays"]);
    let free = |key: &str| s["memory"][key].as_u64().unwrap_or_default() / 1024;
    println!(
        "memory   {} MiB, {} MiB available, {} processes",
        free("total_kb"),
        free("available_kb"),
        s["processes"]
    );
    Ok(())
}

/// How old the ledger is, where witnesses are asked for.
fn age(status: &Value) -> String {
    let number = |value: &Value| value.as_u64();
    match (
        number(&status["time"]),
        number(&status["ledger"]["witnessed"]),
        number(&status["ledger"]["max_age_s"]),
    ) {
        (Some(now), Some(witnessed), Some(most)) => {
            format!(", witnessed {} s ago (it counts for {most} s)", now.saturating_sub(witnessed))
        }
        _ => String::new(),
    }
}

pub(crate) fn modules(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.get("/v1/modules")?;
    if as_json {
        return print_json(&answer);
    }
    for m in answer["modules"].as_array().into_iter().flatten() {
        println!(
            "{:16} {:9} {}",
            text(&m["name"]),
            text(&m["status"]["state"]),
            text(&m["digest"])
        );
        for part in m["progress"]["layers"].as_array().into_iter().flatten() {
            let number = |key: &str| part[key].as_u64().unwrap_or_default() as f64 / 1e6;
            println!(
                "{:16} {} {:.1} of {:.1} MB",
                "",
                &text(&part["digest"]).chars().take(19).collect::<String>(),
                number("have"),
                number("size")
            );
        }
        let mut said = Vec::new();
        for reason in [&m["status"]["reason"], &m["trouble"], &m["ledger"]["reason"]] {
            if let Some(reason) =
                reason.as_str().filter(|r| !said.iter().any(|s: &&str| s.contains(r)))
            {
                println!("{:16} {reason}", "");
                said.push(reason);
            }
        }
    }
    Ok(())
}

pub(crate) fn image(client: &Client, command: &ImageCommand, as_json: bool) -> Result<()> {
    let ImageCommand::Push { archive } = command;
    let answer = module::push(client, archive)?;
    if as_json {
        return print_json(&answer);
    }
    println!("the node has {} blobs of it", answer["blobs"].as_array().map_or(0, Vec::len));
    println!("Next: trustctl module apply NAME --file FILE, its [image] naming the digest");
    Ok(())
}

pub(crate) fn module(
    client: &Client,
    keys: &Path,
    command: &ModuleCommand,
    as_json: bool,
) -> Result<()> {
    let done = |name: &str, what: &str| {
        if as_json {
            return print_json(&json!({ "module": name, "done": what }));
        }
        println!("{name}: {what}; what becomes of it: trustctl module list");
        Ok(())
    };
    match command {
        ModuleCommand::Apply { name, file, archive, wait } => {
            let toml = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            if let Some(archive) = archive {
                module::push(client, archive)?;
            }
            module::send(client, keys, name, DesiredState::Run, &toml)?;
            match wait {
                Some(seconds) => wait_for(client, name, Duration::from_secs(*seconds), as_json),
                None => done(name, "applied"),
            }
        }
        ModuleCommand::List => modules(client, as_json),
        ModuleCommand::Logs { name, lines } => {
            let answer = client.get(&format!("/v1/modules/{name}/log?lines={lines}"))?;
            if as_json {
                return print_json(&answer);
            }
            print!("{}", text(&answer["log"]));
            Ok(())
        }
        ModuleCommand::Stop { name } => {
            module::send(client, keys, name, DesiredState::Stop, &module::current(client, name)?)?;
            done(name, "stopping")
        }
        ModuleCommand::Start { name } => {
            module::send(client, keys, name, DesiredState::Run, &module::current(client, name)?)?;
            done(name, "starting")
        }
        ModuleCommand::Rollback { name } => {
            module::send(client, keys, name, DesiredState::Run, &module::previous(client, name)?)?;
            done(name, "rolling back")
        }
        ModuleCommand::Remove { name } => {
            module::send(
                client,
                keys,
                name,
                DesiredState::Remove,
                &module::current(client, name)?,
            )?;
            done(name, "removing")
        }
    }
}

/// Asks again and again until the newest spec runs, or cannot.
fn wait_for(client: &Client, name: &str, within: Duration, as_json: bool) -> Result<()> {
    let (deadline, mut said) = (Instant::now() + within, String::new());
    loop {
        let view = module::view(client, name)?;
        let state = text(&view["status"]["state"]);
        match view["trouble"].as_str() {
            // An upgrade that is refused leaves the old version running: that is not what was
            // waited for.
            Some(trouble) if state != "fetching" => {
                return Err(DoesNotHold(format!("{name}: {trouble}")).into());
            }
            None if view["reconciled"] == true => {
                return if as_json {
                    print_json(&view)
                } else {
                    println!("{name} runs");
                    Ok(())
                };
            }
            _ => {}
        }
        if state != said && !as_json {
            eprintln!("{name}: {state}");
            said = state;
        }
        if Instant::now() >= deadline {
            return Err(DoesNotHold(format!(
                "{name} does not run within {} s; it is {}",
                within.as_secs(),
                view["status"]
            ))
            .into());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

pub(crate) fn audit(client: &Client, as_json: bool) -> Result<()> {
    let answer = client.get("/v1/audit")?;
    if as_json {
        return print_json(&answer);
    }
    for e in answer["events"].as_array().into_iter().flatten() {
        println!(
            "{:5}  {:18} {}",
            e["recnum"].to_string(),
            text(&e["content"]["type"]),
            text(&e["content"]["data"])
        );
    }
    Ok(())
}

pub(crate) fn vrf(args: &Vrf, as_json: bool) -> Result<()> {
    let bytes = |what: &str, text: &str| {
        unhex(text).with_context(|| format!("--{what}: expected hex digits"))
    };
    let suite: vrf::Suite = serde_json::from_value(json!(args.suite))
        .with_context(|| format!("--suite {:?}", args.suite))?;
    let (key, alpha, pi) = (
        bytes("public-key", &args.public_key)?,
        bytes("alpha", &args.alpha)?,
        bytes("pi", &args.pi)?,
    );
    let beta = vrf::PublicKey::new(suite, &key)
        .and_then(|key| key.verify(&alpha, &pi))
        .map_err(|e| DoesNotHold(e.to_string()))?;
    let Some(beta) = beta else { return Err(DoesNotHold("the proof does not hold".into()).into()) };
    if as_json {
        return print_json(&json!({ "valid": true, "beta": hex(&beta) }));
    }
    println!("the proof holds\nbeta {}", hex(&beta));
    Ok(())
}

pub(crate) fn service(client: &Client, verb: ServiceVerb, name: &str, json: bool) -> Result<()> {
    let verb = match verb {
        ServiceVerb::Restart => "restart",
        ServiceVerb::Kill => "kill",
    };
    asked(client, &format!("/v1/services/{name}/{verb}"), json)
}

pub(crate) fn machine(client: &Client, verb: &str, json: bool) -> Result<()> {
    asked(client, &format!("/v1/node/{verb}"), json)
}

fn asked(client: &Client, path: &str, json: bool) -> Result<()> {
    let answer = client.post(path, &json!({}))?;
    said(json, &answer, || format!("asked: {}", answer["asked"].as_str().unwrap_or_default()));
    Ok(())
}
