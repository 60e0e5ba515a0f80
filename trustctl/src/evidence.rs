//! Checks what a node says of itself: a quote of its TPM, the logs that explain it, and what the
//! TPM is.
//!
//! Invariant: nothing of an answer is believed but what follows from the TPM's signature, and that
//! only as far as the TPM is known.

use std::collections::BTreeMap;

use measure::{
    AttestedStatement, AttestedStatementError, KeyError, LogError, MODULES_PCR, Measurements,
    NODE_SETTINGS, PLATFORM_PCR, Pcr, Quote, QuoteError, Record, TpmKey, compare, hex, replay,
    unhex, verify_quote,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Evidence that holds together.
pub struct Checked {
    pub statement: AttestedStatement,
    pub quote: Quote,
    /// What signed it.
    pub key: TpmKey,
    pub platform: Vec<Record>,
    pub modules: Vec<Record>,
    pub pcrs: BTreeMap<u32, Pcr>,
    /// Of the measurements that it was compared with.
    pub board: Option<String>,
}

/// Why evidence does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the answer has no usable {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    AttestedStatement(#[from] AttestedStatementError),
    #[error("the answer is to another question: expected the nonce {expected}, found {found}")]
    Nonce { expected: String, found: String },
    #[error(
        "the node showed the certificate {expected}, and what its TPM signed speaks of {found}: another node's answer is passed on here"
    )]
    Certificate { expected: String, found: String },
    #[error("what the TPM signed is a statement about {found}, not about {expected}")]
    Kind { expected: &'static str, found: &'static str },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "record {at} of the log has the number {found}: records are missing or in another order"
    )]
    Order { at: u64, found: u64 },
    #[error("{0}")]
    Register(String),
    #[error("the logs and the TPM's quote do not fit together: {0}")]
    Quote(#[from] QuoteError),
    #[error("the TPM began anew while the node ran: the log has {expected}, the quote {found}")]
    Reset { expected: String, found: String },
    #[error("{0}")]
    Boot(Box<Mismatch>),
    #[error("the TPM is not the one that was asked for: {0}")]
    Tpm(String),
}

/// Where a boot is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub board: String,
    pub event: u64,
    pub kind: String,
    pub expected: Option<String>,
    pub found: Option<String>,
    pub likely: &'static str,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |data: &Option<String>| {
            data.as_ref().map_or_else(|| "nothing".into(), |data| format!("{data:?}"))
        };
        write!(
            f,
            "this boot is not the expected image on the board {}: event {} ({}): expected {}, found {}; likely {}",
            self.board,
            self.event,
            self.kind,
            shown(&self.expected),
            shown(&self.found),
            self.likely
        )
    }
}

/// What most often makes an event differ.
fn likely(kind: &str, found: bool) -> &'static str {
    if !found {
        return "the log was cut off, or init stopped before it handed over";
    }
    match kind {
        "variant" => "another variant, or the image of another machine, was flashed",
        "kernel-command-line" => "another version of the image, or somebody edited cmdline.txt",
        "device-tree" => "a board, a revision or an overlay that these measurements do not list",
        "boot-partition" => {
            "a file on the boot partition was changed, added or removed; compare it with the image's manifest"
        }
        NODE_SETTINGS => {
            "a node.toml on its boot partition; if you put it there, name that file with --settings"
        }
        "verity-root" => "another version of the image",
        "init" | "trustd" | "engine" => {
            "another version of this program in another root: another version of the image"
        }
        "configuration" => "another version of the image, or one that was built with other keys",
        _ => "another version of Basalt, or somebody extended the register after init",
    }
}

impl Failure {
    /// Stays the same while the reason does.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::AttestedStatement(_) => "malformed",
            Self::Nonce { .. } => "nonce",
            Self::Certificate { .. } => "certificate",
            Self::Kind { .. } => "kind",
            Self::Key(_) => "key",
            Self::Log(_) | Self::Order { .. } => "log",
            Self::Register(_) | Self::Quote(_) => "quote",
            Self::Reset { .. } => "reset",
            Self::Boot(_) => "boot",
            Self::Tpm(_) => "tpm",
        }
    }

    pub fn json(&self) -> Value {
        let mut value = json!({ "code": self.code(), "message": self.to_string() });
        if let Self::Boot(mismatch) = self {
            let Mismatch { board, event, kind, expected, found, likely } = &**mismatch;
            value["event"] = json!({ "board": board, "number": event, "type": kind, "expected": expected, "found": found, "likely": likely });
        }
        value
    }
}

fn bytes(answer: &Value, key: &'static str) -> Result<Vec<u8>, Failure> {
    answer[key].as_str().and_then(unhex).ok_or(Failure::Malformed(key))
}

