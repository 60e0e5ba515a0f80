//! `trustctl approve`, `revoke`, `approvers` and `log`: the approver's commands for a log in a
//! file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use ledger::{
    ApproversStatement, Change, Checkpoint, HighWaterMark, ImageStatement, Log, NoteKey, Statement,
    Status, TrustPolicy, WitnessPolicy,
};
use serde_json::json;
use trustctl::client::Client;
use trustctl::{keys, statement, witness};

use crate::cli::output::print_result;

const SECONDS_PER_DAY: u64 = 86_400;
/// Extension of the file next to a log's key that stores the checkpoint which was signed last.
const LAST_SIGNED_EXTENSION: &str = "seen";

/// A log and the ledger that it belongs to.
#[derive(clap::Args)]
pub(crate) struct LogArgs {
    /// Log file; fetch a node's with `trustctl log fetch`
    #[arg(long, value_name = "FILE", default_value = "ledger.jsonl")]
    log: PathBuf,
    /// Name of the ledger, as ledger.name of node.toml has it
    #[arg(long, value_name = "NAME", default_value = "home")]
    ledger: String,
}

/// A log and the key that signs its next entry.
#[derive(clap::Args)]
pub(crate) struct SigningArgs {
    #[command(flatten)]
    log: LogArgs,
    /// Approver's key [default: approver.key in the folder of keys]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Approve {
    /// Digest of the image's manifest: sha256:…
    digest: String,
    /// Days until the approval expires
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u64,
    #[command(flatten)]
    signing: SigningArgs,
}

#[derive(clap::Args)]
pub(crate) struct Revoke {
    /// Digest of the image's manifest: sha256:…
    digest: String,
    #[command(flatten)]
    signing: SigningArgs,
}

#[derive(clap::Args)]
pub(crate) struct Approvers {
    /// Public keys of all approvers from this entry on (`trustctl key show`)
    #[arg(required = true, value_name = "KEY")]
    public_keys: Vec<String>,
    /// Number of approvers that an approval needs
    #[arg(long, value_name = "N")]
    threshold: usize,
    #[command(flatten)]
    signing: SigningArgs,
}

#[derive(Subcommand)]
pub(crate) enum LogCommand {
    /// Print the entries of a log
    Show {
        /// Log file
        #[arg(long, value_name = "FILE", default_value = "ledger.jsonl")]
        log: PathBuf,
    },
    /// Verify every entry of a log, and its checkpoint, with the keys that a node pins
    Verify {
        #[command(flatten)]
        log: LogArgs,
        /// Public key of an approver; once for each
        #[arg(long, value_name = "KEY", required = true)]
        approver: Vec<String>,
        /// Number of approvers that an approval needs
        #[arg(long, value_name = "N", default_value_t = 1)]
        threshold: usize,
        /// Public key of the log (NAME+HASH+KEY); requires a checkpoint
        #[arg(long, value_name = "KEY")]
        log_key: Option<String>,
        /// Public key of a witness (NAME+HASH+KEY); once for each
        #[arg(long, value_name = "KEY", requires = "log_key")]
        witness_key: Vec<String>,
        /// Number of witnesses that must have cosigned the checkpoint
        #[arg(long, value_name = "N", default_value_t = 0)]
        witness_threshold: usize,
    },
    /// Sign a log's checkpoint and have witnesses cosign it; repeat it to keep the log fresh
    #[command(after_help = "The log is written if at least one witness cosigned. \
                            Witnesses implement C2SP tlog-witness.")]
    Cosign {
        #[command(flatten)]
        log: LogArgs,
        /// Key of the log [default: log.key in the folder of keys]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Address of a witness, without /add-checkpoint; once for each
        #[arg(long, value_name = "URL")]
        witness: Vec<String>,
        /// Public key of a witness (NAME+HASH+KEY), as node.toml has it; once for each.
        /// Cosignatures under other keys are dropped
        #[arg(long, value_name = "KEY")]
        witness_key: Vec<String>,
    },
    /// Add your signature to the newest entry of a log
    Sign {
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Withdraw your signature of the newest entry, which has too few: another entry takes its
    /// number, so that copies of your signature no longer count
    #[command(
        after_help = "Push the log at once. A node that has the entry with enough signatures \
                            rejects it; then only `trustctl revoke` ends an approval."
    )]
    Withdraw {
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Write a node's log to a file
    Fetch {
        /// Log file
        #[arg(long, value_name = "FILE", default_value = "ledger.jsonl")]
        log: PathBuf,
    },
    /// Make a node accept its present log as the newest, after a new card or another TPM; every
    /// later quote shows the reset
    Reset,
    /// Send a log to a node, which verifies all of it
    Push {
        /// Log file
        #[arg(long, value_name = "FILE", default_value = "ledger.jsonl")]
        log: PathBuf,
    },
}

