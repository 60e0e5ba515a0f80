//! Verification of a node's evidence: a quote of its TPM and the event logs that explain it.
//!
//! Invariant: only what follows from the TPM's signature is trusted, and only as far as the TPM
//! itself is known ([`crate::endorsement`]).

use std::collections::BTreeMap;

use api::Evidence;
use measure::{
    AttestedStatement, AttestedStatementError, KeyError, LogError, MODULES_PCR, Measurements,
    NODE_SETTINGS, PLATFORM_PCR, Pcr, Quote, QuoteError, Record, TpmKey, compare, hex, replay,
    unhex, verify_quote,
};
use serde_json::{Value, json};

/// Evidence whose statement, quote, key and logs match each other.
pub struct VerifiedEvidence {
    /// Statement that the TPM signed.
    pub statement: AttestedStatement,
    /// Quote with the TPM's clock and counters.
    pub quote: Quote,
    /// Attestation key that signed the quote.
    pub key: TpmKey,
    /// Events of the boot.
    pub platform: Vec<Record>,
    /// Events of modules.
    pub modules: Vec<Record>,
    /// Values of PCR 14 and 15.
    pub pcrs: BTreeMap<u32, Pcr>,
    /// Board whose prediction the boot matches; `None` before [`Self::compare_boot`].
    pub board: Option<String>,
}

/// Reason why evidence was rejected.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// A member of the answer has another form.
    #[error("the answer has no valid {0}")]
    Malformed(&'static str),
    /// The answer or the file does not have the members of evidence.
    #[error("this does not have the form of evidence")]
    Form(#[source] serde_json::Error),
    /// The statement is malformed.
    #[error(transparent)]
    Statement(#[from] AttestedStatementError),
    /// The statement has another nonce.
    #[error("the answer is to another request: expected the nonce {expected}, found {found}")]
    Nonce {
        /// Nonce that was sent, hex.
        expected: String,
        /// Nonce in the statement, hex.
        found: String,
    },
    /// The statement names another certificate than the connection had.
    #[error(
        "the answer belongs to another connection: the node showed the certificate {expected}, \
         its TPM signed a statement about {found}; a node in between may pass on answers of another"
    )]
    Certificate {
        /// SHA-256 of the certificate that the node showed, hex.
        expected: String,
        /// SHA-256 of the certificate in the statement, hex.
        found: String,
    },
    /// The statement is of another kind.
    #[error("expected a statement about {expected}, the TPM signed one about {found}")]
    Kind {
        /// Subject of the statement that was requested.
        expected: &'static str,
        /// Subject of the statement that came.
        found: &'static str,
    },
    /// The key that signed is not an attestation key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A record's digest does not match its content.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The numbers of a log's records have a gap.
    #[error("record {at} of the log has the number {found}: records are missing or out of order")]
    Order {
        /// Place in the log, from 0.
        at: u64,
        /// Number that the record has.
        found: u64,
    },
    /// A register has another value, or an event belongs to another register.
    #[error("{0}")]
    Register(String),
    /// The quote is invalid, or its digest is not that of the replayed logs.
    #[error("the TPM's quote does not match the logs")]
    Quote(#[from] QuoteError),
    /// The TPM was reset after trustd recorded its counters.
    #[error("the TPM was reset while the node ran: the log has {expected}, the quote {found}")]
    Reset {
        /// Counters in the log.
        expected: String,
        /// Counters in the quote.
        found: String,
    },
    /// An event of the boot differs from the reference values.
    #[error("{0}")]
    Boot(Box<Mismatch>),
    /// The endorsement key, its certificate or its name is not the expected one.
    #[error("the TPM is not the expected one: {0}")]
    Tpm(String),
}

/// First event of a boot that differs from the reference values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Board whose prediction the log matches longest.
    pub board: String,
    /// Number of the event, from 0.
    pub event: u64,
    /// Type of the event.
    pub kind: String,
    /// Predicted data; `None` if the log has more events than predicted.
    pub expected: Option<String>,
    /// Data in the log; `None` if the log ends before this event.
    pub found: Option<String>,
    /// Most frequent cause of a difference in this event.
    pub likely_cause: &'static str,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |data: &Option<String>| {
            data.as_ref().map_or_else(|| "nothing".into(), |data| format!("{data:?}"))
        };
        write!(
            f,
            "this boot is not the expected image on the board {}: event {} ({}): \
             expected {}, found {}; likely cause: {}",
            self.board,
            self.event,
            self.kind,
            quoted(&self.expected),
            quoted(&self.found),
            self.likely_cause
        )
    }
}

