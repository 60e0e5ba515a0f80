//! The approver's side: a log in a file, statements, signatures.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use ledger::{Entry, HighWater, Log, Policy, Statement, Status};
use trustctl::client::Client;
use trustctl::keys;

/// Which log, and who signs.
#[derive(clap::Args)]
pub(crate) struct Signing {
    /// The log, a file of canonical JSON lines; fetch a node's with `trustctl log fetch`
    #[arg(long, default_value = "ledger.jsonl")]
    log: PathBuf,
    /// The ledger's name, as node.toml has it
    #[arg(long, default_value = "home")]
    ledger: String,
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

#[derive(Subcommand)]
pub(crate) enum LogCommand {
    /// Print the statements of a log
    Show {
        #[arg(long, default_value = "ledger.jsonl")]
        log: PathBuf,
    },
    /// Check every line of a log against the approvers that a node pins
    Verify {
        #[arg(long, default_value = "ledger.jsonl")]
        log: PathBuf,
        #[arg(long, default_value = "home")]
        ledger: String,
        /// Public key of an approver; once for each
        #[arg(long, required = true)]
        approver: Vec<String>,
        #[arg(long, default_value_t = 1)]
        threshold: usize,
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
    /// Let the node forget how far it has seen the log: after a new card or another TPM; everybody who asks for a quote sees it
    Reset,
    /// Send a log to the node, which checks all of it
    Push {
        #[arg(long, default_value = "ledger.jsonl")]
        log: PathBuf,
    },
}

pub(crate) fn approve(args: &Approve, folder: &Path) -> Result<()> {
    add(&args.signing, folder, &args.digest, Status::Approved, args.days)
}

pub(crate) fn revoke(args: &Revoke, folder: &Path) -> Result<()> {
    // A revocation is final; its expiry says nothing and is as far off as can be said.
    add(&args.signing, folder, &args.digest, Status::Revoked, 365 * 100)
}

fn add(signing: &Signing, folder: &Path, digest: &str, status: Status, days: u64) -> Result<()> {
    if digest.strip_prefix("sha256:").and_then(measure::unhex).is_none_or(|b| b.len() != 32) {
        bail!(
            "{digest:?} is not a digest: expected sha256: and 64 lower-case hex digits, as `docker images --digests` or the build print it"
        );
    }
    let key = signer(signing, folder)?;
    let mut text = read(&signing.log)?;
    let entries = parse(&text)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seq = entries.last().map_or(0, |e| e.statement.seq) + 1;
    let mut entry = Entry::new(Statement { digest: digest.to_owned(), exp: now + days * 86_400, iat: now, seq, status });
    entry.sign(&signing.ledger, &key);
    text.push_str(&entry.line());
    text.push('\n');
    write(&signing.log, &text)?;
    println!("statement {seq}: {status:?} {digest}, signed by {}", keys::public_hex(&key));
    println!("Next: trustctl log push --log {}   (or first `trustctl log sign` by further approvers)", signing.log.display());
    Ok(())
}

pub(crate) fn log(command: &LogCommand, folder: &Path, client: &Client) -> Result<()> {
    match command {
        LogCommand::Show { log } => {
            for entry in parse(&read(log)?)? {
                let s = &entry.statement;
                println!(
                    "{:5}  {:8}  {}  until {}  signed by {}",
                    s.seq,
                    format!("{:?}", s.status).to_lowercase(),
                    s.digest,
                    s.exp,
                    entry.signatures.len()
                );
            }
        }
        LogCommand::Verify { log, ledger, approver, threshold } => {
            let policy = Policy::new(ledger, approver, *threshold)?;
            let replayed = Log::replay(&policy, &read(log)?, &HighWater::default())?;
            println!("{}: {} statements, all in order and signed", log.display(), replayed.high_water.seq);
        }
        LogCommand::Sign { signing } => {
            let key = signer(signing, folder)?;
            let text = read(&signing.log)?;
            let mut entries = parse(&text)?;
            let last = entries.last_mut().context("the log is empty")?;
            last.sign(&signing.ledger, &key);
            println!("statement {} now has {} signatures", last.statement.seq, last.signatures.len());
            let text: String = entries.iter().map(|e| e.line() + "\n").collect();
            write(&signing.log, &text)?;
        }
        LogCommand::Fetch { log } => {
            let answer = client.get("/v1/ledger")?;
            write(log, answer["log"].as_str().context("the node sent no log")?)?;
            println!("written to {}", log.display());
        }
        LogCommand::Reset => {
            let answer = client.post("/v1/ledger/reset", &serde_json::json!({}))?;
            println!("the node goes by the {} statements that it has; the reset is in its audit log", answer["statements"]);
        }
        LogCommand::Push { log } => {
            let answer = client.put("/v1/ledger", &serde_json::json!({ "log": read(log)? }))?;
            println!("the node now has {} statements", answer["statements"]);
        }
    }
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

fn parse(text: &str) -> Result<Vec<Entry>> {
    text.lines()
        .enumerate()
        .map(|(n, line)| serde_json::from_str(line).with_context(|| format!("line {} of the log is not a statement", n + 1)))
        .collect()
}
