//! The approver's side: a log in a file, statements, signatures.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use ledger::{
    ApproversStatement, Change, Checkpoint, HighWater, ImageStatement, Log, NoteKey, Statement,
    Status, TrustPolicy, Witnessing,
};
use serde_json::json;
use trustctl::client::Client;
use trustctl::{keys, statement, witness};

use crate::cli::output::said;

/// Which log.
#[derive(clap::Args)]
pub(crate) struct Which {
    /// The log, a file of canonical JSON lines; fetch a node's with `trustctl log fetch`
    #[arg(long, default_value = "ledger.jsonl")]
    log: PathBuf,
    /// The ledger's name, as node.toml has it
    #[arg(long, default_value = "home")]
    ledger: String,
}

/// Which log, and who signs.
#[derive(clap::Args)]
pub(crate) struct Signing {
    #[command(flatten)]
    which: Which,
    /// The approver's key [default: approver.key in the folder of keys]
    #[arg(long)]
    key: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Approve {
    /// Digest of the image's manifest: sha256:...
    digest: String,
    /// How long the approval holds, in days
    #[arg(long, default_value_t = 365)]
    days: u64,
    #[command(flatten)]
    signing: Signing,
}

#[derive(clap::Args)]
pub(crate) struct Revoke {
    /// Digest of the image's manifest: sha256:...
    digest: String,
    #[command(flatten)]
    signing: Signing,
}

#[derive(clap::Args)]
pub(crate) struct Approvers {
    /// Public keys of all approvers from here on (`trustctl key show`)
    #[arg(required = true)]
    keys: Vec<String>,
    /// How many of them an approval needs
    #[arg(long)]
    threshold: usize,
    #[command(flatten)]
    signing: Signing,
}

#[derive(Subcommand)]
pub(crate) enum LogCommand {
    /// Print the statements of a log
    Show {
        #[arg(long, default_value = "ledger.jsonl")]
        log: PathBuf,
    },
    /// Check every line of a log against the approvers that a node pins
    Verify {
        #[command(flatten)]
        which: Which,
        /// Public key of an approver; once for each
        #[arg(long, required = true)]
        approver: Vec<String>,
        #[arg(long, default_value_t = 1)]
        threshold: usize,
        /// The log's own key (NAME+HASH+KEY) if a checkpoint is asked for
        #[arg(long)]
        checkpoint: Option<String>,
        /// A witness's key (NAME+HASH+KEY); once for each
        #[arg(long, requires = "checkpoint")]
        witness: Vec<String>,
        /// How many of the witnesses must have seen the log
        #[arg(long, default_value_t = 0)]
        witnesses: usize,
    },
    /// Sign a log's checkpoint and let witnesses cosign it, at once or again to stay fresh
    #[command(
        after_help = "The log is written if at least one witness cosigned. Witnesses speak C2SP tlog-witness."
    )]
    Cosign {
        #[command(flatten)]
        which: Which,
        /// The log's key [default: log.key in the folder of keys]
        #[arg(long)]
        key: Option<PathBuf>,
        /// Address of a witness, without /add-checkpoint; once for each
        #[arg(long)]
        witness: Vec<String>,
        /// A witness's key (NAME+HASH+KEY) as node.toml has it; what does not hold by one of them
        /// is left out
        #[arg(long)]
        witness_key: Vec<String>,
    },
    /// Add your signature to the newest statement of a log
    Sign {
        #[command(flatten)]
        signing: Signing,
    },
    /// Write the node's log to a file
    Fetch {
        #[arg(long, default_value = "ledger.jsonl")]
        log: PathBuf,
    },
    /// Let the node forget how far it has seen the log: after a new card or another TPM; everybody
    /// who asks for a quote sees it
    Reset,
    /// Send a log to the node, which checks all of it
    Push {
        #[arg(long, default_value = "ledger.jsonl")]
        log: PathBuf,
    },
}

pub(crate) fn approve(args: &Approve, folder: &Path, json: bool) -> Result<()> {
    image(&args.signing, folder, &args.digest, Status::Approved, args.days, json)
}

pub(crate) fn revoke(args: &Revoke, folder: &Path, json: bool) -> Result<()> {
    // A revocation is final; its expiry says nothing and is as far off as can be said.
    image(&args.signing, folder, &args.digest, Status::Revoked, 365 * 100, json)
}

