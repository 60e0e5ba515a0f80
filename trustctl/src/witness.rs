//! Cosignatures of witnesses for a log's checkpoint: the client's side of C2SP tlog-witness.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger::merkle::{self, Hash, Tree};
use ledger::{Checkpoint, NoteKey, SigningKey};

use crate::http::{agent, excerpt};

const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// Requests to one witness, each with the size that the answer before named.
const MAX_ATTEMPTS: u32 = 3;

/// Result of asking witnesses for cosignatures.
pub struct CosignOutcome {
    /// The log with its checkpoint and all valid cosignatures.
    pub log: String,
    /// Names of the witnesses whose cosignatures the checkpoint has.
    pub witnesses: Vec<String>,
    /// Addresses of the witnesses that did not cosign, each with the reason.
    pub failed: Vec<(String, anyhow::Error)>,
}

/// Appends a checkpoint to a log, signed with the log's key and cosigned by each witness that can
/// be reached.
///
/// Lines that are not valid cosignatures under one of `keys` are dropped, whatever their source; of
/// each witness the newest cosignature stays. `leaves` are those of the log
/// ([`crate::statement::leaves`]).
///
/// # Errors
/// Returns an error if the checkpoint cannot be signed. A witness that fails is not an error, but
/// listed in the result.
pub fn cosign(
    log: &str,
    leaves: &[Hash],
    origin: &str,
    key: &SigningKey,
    witnesses: &[String],
    keys: &[NoteKey],
) -> Result<CosignOutcome> {
    let tree: Tree = leaves.iter().copied().collect();
    let checkpoint = Checkpoint { origin: origin.to_owned(), size: tree.size(), root: tree.root() };
    let note = checkpoint.sign(key)?;
    let (entries, before) = ledger::split_checkpoint(log);
    let (mut answers, mut failed) = (before.unwrap_or_default().to_owned(), Vec::new());
    for witness in witnesses {
        match add_checkpoint(witness, &note, leaves) {
            Ok(answer) if ledger::valid_cosignatures(&note, &answer, keys).is_empty() => {
                failed.push((
                    witness.clone(),
                    anyhow::anyhow!(
                        "its answer has no valid cosignature under one of the witnesses' keys"
                    ),
                ));
            }
            Ok(answer) => answers = format!("{answers}\n{answer}"),
            Err(error) => failed.push((witness.clone(), error)),
        }
    }
    let mut newest: BTreeMap<String, (u64, &str)> = BTreeMap::new();
    for (name, time, line) in ledger::valid_cosignatures(&note, &answers, keys) {
        let entry = newest.entry(name).or_insert((time, line));
        if time > entry.0 {
            *entry = (time, line);
        }
    }
    let lines: String = newest.values().map(|(_, line)| format!("{line}\n")).collect();
    Ok(CosignOutcome {
        log: format!("{entries}\n{note}{lines}"),
        witnesses: newest.into_keys().collect(),
        failed,
    })
}

/// Requires that a log continues the checkpoint that its key signed last, which is stored in
/// `last`. Witnesses would never cosign another one.
///
/// # Errors
/// Returns an error if the log does not continue it, or if the file cannot be read.
pub fn verify_continuation(last: &Path, leaves: &[Hash]) -> Result<()> {
    let text = match std::fs::read_to_string(last) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot read {}", last.display()))?,
    };
    let damaged =
        || format!("{} is damaged: expected a number of log entries and a root", last.display());
    let (size, root) = text.trim().split_once(' ').with_context(damaged)?;
    let size: usize = size.parse().with_context(damaged)?;
    if leaves.get(..size).map(root_hex).as_deref() != Some(root) {
        bail!(
            "this log does not continue the {size} log entries that its key signed last; \
             is it the newest one? Witnesses would reject it as a fork"
        );
    }
    Ok(())
}

/// Stores size and root of the log in `last`, before its checkpoint is signed.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn store_last_signed(last: &Path, leaves: &[Hash]) -> Result<()> {
    std::fs::write(last, format!("{} {}\n", leaves.len(), root_hex(leaves)))
        .with_context(|| format!("cannot write {}", last.display()))
}

fn root_hex(leaves: &[Hash]) -> String {
    measure::hex(&leaves.iter().copied().collect::<Tree>().root())
}

/// Sends a witness the checkpoint, with a proof that it continues the one that the witness has.
fn add_checkpoint(witness: &str, note: &str, leaves: &[Hash]) -> Result<String> {
    let agent = agent();
    let url = format!("{}/add-checkpoint", witness.trim_end_matches('/'));
    // The witness corrects a wrong size in its answer, so the first request claims none.
    let mut old = 0;
    for _ in 0..MAX_ATTEMPTS {
        let proof = merkle::consistency_proof(leaves, old).with_context(|| {
            format!(
                "it has seen {old} log entries and this log has only {}: fetch the newer log",
                leaves.len()
            )
        })?;
        let proof: String = proof.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
        let mut answer = agent.post(&url).send(format!("old {old}\n{proof}\n{note}"))?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string()?;
        match status {
            200 => return Ok(text),
            409 => {
                let size: usize = text.trim().parse().with_context(|| {
                    format!("it answers 409 without a size: {}", excerpt(&text))
                })?;
                if size == old {
                    bail!("it has seen another log of {size} log entries: the log was forked");
                }
                old = size;
            }
            404 => {
                bail!("it does not know this log (404); give it the log's key: trustctl key show")
            }
            403 => bail!(
                "it rejects the log's signature (403); does it have another key for this log?"
            ),
            422 => bail!("it has seen {old} other log entries (422): the log was forked"),
            other => bail!("it answers {other}: {}", excerpt(&text)),
        }
    }
    bail!("it names another size in each of {MAX_ATTEMPTS} answers")
}
