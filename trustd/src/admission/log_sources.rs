//! Polls for newer logs: the sources in node.toml, and the boot partition.
//!
//! No source is trusted: a log from one is verified like a log that the owner sends. A source that
//! lies, is behind or does not answer is reported and the next one is polled. Every pass polls all
//! sources, so that no source can hide an entry that another one has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::owner::SourceStatus;
use config::{InvalidValue, Ledger, LogSource, Node};
use ledger::LogError;

use super::controller::Admission;
use super::error::AdmissionError;
use super::sources::{BACKOFF_INITIAL, SourceStatuses, read};
use crate::images::fetch::RegistryClient;
use crate::util::error_chain::error_chain;

/// Largest log that is read, the same as for a log that the owner sends.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// Polls the log sources.
pub struct LogPoller {
    sources: Vec<LogSource>,
    interval: Duration,
    client: RegistryClient,
    statuses: SourceStatuses,
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
        Ok(Self { sources, interval, client, statuses: SourceStatuses::default() })
    }

    /// Returns the result of the last poll of each source, by address.
    pub fn statuses(&self) -> BTreeMap<String, SourceStatus> {
        self.statuses.all()
    }

    /// Polls without end, and calls `wake` after each new log.
    pub async fn poll_forever(self: Arc<Self>, admission: Arc<Admission>, wake: impl Fn()) {
        let (mut pause, mut succeeded) = (BACKOFF_INITIAL, false);
        while !self.sources.is_empty() {
            for source in &self.sources {
                if self.poll(source, &admission).await {
                    wake();
                }
            }
            succeeded |= self.statuses().values().all(|status| status.problem.is_none());
            if succeeded {
                pause = self.interval;
            }
            tokio::time::sleep(pause.min(self.interval)).await;
            pause = pause.saturating_mul(2);
        }
    }

    /// Polls one source. Reports whether the log is new.
    async fn poll(&self, source: &LogSource, admission: &Admission) -> bool {
        let result = match read(&self.client, source, MAX_LOG_BYTES).await {
            Ok(text) => admission.extend_log(&text).await.map_err(|error| describe(&error)),
            Err(error) => Err(error_chain(&error)),
        };
        let is_new = result.as_ref().is_ok_and(|(_, is_new)| *is_new);
        self.statuses.update("log source", source, result.err());
        is_new
    }
}

fn describe(error: &AdmissionError) -> String {
    match error {
        AdmissionError::Log(LogError::RolledBack { seen, found }) => {
            format!("it is behind: its log ends at entry {found}, this node has {seen}")
        }
        other => error_chain(other),
    }
}