/// Returns the most frequent cause of a difference in an event of this type.
fn likely_cause(kind: &str, found: bool) -> &'static str {
    if !found {
        return "the log was truncated, or init stopped before it handed the TPM over";
    }
    match kind {
        "variant" => "another variant, or the image of another machine, was flashed",
        "kernel-command-line" => "another version of the image, or an edited cmdline.txt",
        "device-tree" => "a board, revision or overlay that these measurements do not list",
        "boot-partition" => {
            "a file on the boot partition was changed, added or removed; \
             compare it with the image's manifest"
        }
        NODE_SETTINGS => {
            "a node.toml on the boot partition; if it is yours, name that file with --settings"
        }
        "verity-root" => "another version of the image",
        "init" | "trustd" | "engine" => {
            "another version of this program in another root: another version of the image"
        }
        "configuration" => "another version of the image, or one that was built with other keys",
        _ => "another version of Basalt, or the register was extended after init",
    }
}

impl EvidenceError {
    /// Returns the error's code, which stays the same across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Form(_) | Self::Statement(_) => "malformed",
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

    /// Returns code, message with all causes, and the differing event for programs.
    pub fn json(&self) -> Value {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message += &format!(": {error}");
            cause = error.source();
        }
        let mut value = json!({ "code": self.code(), "message": message });
        if let Self::Boot(mismatch) = self {
            let Mismatch { board, event, kind, expected, found, likely_cause } = &**mismatch;
            value["event"] = json!({
                "board": board, "number": event, "type": kind,
                "expected": expected, "found": found, "likely_cause": likely_cause,
            });
        }
        value
    }
}

/// Decodes a member of an answer.
pub(crate) fn parse_hex(member: &'static str, text: &str) -> Result<Vec<u8>, EvidenceError> {
    unhex(text).ok_or(EvidenceError::Malformed(member))
}

/// Verifies evidence for `nonce`: the statement has the nonce, the TPM signed the statement and the
/// registers, and the logs replay to the registers. With `measurements`, the events of the boot
/// must be the predicted ones.
///
/// # Errors
/// Returns the [`EvidenceError`] of the first check that fails.
pub fn verify(
    answer: &Evidence,
    nonce: &[u8],
    measurements: Option<&Measurements>,
) -> Result<VerifiedEvidence, EvidenceError> {
    let statement = AttestedStatement::parse(&answer.statement)?;
    if statement.nonce() != hex(nonce) {
        return Err(EvidenceError::Nonce {
            expected: hex(nonce),
            found: statement.nonce().to_owned(),
        });
    }
    let (platform, modules) = (answer.platform_log.clone(), answer.modules_log.clone());
    verify_order(&platform)?;
    verify_order(&modules)?;
    let pcrs = replayed_pcrs(&platform, &modules)?;
    let key = TpmKey::attestation(&parse_hex("key", &answer.key)?)?;
    let quote = verify_quote(
        &key,
        &parse_hex("attest", &answer.attest)?,
        &parse_hex("signature", &answer.signature)?,
        &statement.qualifying_data(),
        &pcrs,
    )?;
    verify_no_reset(&modules, &quote)?;
    let mut evidence =
        VerifiedEvidence { statement, quote, key, platform, modules, pcrs, board: None };
    if let Some(measurements) = measurements {
        evidence.compare_boot(measurements)?;
    }
    Ok(evidence)
}

