//! What trustd does to modules: extended into PCR 15, logged, and kept.
//!
//! Invariants:
//! - intent → extend → log → clear. After a kill at any point, [`Audit::open`] finishes the step or
//!   drops it, so that the log always replays to the register.
//! - An extend that is not ours is never adopted: then this module refuses to work, and with it the
//!   gate.
//! - A TPM that began anew while the node ran is not gone on with: the next step finds another
//!   value in the register; where somebody made that look the same, the next quote finds other
//!   counts, and no step follows.
//! - Quote and logs of one answer are of one moment: both are made under the same lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use measure::{
    AttestedStatement, Event, MODULES_PCR, PLATFORM_PCR, Pcr, Record, hex, parse_log, replay,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::tpm::{Resets, SignedQuote, Tpm, TpmError};
use crate::util::atomic_file;

/// The event that says how often the TPM began anew before this boot's first.
const TPM_CLOCK: &str = "tpm-clock";

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Tpm(#[from] TpmError),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Log { path: PathBuf, source: measure::LogError },
    #[error(
        "the TPM began anew while the node ran: expected {} resets and {} restarts, found {} and {}; reboot the node",
        expected.reset, expected.restart, found.reset, found.restart
    )]
    Reset { expected: Resets, found: Resets },
    #[error(
        "PCR {pcr} is not what the logs say: expected {expected}, found {found}; somebody else extended it, reboot the node"
    )]
    Foreign { pcr: u32, expected: String, found: String },
}

/// A quote with the logs that explain it.
#[derive(Serialize)]
pub struct Evidence {
    /// What the quote is about: its digest is the quote's qualifying data.
    pub statement: String,
    pub attest: String,
    pub signature: String,
    /// The attestation key's TPMT_PUBLIC.
    pub key: String,
    pub pcrs: BTreeMap<String, String>,
    pub platform_log: Vec<Record>,
    pub modules_log: Vec<Record>,
}

pub struct Audit {
    state: Mutex<State>,
    tpm: Tpm,
    platform: Vec<Record>,
    /// What they come to.
    register: Pcr,
    run: PathBuf,
    kept: PathBuf,
}

struct State {
    records: Vec<Record>,
    /// What PCR 15 is after these records.
    register: Pcr,
    /// Hash over all lines of the kept log, so that none can be taken out unseen.
    head: String,
    /// A step began and its end is not known.
    unsure: bool,
    /// The TPM began anew while the node ran: how often it had before, and has now. For good.
    other_run: Option<(Resets, Resets)>,
}

impl State {
    fn same_run(&self) -> Result<(), AuditError> {
        self.other_run
            .map_or(Ok(()), |(expected, found)| Err(AuditError::Reset { expected, found }))
    }
}

impl Audit {
    /// Reads the logs, compares them with the registers, and finishes what a kill interrupted.
    pub async fn open(
        tpm: Tpm,
        platform_log: &Path,
        run: &Path,
        data: &Path,
    ) -> Result<Self, AuditError> {
        let platform = read_log(platform_log)?;
        let found = tpm.read(PLATFORM_PCR).await?;
        let register = values(platform_log, &platform, &[])?.0;
        same(PLATFORM_PCR, register, found)?;
        let kept = data.join("audit.jsonl");
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        let head =
            text.split_inclusive('\n').fold(String::new(), |head, line| chained(&head, line));
        let audit = Self {
            state: Mutex::new(State {
                records: Vec::new(),
                register: Pcr::default(),
                head,
                unsure: true,
                other_run: None,
            }),
            tpm,
            platform,
            register,
            run: run.to_owned(),
            kept,
        };
        let mut state = audit.state.lock().await;
        audit.recover(&mut state).await?;
        let known = resets(&state.records);
        drop(state);
        let found = audit
            .tpm
            .quote(
                AttestedStatement::Node { certificate: String::new(), nonce: String::new() }
                    .qualifying_data(),
            )
            .await?
            .resets;
        match known {
            // The first start after a boot.
            None => audit.record(TPM_CLOCK, &serde_json::json!(found)).await?,
            Some(expected) if expected != found => {
                return Err(AuditError::Reset { expected, found });
            }
            Some(_) => {}
        }
        Ok(audit)
    }

    /// Brings memory, log and register to one state: an interrupted step is finished or dropped.
    async fn recover(&self, state: &mut State) -> Result<(), AuditError> {
        let (log, intent) = (self.run.join("modules.log"), self.run.join("intent"));
        let mut records = if log.exists() { read_whole_lines(&log)? } else { Vec::new() };
        let found = self.tpm.read(MODULES_PCR).await?;
        let mut register = values(&log, &self.platform, &records)?.1;
        let mut finished = None;
        if let Ok(text) = std::fs::read_to_string(&intent) {
            // A kill while the intent was written leaves the old one or none: atomic_file::write is whole
            // or nothing.
            if let Ok([record]) = parse_log(&text, records.len() as u64).as_deref() {
                let mut after = register;
                after.extend(&record.event().digest());
                if found == after {
                    register = after;
                    append(&log, record)?;
                    records.push(record.clone());
                    finished = Some(record.clone());
                }
            }
            atomic_file::remove(&intent)
                .map_err(|source| AuditError::Io { path: intent, source })?;
        }
        same(MODULES_PCR, register, found)?;
        (state.records, state.register) = (records, register);
        state.unsure = false;
        if let Some(record) = finished {
            self.keep(state, &record.content.kind, &record.content.data);
        }
        Ok(())
    }