fn image(
    signing: &Signing,
    folder: &Path,
    digest: &str,
    status: Status,
    days: u64,
    json: bool,
) -> Result<()> {
    if digest.strip_prefix("sha256:").and_then(measure::unhex).is_none_or(|b| b.len() != 32) {
        bail!(
            "{digest:?} is not a digest: expected sha256: and 64 lower-case hex digits, as `docker images --digests` or the build print it"
        );
    }
    let now = statement::now()?;
    let digest = digest.to_owned();
    add(signing, folder, json, |seq| {
        ImageStatement { digest, exp: now + days * 86_400, iat: now, seq, status }.into()
    })
}

pub(crate) fn approvers(args: &Approvers, folder: &Path, json: bool) -> Result<()> {
    TrustPolicy::new(&args.signing.which.ledger, &args.keys, args.threshold)?;
    let (approvers, threshold, iat) = (args.keys.clone(), args.threshold, statement::now()?);
    add(&args.signing, folder, json, |seq| {
        ApproversStatement { approvers, iat, seq, status: Change::Approvers, threshold }.into()
    })
}

fn add(
    signing: &Signing,
    folder: &Path,
    json: bool,
    make: impl FnOnce(u64) -> Statement,
) -> Result<()> {
    let key = signer(signing, folder)?;
    let before = read(&signing.which.log)?;
    let text = statement::append(&before, &signing.which.ledger, &key, make)?;
    write(&signing.which.log, &text)?;
    let entries = statement::entries(&text)?;
    let Some(entry) = entries.last() else { bail!("the statement was not added") };
    if json {
        println!("{}", json!(entry));
        return Ok(());
    }
    println!("{}", shown(&entry.statement));
    println!("signed by {}", keys::public_hex(&key));
    let log = signing.which.log.display();
    match ledger::parts(&before).1 {
        Some(_) => {
            println!(
                "Next: `trustctl log sign` by further approvers, trustctl log cosign --log {log}, trustctl log push --log {log}"
            )
        }
        None => println!(
            "Next: trustctl log push --log {log}   (or first `trustctl log sign` by further approvers)"
        ),
    }
    Ok(())
}

fn shown(statement: &Statement) -> String {
    match statement {
        Statement::Image(s) => {
            format!(
                "{:5}  {:9}  {}  until {}",
                s.seq,
                format!("{:?}", s.status).to_lowercase(),
                s.digest,
                s.exp
            )
        }
        Statement::Approvers(s) => {
            format!("{:5}  approvers  {} of {}", s.seq, s.threshold, s.approvers.join(" "))
        }
    }
}