pub(crate) fn approve(args: &Approve, folder: &Path, json: bool) -> Result<()> {
    append_image(
        &args.signing,
        folder,
        &args.digest,
        Status::Approved,
        args.days.saturating_mul(SECONDS_PER_DAY),
        json,
    )
}

pub(crate) fn revoke(args: &Revoke, folder: &Path, json: bool) -> Result<()> {
    append_image(
        &args.signing,
        folder,
        &args.digest,
        Status::Revoked,
        statement::REVOCATION_SECONDS,
        json,
    )
}

pub(crate) fn approvers(args: &Approvers, folder: &Path, json: bool) -> Result<()> {
    // The ledger's rules for a set of approvers apply to the new one.
    TrustPolicy::new(&args.signing.log.ledger, &args.public_keys, args.threshold)?;
    let (approvers, threshold, iat) = (args.public_keys.clone(), args.threshold, statement::now()?);
    append(&args.signing, folder, json, |seq| {
        ApproversStatement { approvers, iat, seq, status: Change::Approvers, threshold }.into()
    })
}

fn append_image(
    signing: &SigningArgs,
    folder: &Path,
    digest: &str,
    status: Status,
    lifetime: u64,
    json: bool,
) -> Result<()> {
    if digest.strip_prefix("sha256:").and_then(measure::unhex).is_none_or(|b| b.len() != 32) {
        bail!(
            "expected a digest, sha256: and 64 lower-case hex digits, found {digest:?}; \
             `docker images --digests` and the build print it"
        );
    }
    let now = statement::now()?;
    let digest = digest.to_owned();
    append(signing, folder, json, |seq| {
        ImageStatement { digest, exp: now.saturating_add(lifetime), iat: now, seq, status }.into()
    })
}

/// Appends a signed entry to the log file.
fn append(
    signing: &SigningArgs,
    folder: &Path,
    json: bool,
    statement: impl FnOnce(u64) -> Statement,
) -> Result<()> {
    let key = load_key(signing, folder)?;
    let before = read(&signing.log.log)?;
    let text = statement::append(&before, &signing.log.ledger, &key, statement)?;
    write(&signing.log.log, &text)?;
    let entries = statement::entries(&text)?;
    let Some(entry) = entries.last() else { bail!("the log entry was not added") };
    if json {
        println!("{}", json!(entry));
        return Ok(());
    }
    println!("{}", statement_text(&entry.statement));
    println!("signed by {}", keys::public_hex(&key));
    let log = signing.log.log.display();
    if ledger::split_checkpoint(&before).1.is_some() {
        println!(
            "Next: trustctl log sign --log {log} (by further approvers), \
             trustctl log cosign --log {log}, trustctl log push --log {log}"
        );
    } else {
        println!(
            "Next: trustctl log sign --log {log} (by further approvers), \
             trustctl log push --log {log}"
        );
    }
    Ok(())
}