fn member<T: DeserializeOwned>(answer: &Value, key: &'static str) -> Result<T, Failure> {
    serde_json::from_value(answer[key].clone()).map_err(|_| Failure::Malformed(key))
}

/// The node states what the nonce is the answer to, and says so about nothing else; the signature
/// covers that statement and the registers; the logs replay to the registers; the platform's events
/// are the expected ones.
///
/// # Errors
/// [`Failure`]: the first thing that does not hold.
pub fn check(
    answer: &Value,
    nonce: &[u8],
    expected: Option<&Measurements>,
) -> Result<Checked, Failure> {
    let statement = AttestedStatement::read(&member::<String>(answer, "statement")?)?;
    if statement.nonce() != hex(nonce) {
        return Err(Failure::Nonce { expected: hex(nonce), found: statement.nonce().to_owned() });
    }
    let (platform, modules): (Vec<Record>, Vec<Record>) =
        (member(answer, "platform_log")?, member(answer, "modules_log")?);
    // Numbers say the place: none may be missing.
    for log in [&platform, &modules] {
        if let Some((at, record)) = (0u64..).zip(log).find(|(at, record)| record.recnum != *at) {
            return Err(Failure::Order { at, found: record.recnum });
        }
    }
    if let Some(record) = modules.iter().find(|r| r.pcr != MODULES_PCR) {
        return Err(Failure::Register(format!(
            "a module's event ({}) is not in PCR {MODULES_PCR}",
            record.content.kind
        )));
    }
    let replayed = replay(platform.iter().chain(&modules))?;
    let pcrs: BTreeMap<u32, Pcr> = [PLATFORM_PCR, MODULES_PCR]
        .into_iter()
        .map(|n| (n, replayed.get(&n).copied().unwrap_or_default()))
        .collect();
    if let Some(other) = replayed.keys().find(|n| !pcrs.contains_key(n)) {
        return Err(Failure::Register(format!(
            "a log has events for PCR {other}, which is not {PLATFORM_PCR} or {MODULES_PCR}"
        )));
    }
    let key = TpmKey::attestation(&bytes(answer, "key")?)?;
    let quote = verify_quote(
        &key,
        &bytes(answer, "attest")?,
        &bytes(answer, "signature")?,
        &statement.qualifying_data(),
        &pcrs,
    )?;
    same_run(&modules, &quote)?;
    let mut checked = Checked { statement, quote, key, platform, modules, pcrs, board: None };
    if let Some(expected) = expected {
        checked.boot(expected)?;
    }
    Ok(checked)
}

impl Checked {
    /// That the boot is the one of an image; which of its boards it is on is kept.
    ///
    /// # Errors
    /// [`Failure::Boot`], [`Failure::Register`]
    pub fn boot(&mut self, expected: &Measurements) -> Result<(), Failure> {
        self.board = Some(of_board(expected, &self.platform, &self.pcrs)?);
        Ok(())
    }
}

/// trustd wrote down how often the TPM had begun anew; the quote says it now.
fn same_run(modules: &[Record], quote: &Quote) -> Result<(), Failure> {
    let found = json!({ "reset": quote.reset_count, "restart": quote.restart_count }).to_string();
    match modules.iter().find(|record| record.content.kind == "tpm-clock") {
        Some(record) if record.content.data == found => Ok(()),
        Some(record) => Err(Failure::Reset { expected: record.content.data.clone(), found }),
        None => Err(Failure::Reset { expected: "no event tpm-clock".into(), found }),
    }
}

/// The board whose prediction this boot is.
fn of_board(
    expected: &Measurements,
    platform: &[Record],
    pcrs: &BTreeMap<u32, Pcr>,
) -> Result<String, Failure> {
    let expected =
        expected.board_of(platform).ok_or(Failure::Malformed("board in the measurements"))?;
    if let Some(part) = compare(&expected.events, platform) {
        let kind = part
            .found
            .as_ref()
            .or(part.expected.as_ref())
            .map(|r| r.content.kind.clone())
            .unwrap_or_default();
        return Err(Failure::Boot(Box::new(Mismatch {
            board: expected.board.clone(),
            event: part.recnum,
            likely: likely(&kind, part.found.is_some()),
            kind,
            expected: part.expected.map(|r| r.content.data),
            found: part.found.map(|r| r.content.data),
        })));
    }
    let found = hex(&pcrs[&PLATFORM_PCR].0);
    match expected.pcrs.get(&PLATFORM_PCR.to_string()) {
        Some(value) if *value == found => Ok(expected.board.clone()),
        other => Err(Failure::Register(format!(
            "PCR {PLATFORM_PCR}: expected {}, found {found}",
            other.map_or("none", String::as_str)
        ))),
    }
}