/// Requires that the records are numbered from 0 without gaps.
fn verify_order(log: &[Record]) -> Result<(), EvidenceError> {
    match (0u64..).zip(log).find(|(at, record)| record.recnum != *at) {
        Some((at, record)) => Err(EvidenceError::Order { at, found: record.recnum }),
        None => Ok(()),
    }
}

/// Replays both logs and returns the values of PCR 14 and 15.
fn replayed_pcrs(
    platform: &[Record],
    modules: &[Record],
) -> Result<BTreeMap<u32, Pcr>, EvidenceError> {
    if let Some(record) = modules.iter().find(|r| r.pcr != MODULES_PCR) {
        return Err(EvidenceError::Register(format!(
            "a module's event ({}) is not in PCR {MODULES_PCR}",
            record.content.kind
        )));
    }
    let replayed = replay(platform.iter().chain(modules))?;
    let pcrs: BTreeMap<u32, Pcr> = [PLATFORM_PCR, MODULES_PCR]
        .into_iter()
        .map(|n| (n, replayed.get(&n).copied().unwrap_or_default()))
        .collect();
    match replayed.keys().find(|n| !pcrs.contains_key(n)) {
        Some(other) => Err(EvidenceError::Register(format!(
            "a log has events for PCR {other}, which is not {PLATFORM_PCR} or {MODULES_PCR}"
        ))),
        None => Ok(pcrs),
    }
}

impl VerifiedEvidence {
    /// Compares the boot with an image's predicted measurements, and sets [`Self::board`].
    ///
    /// # Errors
    /// Returns [`EvidenceError::Boot`] or [`EvidenceError::Register`] at the first difference.
    pub fn compare_boot(&mut self, measurements: &Measurements) -> Result<(), EvidenceError> {
        self.board = Some(matching_board(measurements, &self.platform, &self.pcrs)?);
        Ok(())
    }
}

/// Requires that the TPM's counters of resets and restarts are those that trustd recorded.
fn verify_no_reset(modules: &[Record], quote: &Quote) -> Result<(), EvidenceError> {
    let found = json!({ "reset": quote.reset_count, "restart": quote.restart_count }).to_string();
    match modules.iter().find(|record| record.content.kind == "tpm-clock") {
        Some(record) if record.content.data == found => Ok(()),
        Some(record) => Err(EvidenceError::Reset { expected: record.content.data.clone(), found }),
        None => Err(EvidenceError::Reset { expected: "no event tpm-clock".into(), found }),
    }
}

/// Returns the board whose prediction this boot matches.
fn matching_board(
    measurements: &Measurements,
    platform: &[Record],
    pcrs: &BTreeMap<u32, Pcr>,
) -> Result<String, EvidenceError> {
    let board = measurements
        .closest_board(platform)
        .ok_or(EvidenceError::Malformed("board in the measurements"))?;
    if let Some(difference) = compare(&board.events, platform) {
        let kind = difference
            .found
            .as_ref()
            .or(difference.expected.as_ref())
            .map(|r| r.content.kind.clone())
            .unwrap_or_default();
        return Err(EvidenceError::Boot(Box::new(Mismatch {
            board: board.board.clone(),
            event: difference.recnum,
            likely_cause: likely_cause(&kind, difference.found.is_some()),
            kind,
            expected: difference.expected.map(|r| r.content.data),
            found: difference.found.map(|r| r.content.data),
        })));
    }
    let found = hex(&pcrs[&PLATFORM_PCR].0);
    match board.pcrs.get(&PLATFORM_PCR.to_string()) {
        Some(value) if *value == found => Ok(board.board.clone()),
        other => Err(EvidenceError::Register(format!(
            "PCR {PLATFORM_PCR}: expected {}, found {found}",
            other.map_or("none", String::as_str)
        ))),
    }
}