fn statement_text(entry: &Statement) -> String {
    match entry {
        Statement::Image(image) if image.digest == statement::NO_IMAGE => {
            format!("{:5}  withdrawn  the number of an entry that was withdrawn", image.seq)
        }
        Statement::Image(image) => {
            let status = format!("{:?}", image.status).to_lowercase();
            format!("{:5}  {status:9}  {}  until {}", image.seq, image.digest, image.exp)
        }
        Statement::Approvers(set) => {
            format!("{:5}  approvers  {} of {}", set.seq, set.threshold, set.approvers.join(" "))
        }
    }
}

pub(crate) fn run(command: &LogCommand, folder: &Path, client: &Client, json: bool) -> Result<()> {
    match command {
        LogCommand::Show { log } => show(&read(log)?, json),
        LogCommand::Verify {
            log,
            approver,
            threshold,
            log_key,
            witness_key,
            witness_threshold,
        } => {
            let mut policy = TrustPolicy::new(&log.ledger, approver, *threshold)?;
            if let Some(key) = log_key {
                policy.witness_policy =
                    Some(WitnessPolicy::new(key, witness_key, *witness_threshold, u64::MAX)?);
            }
            verify(&log.log, &policy, *witness_threshold, json)
        }
        LogCommand::Cosign { log, key, witness, witness_key } => {
            let key = key.clone().unwrap_or_else(|| folder.join(keys::LOG));
            cosign(log, &key, witness, witness_key, json)
        }
        LogCommand::Sign { signing } => sign(signing, folder, json),
        LogCommand::Withdraw { signing } => withdraw(signing, folder, json),
        LogCommand::Fetch { log } => {
            write(log, &client.ledger_log()?)?;
            print_result(json, &json!({ "written": log }), || {
                format!("written to {}", log.display())
            })
        }
        LogCommand::Reset => {
            let answer = client.reset_ledger()?;
            print_result(json, &answer, || {
                format!(
                    "the node accepts its log of {} entries as the newest; \
                     the reset is in its audit log",
                    answer.statements
                )
            })
        }
        LogCommand::Push { log } => {
            let answer = client.push_log(read(log)?)?;
            print_result(json, &answer, || {
                format!("the node now has a log of {} entries", answer.statements)
            })
        }
    }
}

fn show(text: &str, json: bool) -> Result<()> {
    let entries = statement::entries(text)?;
    let checkpoint = ledger::split_checkpoint(text).1;
    if json {
        println!("{}", json!({ "entries": entries, "checkpoint": checkpoint }));
        return Ok(());
    }
    for entry in entries {
        println!("{}  {} signatures", statement_text(&entry.statement), entry.signatures.len());
    }
    if let Some(note) = checkpoint {
        let head = Checkpoint::parse(note)?;
        println!(
            "checkpoint of {} entries, origin {}, root {}",
            head.size,
            head.origin,
            measure::hex(&head.root)
        );
        println!(
            "{} signatures of the checkpoint; verify them with trustctl log verify",
            note.lines().filter(|line| line.starts_with('\u{2014}')).count()
        );
    }
    Ok(())
}

fn verify(log: &Path, policy: &TrustPolicy, witness_threshold: usize, json: bool) -> Result<()> {
    let replayed = Log::replay(policy, &read(log)?, &HighWaterMark::default())?;
    let seq = replayed.high_water_mark().seq;
    let witnessed_at = replayed.witnessed_at(statement::now()?);
    print_result(json, &json!({ "statements": seq, "witnessed": witnessed_at }), || {
        let witnesses = witnessed_at.map_or_else(String::new, |time| {
            format!(", cosigned by {witness_threshold} witnesses at {time} or later")
        });
        format!("{}: {seq} entries, in order and with valid signatures{witnesses}", log.display())
    })
}