    /// Extends PCR 15 with an event and logs it. When this returns, nothing can undo it.
    pub async fn record(&self, kind: &str, data: &serde_json::Value) -> Result<(), AuditError> {
        let mut state = self.state.lock().await;
        state.same_run()?;
        // Nobody else extends it, and a TPM that was reset has another value: what is decided after
        // that is not in any quote.
        if state.unsure {
            self.recover(&mut state).await?;
        } else {
            same(MODULES_PCR, state.register, self.tpm.read(MODULES_PCR).await?)?;
        }
        let event = Event::new(MODULES_PCR, kind, data.to_string());
        let record = Record::new(state.records.len() as u64, &event);
        let (intent, log) = (self.run.join("intent"), self.run.join("modules.log"));
        // Until the end it is open how far this got; after an error the next call finds out.
        state.unsure = true;
        atomic_file::write(&intent, record.line().as_bytes())
            .map_err(|source| AuditError::Io { path: intent.clone(), source })?;
        self.tpm.extend(MODULES_PCR, event.digest()).await?;
        append(&log, &record)?;
        atomic_file::remove(&intent).map_err(|source| AuditError::Io { path: intent, source })?;
        state.register.extend(&event.digest());
        state.records.push(record);
        state.unsure = false;
        println!("audit: {kind} {data}");
        self.keep(&mut state, kind, &event.data);
        Ok(())
    }

    /// The log that outlives boots: each line carries the hash of all before it. The registers do
    /// not depend on it, so a full disk is said and not held against the step.
    fn keep(&self, state: &mut State, kind: &str, data: &str) {
        let time = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let line =
            serde_json::json!({ "before": state.head, "data": data, "kind": kind, "time": time })
                .to_string()
                + "\n";
        match atomic_file::append(&self.kept, line.as_bytes()) {
            Ok(()) => state.head = chained(&state.head, &line),
            Err(error) => println!("audit: {} cannot be written: {error}", self.kept.display()),
        }
    }

    pub async fn evidence(&self, statement: &AttestedStatement) -> Result<Evidence, AuditError> {
        let mut state = self.state.lock().await;
        if state.unsure {
            self.recover(&mut state).await?;
        }
        let SignedQuote { attest, signature, key, resets: found } =
            self.tpm.quote(statement.qualifying_data()).await?;
        if let Some(expected) = resets(&state.records).filter(|expected| *expected != found) {
            state.other_run = Some((expected, found));
        }
        state.same_run()?;
        let pcrs = self.read().await?;
        Ok(Evidence {
            statement: statement.text(),
            attest: hex(&attest),
            signature: hex(&signature),
            key: hex(&key),
            pcrs,
            platform_log: self.platform.clone(),
            modules_log: state.records.clone(),
        })
    }

    async fn read(&self) -> Result<BTreeMap<String, String>, AuditError> {
        let mut pcrs = BTreeMap::new();
        for pcr in [PLATFORM_PCR, MODULES_PCR] {
            pcrs.insert(pcr.to_string(), hex(&self.tpm.read(pcr).await?.0));
        }
        Ok(pcrs)
    }

    /// What the TPM has in the registers now, by their numbers.
    pub async fn registers(&self) -> Result<BTreeMap<String, String>, AuditError> {
        let _state = self.state.lock().await;
        self.read().await
    }

    pub fn tpm(&self) -> &Tpm {
        &self.tpm
    }

    /// PCR 14, which nobody extends any more.
    pub fn platform_register(&self) -> Pcr {
        self.register
    }

    /// init's events, which replay to the TPM's register.
    pub fn platform(&self) -> &[Record] {
        &self.platform
    }

    /// All events of modules since the boot.
    pub async fn records(&self) -> Vec<Record> {
        self.state.lock().await.records.clone()
    }
}

fn resets(records: &[Record]) -> Option<Resets> {
    let record = records.iter().find(|record| record.content.kind == TPM_CLOCK)?;
    serde_json::from_str(&record.content.data).ok()
}

fn chained(head: &str, line: &str) -> String {
    hex(&Sha256::new().chain_update(head.as_bytes()).chain_update(line.as_bytes()).finalize())
}

/// A kill while a line was appended leaves a part of it; the intent beside it says what it was to
/// be.
fn read_whole_lines(path: &Path) -> Result<Vec<Record>, AuditError> {
    let io = |source| AuditError::Io { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(io)?;
    let whole = text.rfind('\n').map_or(0, |n| n + 1);
    if whole < text.len() {
        atomic_file::write(path, &text.as_bytes()[..whole]).map_err(io)?;
    }
    read_log(path)
}

fn append(log: &Path, record: &Record) -> Result<(), AuditError> {
    atomic_file::append(log, record.line().as_bytes())
        .map_err(|source| AuditError::Io { path: log.to_owned(), source })
}

fn read_log(path: &Path) -> Result<Vec<Record>, AuditError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| AuditError::Io { path: path.to_owned(), source })?;
    parse_log(&text, 0).map_err(|source| AuditError::Log { path: path.to_owned(), source })
}

/// What PCR 14 and 15 should be.
fn values(path: &Path, platform: &[Record], modules: &[Record]) -> Result<(Pcr, Pcr), AuditError> {
    let pcrs = replay(platform.iter().chain(modules))
        .map_err(|source| AuditError::Log { path: path.to_owned(), source })?;
    let value = |n| pcrs.get(&n).copied().unwrap_or_default();
    Ok((value(PLATFORM_PCR), value(MODULES_PCR)))
}

fn same(pcr: u32, expected: Pcr, found: Pcr) -> Result<(), AuditError> {
    if expected == found {
        return Ok(());
    }
    Err(AuditError::Foreign { pcr, expected: hex(&expected.0), found: hex(&found.0) })
}
