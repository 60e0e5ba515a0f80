//! Asking witnesses to cosign a log: the client's side of C2SP tlog-witness.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger::merkle::{self, Hash, Tree};
use ledger::{Checkpoint, SigningKey};

use crate::statement;

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: u64 = 64 * 1024;

/// What came of asking.
pub struct Cosigned {
    /// The log with its checkpoint.
    pub log: String,
    /// The names in the lines that witnesses answered.
    pub seen: Vec<String>,
    /// Which witness did not cosign, and why.
    pub failed: Vec<(String, anyhow::Error)>,
}

/// Puts a checkpoint of all its statements under a log: signed by the log's key, then seen by each witness that can be reached.
///
/// Cosignatures that are there already and are of the same checkpoint stay where a witness gives no newer one.
pub fn cosign(log: &str, ledger: &str, origin: &str, key: &SigningKey, witnesses: &[String]) -> Result<Cosigned> {
    let leaves = statement::leaves(log, ledger)?;
    let tree: Tree = leaves.iter().copied().collect();
    let checkpoint = Checkpoint { origin: origin.to_owned(), size: tree.size(), root: tree.root() };
    let note = checkpoint.sign(key).map_err(anyhow::Error::msg)?;
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for witness in witnesses {
        match ask(witness, &note, &leaves) {
            Ok(answer) => lines.extend(answer),
            Err(error) => failed.push((witness.clone(), error)),
        }
    }
    let seen: Vec<String> = lines.iter().filter_map(|line| name(line)).map(str::to_owned).collect();
    let (statements, before) = ledger::parts(log);
    if let Some(before) = before.filter(|before| Checkpoint::parse(before).is_ok_and(|c| c == checkpoint)) {
        let older = before.lines().filter(|line| name(line).is_some_and(|n| n != origin && !seen.iter().any(|s| s == n)));
        lines.extend(older.map(str::to_owned));
    }
    let lines: String = lines.into_iter().map(|line| line + "\n").collect();
    Ok(Cosigned { log: format!("{statements}\n{note}{lines}"), seen, failed })
}

/// Whose signature a line is.
fn name(line: &str) -> Option<&str> {
    line.strip_prefix("\u{2014} ")?.split(' ').next()
}

/// Shows a witness the checkpoint, and that it continues what the witness saw before.
fn ask(witness: &str, note: &str, leaves: &[Hash]) -> Result<Vec<String>> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(ANSWER_WITHIN)).http_status_as_error(false).max_redirects(0).build().into();
    let url = format!("{}/add-checkpoint", witness.trim_end_matches('/'));
    // What the witness has seen is asked for by a first guess, which it corrects.
    let mut old = 0;
    for _ in 0..3 {
        let proof = merkle::consistency(leaves, old)
            .with_context(|| format!("it has seen {old} statements and this log has only {}: fetch the newer one", leaves.len()))?;
        let proof: String = proof.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
        let mut answer = agent.post(&url).send(format!("old {old}\n{proof}\n{note}"))?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string()?;
        match status {
            200 => {
                let lines: Vec<String> = text.lines().filter(|line| name(line).is_some()).map(str::to_owned).collect();
                if lines.is_empty() {
                    bail!("it answers without a signature");
                }
                return Ok(lines);
            }
            409 => {
                let size: usize = text.trim().parse().with_context(|| format!("it answers 409 without a size: {}", text.trim()))?;
                if size == old {
                    bail!("it has seen another log of {size} statements than this: the log was forked");
                }
                old = size;
            }
            404 => bail!("it does not know this log (404); give it the log's key: trustctl key show"),
            403 => bail!("it does not take the log's signature (403); is its key of this log another one?"),
            422 => bail!("it has seen {old} other statements than these (422): the log was forked"),
            other => bail!("it answers {other}: {}", text.trim()),
        }
    }
    bail!("it keeps changing what it says it has seen")
}
