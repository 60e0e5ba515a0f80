//! Looking for newer logs where node.toml says, and on the boot partition.
//!
//! No source is trusted: what it gives is checked like what the owner sends. One that lies, is
//! behind or does not answer is named and the next one asked; all are asked each time, so that none
//! can hide what another has.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Ledger, LogSource, Node};
use ledger::LogError;
use serde::Serialize;

use crate::admission::Approvals;
use crate::admission::error::ApprovalError;
use crate::images::fetch::Client;

/// As long as what the owner can send.
const LARGEST_LOG: u64 = 16 << 20;
/// A silent source holds the others up for so long.
const WITHIN: Duration = Duration::from_secs(120);
/// Until a first log was had over the network, which may not be there yet: then twice as long each
/// time.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// What a source makes of an error is cut to so much.
const LONGEST_PROBLEM: usize = 300;

/// What came of asking a source last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// Seconds since 1970.
    pub asked: u64,
    /// None: it gave a log that holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What came of asking each of some sources.
#[derive(Default)]
pub struct Hearing(Mutex<BTreeMap<String, Heard>>);

impl Hearing {
    pub fn all(&self) -> BTreeMap<String, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says so once, until it changes.
    pub(crate) fn note(&self, of: &str, source: &LogSource, problem: Option<String>) {
        // What somebody else wrote comes to consoles and terminals.
        let problem = problem.map(|text| {
            text.chars().filter(|c| !c.is_control()).take(LONGEST_PROBLEM).collect::<String>()
        });
        let asked = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let heard = Heard { asked, problem: problem.clone() };
        let before =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(source.to_string(), heard);
        if before.and_then(|b| b.problem) != problem {
            println!("{of}: {source}: {}", problem.as_deref().unwrap_or("good again"));
        }
    }
}

/// A text of at most `largest` bytes.
pub(crate) async fn read(
    client: &Client,
    source: &LogSource,
    largest: u64,
) -> Result<String, String> {
    let reading = async {
        match source {
            LogSource::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || small_file(&path, largest)).await;
                read.map_err(|e| e.to_string())?.map_err(|error| format!("cannot be read: {error}"))
            }
            LogSource::Http { tls, host, path } => client.file(*tls, host, path, largest).await,
            LogSource::Oci { registry, tag } => client.artifact(registry, tag, largest).await,
        }
    };
    let late = || format!("it did not give all of it within {} s", WITHIN.as_secs());
    let bytes = tokio::time::timeout(WITHIN, reading).await.map_err(|_| late())??;
    if bytes.len() as u64 > largest {
        return Err(format!("it has more than {largest} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not a text".into())
}

/// Not a pipe or a device, which could hold up whoever opens it.
fn small_file(path: &Path, largest: u64) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(largest + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub struct Sources {
    list: Vec<LogSource>,
    period: Duration,
    client: Client,
    heard: Hearing,
}

impl Sources {
    /// `boot` is what init found on the boot partition, if anything.
    pub fn new(node: &Node, boot: &Path, client: Client) -> Result<Self, String> {
        let Ledger { sources, poll_s, .. } = &node.ledger;
        let mut list: Vec<LogSource> =
            sources.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        if boot.exists() {
            list.push(LogSource::File(boot.to_owned()));
        }
        Ok(Self { list, period: Duration::from_secs(*poll_s), client, heard: Hearing::default() })
    }

    /// What came of asking each source.
    pub fn heard(&self) -> BTreeMap<String, Heard> {
        self.heard.all()
    }

    /// Asks again and again, without end; `wake` when something is new.
    pub async fn keep(self: Arc<Self>, approvals: Arc<Approvals>, wake: impl Fn()) {
        let (mut pause, mut had) = (FIRST_PAUSE, false);
        while !self.list.is_empty() {
            for source in &self.list {
                if self.ask(source, &approvals).await {
                    wake();
                }
            }
            had |= self.heard().values().all(|heard| heard.problem.is_none());
            if had {
                pause = self.period;
            }
            tokio::time::sleep(pause.min(self.period)).await;
            pause = pause.saturating_mul(2);
        }
    }

    async fn ask(&self, source: &LogSource, approvals: &Approvals) -> bool {
        let taken = match read(&self.client, source, LARGEST_LOG).await {
            Ok(text) => approvals.extend(&text).await.map_err(|error| said(&error)),
            Err(problem) => Err(problem),
        };
        let new = taken.as_ref().is_ok_and(|(_, new)| *new);
        self.heard.note("ledger", source, taken.err());
        new
    }
}

fn said(error: &ApprovalError) -> String {
    match error {
        ApprovalError::Log(LogError::RolledBack { seen, found }) => {
            format!("it is behind: {found} statements, this node has {seen}")
        }
        other => other.to_string(),
    }
}
