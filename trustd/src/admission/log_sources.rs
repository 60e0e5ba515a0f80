//! Polls for newer logs: the sources in node.toml, and the boot partition.
//!
//! No source is trusted: a log from one is verified like a log that the owner sends. A source that
//! lies, is behind or does not answer is reported and the next one is polled. Every pass polls all
//! sources, so that no source can hide an entry that another one has.
//!
//! A source that sends the same refused text at every poll costs one verification, and one that
//! sends another each time has a budget.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::owner::SourceStatus;
use bytes::Bytes;
use config::{InvalidValue, Ledger, LogSource, Node};
use ledger::{LogError, MAX_LOG_BYTES};
use tokio::sync::mpsc;

use super::controller::{Admission, LogUpdate};
use super::ledger_log::LogInput;
use super::log_intake::{Cost, Refusal, Rejection};
use super::source_budget::SourceBudget;
use super::sources::{
    BACKOFF_INITIAL, READ_TIMEOUT, SourceError, SourceStatuses, open_regular_file,
};
use crate::images::fetch::{ChunkReader, FileStream, RegistryClient};
use crate::util::error_chain::error_chain;
use crate::util::lock::lock;

/// Polls the log sources.
pub struct LogPoller {
    sources: Vec<LogSource>,
    interval: Duration,
    client: RegistryClient,
    statuses: SourceStatuses,
    /// What is remembered of each source, by address.
    records: Mutex<BTreeMap<String, SourceRecord>>,
}

/// What is remembered of a source.
struct SourceRecord {
    budget: SourceBudget,
    /// What it sent last and was refused.
    refused: Option<Refusal>,
    /// Number of entries that were verified for it.
    checked_entries: u64,
}

impl LogPoller {
    /// Creates a poller for the sources in node.toml. `boot_log` is where init puts the log of the
    /// boot partition, if there is one.
    ///
    /// # Errors
    /// Fails if node.toml contains an invalid source.
    pub fn new(node: &Node, boot_log: &Path, client: RegistryClient) -> Result<Self, InvalidValue> {
        let Ledger { sources, poll_s, .. } = &node.ledger;
        let mut sources: Vec<LogSource> =
            sources.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        if boot_log.exists() {
            sources.push(LogSource::File(boot_log.to_owned()));
        }
        let interval = Duration::from_secs(*poll_s);
        let statuses = SourceStatuses::default();
        Ok(Self { sources, interval, client, statuses, records: Mutex::default() })
    }

    /// Returns the result of the last poll of each source, by address.
    pub fn statuses(&self) -> BTreeMap<String, SourceStatus> {
        self.statuses.all()
    }

    /// Returns the number of entries that were verified for each source, by address.
    pub fn checked_entries(&self) -> BTreeMap<String, u64> {
        let records = lock(&self.records);
        records.iter().map(|(source, record)| (source.clone(), record.checked_entries)).collect()
    }

    /// Polls without end, and calls `wake` after each new log.
    pub async fn poll_forever(self: Arc<Self>, admission: Arc<Admission>, wake: impl Fn()) {
        let (mut pause, mut succeeded) = (BACKOFF_INITIAL, false);
        while !self.sources.is_empty() {
            if self.poll_all(&admission).await {
                wake();
            }
            succeeded |= self.statuses().values().all(|status| status.problem.is_none());
            if succeeded {
                pause = self.interval;
            }
            tokio::time::sleep(pause.min(self.interval)).await;
            pause = pause.saturating_mul(2);
        }
    }

    /// Polls every source once. Reports whether a log is new.
    pub async fn poll_all(&self, admission: &Arc<Admission>) -> bool {
        let mut is_new = false;
        for source in &self.sources {
            is_new |= self.poll(source, admission).await;
        }
        is_new
    }

    /// Polls one source, unless it has to wait. Reports whether the log is new.
    async fn poll(&self, source: &LogSource, admission: &Arc<Admission>) -> bool {
        if self.record(source, |record| record.budget.wait(Instant::now())).is_some() {
            return false;
        }
        let update = match self.read(source, admission).await {
            Ok(update) => update,
            Err(error) => {
                self.statuses.update("log source", source, Some(error_chain(&error)));
                return false;
            }
        };
        let LogUpdate { result, cost, refusal } = update;
        let is_new = matches!(result, Ok((_, true)));
        let wait = self.record(source, |record| {
            record.checked_entries += cost.entries;
            if !matches!(result, Err(Rejection::Known(_))) {
                record.refused = refusal;
            }
            if !is_new {
                record.budget.charge(cost.bytes);
            }
            record.budget.wait(Instant::now())
        });
        let problem = result.err().map(|error| match wait {
            None => describe(&error),
            Some(wait) => {
                format!("{}; it is asked again in {} s", describe(&error), wait.as_secs())
            }
        });
        self.statuses.update("log source", source, problem);
        is_new
    }

