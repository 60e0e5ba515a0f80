//! Looking for newer logs where node.toml says, and on the boot partition.
//!
//! No source is trusted: what it gives is checked like what the owner sends. One that lies, is behind or does not answer is
//! named and the next one asked; all are asked each time, so that none can hide what another has.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Ledger, LogSource, Node};
use ledger::LogError;
use serde::Serialize;

use crate::approvals::{ApprovalError, Approvals};
use crate::fetch::Client;

/// As long as what the owner can send.
const LARGEST_LOG: u64 = 16 << 20;
/// A silent source holds the others up for so long.
const WITHIN: Duration = Duration::from_secs(120);
/// Until a first log was had over the network, which may not be there yet: then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
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

pub struct Sources {
    list: Vec<LogSource>,
    period: Duration,
    client: Client,
    heard: Mutex<BTreeMap<String, Heard>>,
}

impl Sources {
    /// `boot` is what init found on the boot partition, if anything.
    pub fn new(node: &Node, boot: &Path, client: Client) -> Result<Self, String> {
        let Ledger::Log { sources, poll_s, .. } = &node.ledger;
        let mut list: Vec<LogSource> = sources.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        if boot.exists() {
            list.push(LogSource::File(boot.to_owned()));
        }
        Ok(Self { list, period: Duration::from_secs(*poll_s), client, heard: Mutex::default() })
    }

    /// What came of asking each source.
    pub fn heard(&self) -> BTreeMap<String, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        let taken = match tokio::time::timeout(WITHIN, self.read(source)).await {
            Ok(Ok(text)) => approvals.extend(&text).await.map_err(|error| said(&error)),
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(format!("it did not give its log within {} s", WITHIN.as_secs())),
        };
        let (new, problem) = match taken {
            Ok((_, new)) => (new, None),
            // What somebody else wrote comes to consoles and terminals.
            Err(problem) => (false, Some(problem.chars().filter(|c| !c.is_control()).take(LONGEST_PROBLEM).collect::<String>())),
        };
        let asked = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let before =
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(source.to_string(), Heard { asked, problem: problem.clone() });
        if before.and_then(|b| b.problem) != problem {
            println!("ledger: {source}: {}", problem.as_deref().unwrap_or("good again"));
        }
        new
    }

    async fn read(&self, source: &LogSource) -> Result<String, String> {
        let bytes = match source {
            LogSource::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || small_file(&path)).await;
                read.map_err(|e| e.to_string())?.map_err(|error| format!("cannot be read: {error}"))?
            }
            LogSource::Http { tls, host, path } => self.client.file(*tls, host, path, LARGEST_LOG).await?,
        };
        if bytes.len() as u64 > LARGEST_LOG {
            return Err(format!("it has more than {LARGEST_LOG} bytes"));
        }
        String::from_utf8(bytes).map_err(|_| "it is not a text".into())
    }
}

/// Not a pipe or a device, which could hold up whoever opens it.
fn small_file(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LARGEST_LOG + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn said(error: &ApprovalError) -> String {
    match error {
        ApprovalError::Log(LogError::RolledBack { seen, found }) => format!("it is behind: {found} statements, this node has {seen}"),
        other => other.to_string(),
    }
}
