//! The audit log: trustd extends every action on modules into PCR 15 and logs it.
//!
//! Invariants:
//! - The order is intent → extend → log → clear. After a kill at any point, [`Audit::open`]
//!   completes or discards the step, so that the log always replays to the register.
//! - An extend that is not trustd's own is never adopted: every call fails, and with it trustd.
//! - A reset of the TPM while the node runs ends all recording. The next event finds another value
//!   in the register. If an attacker replayed the old value, the next quote finds other reset
//!   counts, and every later call fails.
//! - The quote and the logs of one answer describe the same moment, because both are read under one
//!   lock.
//! - The files of a step are on a tmpfs, where no write waits for a disk. The log on the data
//!   partition has a thread of its own.

mod error;
mod event;
mod log_file;
mod persistent_log;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::Evidence;
use measure::{
    AttestedStatement, Event, MODULES_PCR, PLATFORM_PCR, Pcr, Record, hex, parse_log, replay,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use self::log_file::io_error;
use self::persistent_log::PersistentLog;
use crate::tpm::{ResetCounts, SignedQuote, Tpm};
use crate::util::atomic_file;

pub use self::error::AuditError;
pub use self::event::EventKind;

/// The audit log of this boot.
pub struct Audit {
    state: Mutex<State>,
    tpm: Tpm,
    platform: Vec<Record>,
    /// Value of PCR 14, which `platform` replays to.
    platform_pcr: Pcr,
    /// Folder of the files that last until the next boot.
    run: PathBuf,
    /// Log that outlives boots.
    persistent_log: PersistentLog,
}

struct State {
    records: Vec<Record>,
    /// Value of PCR 15 after `records`.
    register: Pcr,
    /// A step began and its outcome is unknown.
    uncertain: bool,
    /// Reset counts before and after a reset while the node ran. Never cleared.
    reset: Option<(ResetCounts, ResetCounts)>,
}

impl State {
    fn require_no_reset(&self) -> Result<(), AuditError> {
        self.reset.map_or(Ok(()), |(expected, found)| Err(AuditError::TpmReset { expected, found }))
    }
}

impl Audit {
    /// Reads the logs, compares them with the registers, and completes a step that a kill
    /// interrupted.
    ///
    /// # Errors
    /// [`AuditError`] if a log cannot be read or does not match its register, if the TPM was reset
    /// since this boot's first event, or if the TPM fails.
    pub async fn open(
        tpm: Tpm,
        platform_log: &Path,
        run: &Path,
        data: &Path,
    ) -> Result<Self, AuditError> {
        let platform = log_file::read(platform_log)?;
        let found = tpm.read_pcr(PLATFORM_PCR).await?;
        let platform_pcr = replay_registers(platform_log, &platform, &[])?.0;
        require_register(PLATFORM_PCR, platform_pcr, found)?;
        let persistent_log = data.join("audit.jsonl");
        let persistent_log =
            PersistentLog::open(&persistent_log).await.map_err(io_error(&persistent_log))?;
        let state =
            State { records: Vec::new(), register: Pcr::default(), uncertain: true, reset: None };
        let audit = Self {
            state: Mutex::new(state),
            tpm,
            platform,
            platform_pcr,
            run: run.to_owned(),
            persistent_log,
        };
        audit.require_same_run().await?;
        Ok(audit)
    }

    /// Compares the TPM's reset counts with those of this boot's first event, or records them if
    /// this is the first start after a boot.
    async fn require_same_run(&self) -> Result<(), AuditError> {
        let mut state = self.state.lock().await;
        self.recover(&mut state).await?;
        let recorded = reset_counts(&state.records);
        drop(state);
        let statement =
            AttestedStatement::Node { certificate: String::new(), nonce: String::new() };
        let found = self.tpm.quote(statement.qualifying_data()).await?.reset_counts;
        match recorded {
            None => self.record(EventKind::TpmClock, &json!(found)).await,
            Some(expected) if expected != found => Err(AuditError::TpmReset { expected, found }),
            Some(_) => Ok(()),
        }
    }

    fn intent_path(&self) -> PathBuf {
        self.run.join("intent")
    }

    fn log_path(&self) -> PathBuf {
        self.run.join("modules.log")
    }

    /// Brings memory, log and register to one state: completes or discards an interrupted step.
    async fn recover(&self, state: &mut State) -> Result<(), AuditError> {
        let (log, intent) = (self.log_path(), self.intent_path());
        let mut records =
            if log.exists() { log_file::read_complete_lines(&log)? } else { Vec::new() };
        let found = self.tpm.read_pcr(MODULES_PCR).await?;
        let mut register = replay_registers(&log, &self.platform, &records)?.1;
        let mut completed = None;
        if let Ok(text) = std::fs::read_to_string(&intent) {
            // The intent is complete or absent: atomic_file::write replaces it atomically.
            if let Ok([record]) = parse_log(&text, records.len() as u64).as_deref() {
                let mut after = register;
                after.extend(&record.event().digest());
                if found == after {
                    register = after;
                    log_file::append(&log, record)?;
                    records.push(record.clone());
                    completed = Some(record.clone());
                }
            }
            atomic_file::remove(&intent).map_err(io_error(&intent))?;
        }
        require_register(MODULES_PCR, register, found)?;
        (state.records, state.register) = (records, register);
        state.uncertain = false;
        if let Some(record) = completed {
            self.persistent_log.append(&record.content.kind, &record.content.data).await;
        }
        Ok(())
    }

    /// Extends PCR 15 with an event and logs it. After this returns, nothing can undo the event.
    ///
    /// # Errors
    /// [`AuditError`] if the register or the reset counts are not as expected, or if the TPM or a
    /// file fails. The caller must then not carry out the action.
    pub async fn record(&self, kind: EventKind, data: &Value) -> Result<(), AuditError> {
        let mut state = self.state.lock().await;
        state.require_no_reset()?;
        // Only trustd extends this register, and a TPM that was reset has another value. A quote
        // would not show any event after that.
        if state.uncertain {
            self.recover(&mut state).await?;
        } else {
            let found = self.tpm.read_pcr(MODULES_PCR).await?;
            require_register(MODULES_PCR, state.register, found)?;
        }
        let event = Event::new(MODULES_PCR, kind.as_str(), data.to_string());
        let record = Record::new(state.records.len() as u64, &event);
        let intent = self.intent_path();
        // After an error, the next call finds out how far this step got.
        state.uncertain = true;
        atomic_file::write(&intent, record.line().as_bytes()).map_err(io_error(&intent))?;
        self.tpm.extend_pcr(MODULES_PCR, event.digest()).await?;
        log_file::append(&self.log_path(), &record)?;
        atomic_file::remove(&intent).map_err(io_error(&intent))?;
        state.register.extend(&event.digest());
        state.records.push(record);
        state.uncertain = false;
        logging::info!("{kind} {data}");
        self.persistent_log.append(kind.as_str(), &event.data).await;
        Ok(())
    }

    /// Quotes PCR 14 and 15 over a statement and returns the quote with the logs.
    ///
    /// # Errors
    /// [`AuditError`] if the TPM fails or was reset while the node ran.
    pub async fn collect_evidence(
        &self,
        statement: &AttestedStatement,
    ) -> Result<Evidence, AuditError> {
        let mut state = self.state.lock().await;
        if state.uncertain {
            self.recover(&mut state).await?;
        }
        let SignedQuote { attest, signature, key, reset_counts: found } =
            self.tpm.quote(statement.qualifying_data()).await?;
        if let Some(expected) = reset_counts(&state.records).filter(|expected| *expected != found) {
            state.reset = Some((expected, found));
        }
        state.require_no_reset()?;
        let pcrs = self.read_pcrs().await?;
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

    async fn read_pcrs(&self) -> Result<BTreeMap<String, String>, AuditError> {
        let mut pcrs = BTreeMap::new();
        for pcr in [PLATFORM_PCR, MODULES_PCR] {
            pcrs.insert(pcr.to_string(), hex(&self.tpm.read_pcr(pcr).await?.0));
        }
        Ok(pcrs)
    }

    /// Returns the values that the TPM has now in PCR 14 and 15, hex, by number.
    ///
    /// # Errors
    /// [`AuditError::Tpm`].
    pub async fn read_registers(&self) -> Result<BTreeMap<String, String>, AuditError> {
        let _state = self.state.lock().await;
        self.read_pcrs().await
    }

    /// Returns the TPM.
    pub fn tpm(&self) -> &Tpm {
        &self.tpm
    }

    /// Returns the value of PCR 14, which does not change after the handover.
    pub fn platform_pcr(&self) -> Pcr {
        self.platform_pcr
    }

    /// Returns init's events, which replay to PCR 14.
    pub fn platform_records(&self) -> &[Record] {
        &self.platform
    }

    /// Returns trustd's events since the boot.
    pub async fn records(&self) -> Vec<Record> {
        self.state.lock().await.records.clone()
    }
}

fn reset_counts(records: &[Record]) -> Option<ResetCounts> {
    let is_clock = |record: &&Record| record.content.kind == EventKind::TpmClock.as_str();
    serde_json::from_str(&records.iter().find(is_clock)?.content.data).ok()
}

/// Returns the values of PCR 14 and 15 that the logs replay to.
fn replay_registers(
    path: &Path,
    platform: &[Record],
    modules: &[Record],
) -> Result<(Pcr, Pcr), AuditError> {
    let pcrs = replay(platform.iter().chain(modules))
        .map_err(|source| AuditError::Log { path: path.to_owned(), source })?;
    let value = |n| pcrs.get(&n).copied().unwrap_or_default();
    Ok((value(PLATFORM_PCR), value(MODULES_PCR)))
}

fn require_register(pcr: u32, expected: Pcr, found: Pcr) -> Result<(), AuditError> {
    if expected == found {
        return Ok(());
    }
    Err(AuditError::RegisterMismatch { pcr, expected: hex(&expected.0), found: hex(&found.0) })
}