    fn record<T>(&self, source: &LogSource, change: impl FnOnce(&mut SourceRecord) -> T) -> T {
        let mut records = lock(&self.records);
        change(records.entry(source.to_string()).or_insert_with(|| SourceRecord {
            budget: SourceBudget::new(Instant::now()),
            refused: None,
            checked_entries: 0,
        }))
    }

    /// Reads the log of a source, at first only the part from the known log's last entry on.
    async fn read(
        &self,
        source: &LogSource,
        admission: &Arc<Admission>,
    ) -> Result<LogUpdate, SourceError> {
        let mut refused = self.record(source, |record| record.refused.clone());
        let mut start = match source {
            LogSource::Http { .. } => admission.last_entry_start().await.unwrap_or_default(),
            _ => 0,
        };
        let mut cost = Cost::default();
        loop {
            let update = self.read_once(source, admission, start, refused.clone()).await?;
            cost += update.cost;
            match &update.result {
                Err(Rejection::Misaligned) if start > 0 => start = 0,
                Err(Rejection::Changed) if refused.is_some() => refused = None,
                _ => return Ok(LogUpdate { cost, ..update }),
            }
        }
    }

    /// Reads the log of a source from the byte `start` on, if the source can skip what is before.
    async fn read_once(
        &self,
        source: &LogSource,
        admission: &Arc<Admission>,
        start: u64,
        refused: Option<Refusal>,
    ) -> Result<LogUpdate, SourceError> {
        let deadline = tokio::time::Instant::now() + READ_TIMEOUT;
        let opening = tokio::time::timeout_at(deadline, self.open(source, start)).await;
        let opened = opening.map_err(|_| SourceError::Timeout)??;
        let taking = |reader, start| {
            let (admission, input) = (admission.clone(), LogInput { reader, start, refused });
            // A log that is being applied is not abandoned if the source is too slow.
            tokio::spawn(async move { admission.take_log(input).await })
        };
        match opened {
            Opened::File(file) => Ok(taking(Box::new(file), 0).await?),
            Opened::Stream(mut stream) => {
                let (sender, reader) = ChunkReader::channel();
                let taking = taking(Box::new(reader), stream.start);
                let forwarding = forward(&mut stream, &sender);
                if tokio::time::timeout_at(deadline, forwarding).await.is_err() {
                    let _ = sender.send(Err(std::io::Error::other(SourceError::Timeout))).await;
                }
                drop(sender);
                Ok(taking.await?)
            }
        }
    }

    async fn open(&self, source: &LogSource, start: u64) -> Result<Opened, SourceError> {
        match source {
            LogSource::File(path) => {
                let path = path.clone();
                let opened = tokio::task::spawn_blocking(move || open_regular_file(&path)).await?;
                Ok(Opened::File(opened.map_err(SourceError::File)?))
            }
            LogSource::Http { tls, host, path } => {
                let stream = self.client.open_file(*tls, host, path, start, MAX_LOG_BYTES).await?;
                Ok(Opened::Stream(Box::new(stream)))
            }
            LogSource::Oci { registry, tag } => {
                let stream = self.client.open_artifact(registry, tag, MAX_LOG_BYTES).await?;
                Ok(Opened::Stream(Box::new(stream)))
            }
        }
    }
}

/// Text of a source that was not read yet.
enum Opened {
    File(std::fs::File),
    Stream(Box<FileStream>),
}

/// Sends the chunks of a file to their reader until the file ends, breaks off, or the reader needs
/// no more.
async fn forward(stream: &mut FileStream, sender: &mpsc::Sender<std::io::Result<Bytes>>) {
    loop {
        let chunk = match stream.next_chunk().await {
            Ok(Some(chunk)) if chunk.is_empty() => continue,
            // An empty chunk marks the end.
            other => other.map(Option::unwrap_or_default).map_err(std::io::Error::other),
        };
        let is_last = !matches!(&chunk, Ok(chunk) if !chunk.is_empty());
        if sender.send(chunk).await.is_err() || is_last {
            return;
        }
    }
}

fn describe(error: &Rejection) -> String {
    match error {
        Rejection::Log(LogError::RolledBack { seen, found })
        | Rejection::Known(LogError::RolledBack { seen, found }) => {
            format!("it is behind: its log ends at entry {found}, this node has {seen}")
        }
        other => error_chain(other),
    }
}