pub(crate) fn log(command: &LogCommand, folder: &Path, client: &Client, json: bool) -> Result<()> {
    match command {
        LogCommand::Show { log } => show(&read(log)?, json),
        LogCommand::Verify {
            which: Which { log, ledger },
            approver,
            threshold,
            checkpoint,
            witness,
            witnesses,
        } => {
            let mut policy = TrustPolicy::new(ledger, approver, *threshold)?;
            if let Some(key) = checkpoint {
                policy.witnessing = Some(Witnessing::new(key, witness, *witnesses, u64::MAX)?);
            }
            let replayed = Log::replay(&policy, &read(log)?, &HighWater::default())?;
            let (seq, witnessed) =
                (replayed.high_water().seq, replayed.witnessed(statement::now()?));
            said(json, &json!({ "statements": seq, "witnessed": witnessed }), || {
                let seen = witnessed.map_or_else(String::new, |time| {
                    format!(", seen by {witnesses} witnesses at {time} or later")
                });
                format!("{}: {seq} statements, all in order and signed{seen}", log.display())
            });
            Ok(())
        }
        LogCommand::Cosign { which: Which { log, ledger }, key, witness, witness_key } => {
            let path = key.clone().unwrap_or_else(|| folder.join(keys::LOG));
            let (key, vkey) = keys::load_log(&path)?;
            let named = witness_key
                .iter()
                .map(|text| NoteKey::parse(text).map_err(anyhow::Error::msg))
                .collect::<Result<Vec<_>>>()?;
            if named.is_empty() && !witness.is_empty() {
                bail!(
                    "--witness-key names no witness: whose cosignatures are to be kept? `ledger.checkpoints.witnesses` of node.toml has the keys"
                );
            }
            let (text, seen) = (read(log)?, path.with_extension("seen"));
            let leaves = statement::leaves(&text, ledger)?;
            witness::continues(&seen, &leaves)?;
            witness::remember(&seen, &leaves)?;
            let done = witness::cosign(&text, &leaves, &vkey.name, &key, witness, &named)?;
            cosigned(log, &vkey.name, &done, witness.len(), json)
        }
        LogCommand::Sign { signing } => {
            let key = signer(signing, folder)?;
            let text = read(&signing.which.log)?;
            let mut entries = statement::entries(&text)?;
            let last = entries.last_mut().context("the log is empty")?;
            last.sign(&signing.which.ledger, &key);
            let (seq, signatures) = (last.statement.seq(), last.signatures.len());
            let mut fresh: String = entries.iter().map(|e| e.line() + "\n").collect();
            // The checkpoint is of the statements, not of who signed them.
            if let Some(checkpoint) = ledger::parts(&text).1 {
                fresh = format!("{fresh}\n{checkpoint}");
            }
            write(&signing.which.log, &fresh)?;
            said(json, &json!({ "statement": seq, "signatures": signatures }), || {
                format!("statement {seq} now has {signatures} signatures")
            });
            Ok(())
        }
        LogCommand::Fetch { log } => {
            let answer = client.get("/v1/ledger")?;
            write(log, answer["log"].as_str().context("the node sent no log")?)?;
            said(json, &json!({ "written": log }), || format!("written to {}", log.display()));
            Ok(())
        }
        LogCommand::Reset => {
            let answer = client.post("/v1/ledger/reset", &json!({}))?;
            said(json, &answer, || {
                format!(
                    "the node goes by the {} statements that it has; the reset is in its audit log",
                    answer["statements"]
                )
            });
            Ok(())
        }
        LogCommand::Push { log } => {
            let answer = client.put("/v1/ledger", &json!({ "log": read(log)? }))?;
            said(json, &answer, || format!("the node now has {} statements", answer["statements"]));
            Ok(())
        }
    }
}

fn show(text: &str, json: bool) -> Result<()> {
    let entries = statement::entries(text)?;
    let checkpoint = ledger::parts(text).1;
    if json {
        println!("{}", json!({ "entries": entries, "checkpoint": checkpoint }));
        return Ok(());
    }
    for entry in entries {
        println!("{}  signed by {}", shown(&entry.statement), entry.signatures.len());
    }
    if let Some(note) = checkpoint {
        let head = Checkpoint::parse(note).map_err(anyhow::Error::msg)?;
        println!(
            "checkpoint of {} statements, origin {}, root {}",
            head.size,
            head.origin,
            measure::hex(&head.root)
        );
        println!(
            "{} signatures under it; trustctl log verify checks them",
            note.lines().filter(|l| l.starts_with('\u{2014}')).count()
        );
    }
    Ok(())
}

fn cosigned(
    log: &Path,
    origin: &str,
    done: &witness::Cosigned,
    asked: usize,
    json: bool,
) -> Result<()> {
    for (address, error) in &done.failed {
        eprintln!("warning: the witness {address} did not cosign: {error:#}");
    }
    if done.failed.len() == asked && asked > 0 {
        bail!("no witness cosigned; {} is as it was", log.display());
    }
    write(log, &done.log)?;
    let failed: Vec<_> = done
        .failed
        .iter()
        .map(|(address, why)| json!({ "witness": address, "why": format!("{why:#}") }))
        .collect();
    said(json, &json!({ "cosigned": done.seen, "failed": failed }), || {
        let seen = done.seen.len();
        format!(
            "signed by the log {origin}, cosignatures of {seen} witnesses under it\nNext: trustctl log push --log {}",
            log.display()
        )
    });
    Ok(())
}

fn signer(signing: &Signing, folder: &Path) -> Result<ledger::SigningKey> {
    keys::load_approver(&signing.key.clone().unwrap_or_else(|| folder.join("approver.key")))
}

fn read(log: &Path) -> Result<String> {
    match std::fs::read_to_string(log) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("cannot read {}", log.display())),
    }
}

fn write(log: &Path, text: &str) -> Result<()> {
    let temporary = log.with_extension("new");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, log))
        .with_context(|| format!("cannot write {}", log.display()))
}
