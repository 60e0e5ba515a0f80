//! Checks what a node answers to a request for a quote.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use measure::{
    MODULES_PCR, Measurements, NODE_SETTINGS, PLATFORM_PCR, Pcr, Quote, Record, Statement, TpmKey, compare, hex, replay, unhex,
    verify_quote,
};
use serde_json::Value;

/// Evidence that holds together.
pub struct Checked {
    pub statement: Statement,
    pub quote: Quote,
    pub platform: Vec<Record>,
    pub modules: Vec<Record>,
    pub pcrs: BTreeMap<u32, Pcr>,
}

/// The node states what the nonce is the answer to, and says so about nothing else; the signature covers that statement and the registers; the logs replay to the registers; the platform's events are the
/// expected ones. Nothing of the answer is believed but what follows from the signature.
pub fn check(answer: &Value, nonce: &[u8], expected: Option<&Measurements>) -> Result<Checked> {
    let statement = Statement::read(answer["statement"].as_str().context("the answer has no statement")?)?;
    ensure!(statement.nonce() == hex(nonce), "the answer is to another question: its nonce is not the one that was sent");
    let bytes = |key: &str| answer[key].as_str().and_then(unhex).with_context(|| format!("the answer has no {key}"));
    let records = |key: &str| -> Result<Vec<Record>> {
        serde_json::from_value(answer[key].clone()).with_context(|| format!("the answer has no {key}"))
    };
    let (platform, modules) = (records("platform_log")?, records("modules_log")?);
    // Numbers say the place: none may be missing.
    for log in [&platform, &modules] {
        for (n, record) in log.iter().enumerate() {
            ensure!(record.recnum == n as u64, "record {n} of a log has the number {}", record.recnum);
        }
    }
    ensure!(modules.iter().all(|r| r.pcr == MODULES_PCR), "a module's event is not in PCR {MODULES_PCR}");
    let replayed = replay(platform.iter().chain(&modules))?;
    let pcrs: BTreeMap<u32, Pcr> =
        [PLATFORM_PCR, MODULES_PCR].into_iter().map(|n| (n, replayed.get(&n).copied().unwrap_or_default())).collect();
    ensure!(replayed.keys().all(|n| pcrs.contains_key(n)), "a log has events for other registers than {PLATFORM_PCR} and {MODULES_PCR}");
    let quote =
        verify_quote(&TpmKey::attestation(&bytes("key")?)?, &bytes("attest")?, &bytes("signature")?, &statement.qualifying_data(), &pcrs)
            .context("the logs and the TPM's quote do not fit together")?;
    if let Some(expected) = expected {
        let expected = expected.board_of(&platform).context("the measurements name no board")?;
        if let Some(divergence) = compare(&expected.events, &platform) {
            let settings = platform.get(divergence.recnum as usize).is_some_and(|r| r.content.kind == NODE_SETTINGS);
            let hint = if settings { "; if you put a node.toml on its boot partition, name that file with --settings" } else { "" };
            bail!("this boot is not the expected image on the board {}: {divergence}{hint}", expected.board);
        }
        let found = hex(&pcrs[&PLATFORM_PCR].0);
        ensure!(
            expected.pcrs.get(&PLATFORM_PCR.to_string()) == Some(&found),
            "PCR {PLATFORM_PCR}: expected {:?}, found {found}",
            expected.pcrs.get(&PLATFORM_PCR.to_string())
        );
    }
    Ok(Checked { statement, quote, platform, modules, pcrs })
}