fn cosign(
    log: &LogArgs,
    key_path: &Path,
    addresses: &[String],
    witness_keys: &[String],
    json: bool,
) -> Result<()> {
    let (key, vkey) = keys::load_log(key_path)?;
    let witness_keys =
        witness_keys.iter().map(|text| NoteKey::parse(text)).collect::<Result<Vec<_>, _>>()?;
    if witness_keys.is_empty() && !addresses.is_empty() {
        bail!(
            "--witness requires --witness-key, because only cosignatures under a known key count; \
             the keys are in ledger.checkpoints.witnesses of node.toml"
        );
    }
    let (text, last_signed) = (read(&log.log)?, key_path.with_extension(LAST_SIGNED_EXTENSION));
    let leaves = statement::leaves(&text, &log.ledger)?;
    witness::verify_continuation(&last_signed, &leaves)?;
    witness::store_last_signed(&last_signed, &leaves)?;
    let outcome = witness::cosign(&text, &leaves, &vkey.name, &key, addresses, &witness_keys)?;
    for (address, error) in &outcome.failed {
        eprintln!("warning: the witness {address} did not cosign: {error:#}");
    }
    if outcome.failed.len() == addresses.len() && !addresses.is_empty() {
        bail!("no witness cosigned; {} is unchanged", log.log.display());
    }
    write(&log.log, &outcome.log)?;
    let failed: Vec<_> = outcome
        .failed
        .iter()
        .map(|(address, error)| json!({ "witness": address, "reason": format!("{error:#}") }))
        .collect();
    print_result(json, &json!({ "cosigned": outcome.witnesses, "failed": failed }), || {
        format!(
            "checkpoint signed by the log {} and cosigned by {} witnesses\n\
             Next: trustctl log push --log {}",
            vkey.name,
            outcome.witnesses.len(),
            log.log.display()
        )
    })
}

fn sign(signing: &SigningArgs, folder: &Path, json: bool) -> Result<()> {
    let key = load_key(signing, folder)?;
    let text = read(&signing.log.log)?;
    let mut entries = statement::entries(&text)?;
    let last = entries.last_mut().context("the log is empty")?;
    last.sign(&signing.log.ledger, &key);
    let (seq, signatures) = (last.statement.seq(), last.signatures.len());
    let mut signed: String = entries.iter().map(|entry| entry.line() + "\n").collect();
    // The checkpoint covers the statements, not their signatures, so it stays valid.
    if let Some(checkpoint) = ledger::split_checkpoint(&text).1 {
        signed = format!("{signed}\n{checkpoint}");
    }
    write(&signing.log.log, &signed)?;
    print_result(json, &json!({ "statement": seq, "signatures": signatures }), || {
        format!("entry {seq} now has {signatures} signatures")
    })
}

fn withdraw(signing: &SigningArgs, folder: &Path, json: bool) -> Result<()> {
    let (key, path) = (load_key(signing, folder)?, &signing.log.log);
    let before = read(path)?;
    let text = statement::withdraw(&before, &signing.log.ledger, &key)?;
    write(path, &text)?;
    let entries = statement::entries(&text)?;
    let seq = entries.last().map_or(0, |entry| entry.statement.seq());
    let cosign = match ledger::split_checkpoint(&before).1 {
        Some(_) => format!("trustctl log cosign --log {}, ", path.display()),
        None => String::new(),
    };
    print_result(json, &json!({ "statement": seq, "withdrawn": true }), || {
        format!(
            "entry {seq} is now a revocation of no image, signed by {}\n\
             Next: {cosign}trustctl log push --log {}",
            keys::public_hex(&key),
            path.display()
        )
    })
}

fn load_key(signing: &SigningArgs, folder: &Path) -> Result<ledger::SigningKey> {
    keys::load_approver(&signing.key.clone().unwrap_or_else(|| folder.join("approver.key")))
}

/// Reads a log file; an absent file is an empty log.
fn read(log: &Path) -> Result<String> {
    match std::fs::read_to_string(log) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("cannot read {}", log.display())),
    }
}

/// Replaces a log file atomically.
fn write(log: &Path, text: &str) -> Result<()> {
    let temporary = log.with_extension("new");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, log))
        .with_context(|| format!("cannot write {}", log.display()))
}
