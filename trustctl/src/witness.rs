//! Asking witnesses to cosign a log: the client's side of C2SP tlog-witness.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger::merkle::{self, Hash, Tree};
use ledger::{Checkpoint, NoteKey, SigningKey};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: u64 = 64 * 1024;

/// What came of asking.
pub struct Cosigned {
    /// The log with its checkpoint.
    pub log: String,
    /// The witnesses whose cosignatures are under it now.
    pub seen: Vec<String>,
    /// Which witness did not cosign, and why.
    pub failed: Vec<(String, anyhow::Error)>,
}

/// Puts a checkpoint of all its statements under a log: signed by the log's key, then seen by each
/// witness that can be reached.
///
/// What does not hold as a cosignature by one of `keys` is left out, whoever sent it; of each
/// witness the newest stays. `leaves` are those of the log ([`crate::statement::leaves`]).
pub fn cosign(
    log: &str,
    leaves: &[Hash],
    origin: &str,
    key: &SigningKey,
    witnesses: &[String],
    keys: &[NoteKey],
) -> Result<Cosigned> {
    let tree: Tree = leaves.iter().copied().collect();
    let checkpoint = Checkpoint { origin: origin.to_owned(), size: tree.size(), root: tree.root() };
    let note = checkpoint.sign(key).map_err(anyhow::Error::msg)?;
    let (statements, before) = ledger::parts(log);
    let (mut answers, mut failed) = (before.unwrap_or_default().to_owned(), Vec::new());
    for witness in witnesses {
        match ask(witness, &note, leaves) {
            Ok(answer) if ledger::cosignatures(&note, &answer, keys).is_empty() => {
                failed.push((
                    witness.clone(),
                    anyhow::anyhow!(
                        "nothing that it answers is a cosignature by a witness that was named"
                    ),
                ));
            }
            Ok(answer) => answers = format!("{answers}\n{answer}"),
            Err(error) => failed.push((witness.clone(), error)),
        }
    }
    let mut newest: BTreeMap<String, (u64, &str)> = BTreeMap::new();
    for (name, time, line) in ledger::cosignatures(&note, &answers, keys) {
        let held = newest.entry(name).or_insert((time, line));
        if time > held.0 {
            *held = (time, line);
        }
    }
    let lines: String = newest.values().map(|(_, line)| format!("{line}\n")).collect();
    Ok(Cosigned {
        log: format!("{statements}\n{note}{lines}"),
        seen: newest.into_keys().collect(),
        failed,
    })
}

/// What a log's key signed last, beside the key: it signs nothing that does not continue it, since
/// no witness would cosign it again.
pub fn continues(seen: &Path, leaves: &[Hash]) -> Result<()> {
    let text = match std::fs::read_to_string(seen) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot read {}", seen.display()))?,
    };
    let damaged =
        || format!("{} is damaged: expected a number of statements and a root", seen.display());
    let (size, root) = text.trim().split_once(' ').with_context(damaged)?;
    let size: usize = size.parse().with_context(damaged)?;
    if leaves.get(..size).map(root_of).as_deref() != Some(root) {
        bail!(
            "this log does not continue the {size} statements that its key signed last: is it the newest one? Witnesses would take it for a fork"
        );
    }
    Ok(())
}

/// Remembers what is about to be signed.
pub fn remember(seen: &Path, leaves: &[Hash]) -> Result<()> {
    std::fs::write(seen, format!("{} {}\n", leaves.len(), root_of(leaves)))
        .with_context(|| format!("cannot write {}", seen.display()))
}

fn root_of(leaves: &[Hash]) -> String {
    measure::hex(&leaves.iter().copied().collect::<Tree>().root())
}

/// Shows a witness the checkpoint, and that it continues what the witness saw before.
fn ask(witness: &str, note: &str, leaves: &[Hash]) -> Result<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_WITHIN))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into();
    let url = format!("{}/add-checkpoint", witness.trim_end_matches('/'));
    // What the witness has seen is asked for by a first guess, which it corrects.
    let mut old = 0;
    for _ in 0..3 {
        let proof = merkle::consistency(leaves, old).with_context(|| {
            format!(
                "it has seen {old} statements and this log has only {}: fetch the newer one",
                leaves.len()
            )
        })?;
        let proof: String = proof.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
        let mut answer = agent.post(&url).send(format!("old {old}\n{proof}\n{note}"))?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string()?;
        match status {
            200 => return Ok(text),
            409 => {
                let size: usize = text.trim().parse().with_context(|| {
                    format!("it answers 409 without a size: {}", printable(&text))
                })?;
                if size == old {
                    bail!(
                        "it has seen another log of {size} statements than this: the log was forked"
                    );
                }
                old = size;
            }
            404 => {
                bail!("it does not know this log (404); give it the log's key: trustctl key show")
            }
            403 => bail!(
                "it does not take the log's signature (403); is its key of this log another one?"
            ),
            422 => bail!("it has seen {old} other statements than these (422): the log was forked"),
            other => bail!("it answers {other}: {}", printable(&text)),
        }
    }
    bail!("it keeps changing what it says it has seen")
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
