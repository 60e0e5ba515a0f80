//! The log of events that outlives boots. Each line carries the hash of all lines before it, so
//! that a removed line is noticed.
//!
//! The registers do not depend on this log, so a full disk is reported and fails no step. A thread
//! of its own writes the log, because a card can take long to synchronize a file.

use std::io;
use std::path::Path;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::log_file;
use crate::util::{atomic_file, clock};

/// Events that can wait to be written. Each caller waits for its own.
const QUEUE_LEN: usize = 16;

/// The log that outlives boots.
pub(super) struct PersistentLog {
    sender: mpsc::Sender<Append>,
}

/// Request to append an event.
struct Append {
    kind: String,
    data: String,
    done: oneshot::Sender<()>,
}

impl PersistentLog {
    /// Reads the log in a file and starts the thread that writes it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let path = path.to_owned();
        let write = move || append_all(&path, &text, receiver);
        std::thread::Builder::new().name("audit".into()).spawn(write)?;
        Ok(Self { sender })
    }

    /// Appends an event. Returns when it is on disk, or when a failure was reported.
    pub(super) async fn append(&self, kind: &str, data: &str) {
        let (done, written) = oneshot::channel();
        let append = Append { kind: kind.to_owned(), data: data.to_owned(), done };
        if self.sender.send(append).await.is_ok() {
            let _ = written.await;
        }
    }
}

/// Appends events to the file, whose present content is `text`, until the sender is dropped.
fn append_all(path: &Path, text: &str, mut receiver: mpsc::Receiver<Append>) {
    let mut head = text
        .split_inclusive('\n')
        .fold(String::new(), |head, line| log_file::extend_chain(&head, line));
    while let Some(Append { kind, data, done }) = receiver.blocking_recv() {
        let time = clock::unix_seconds();
        let line = json!({ "before": head, "data": data, "kind": kind, "time": time });
        let line = line.to_string() + "\n";
        match atomic_file::append(path, line.as_bytes()) {
            Ok(()) => head = log_file::extend_chain(&head, &line),
            Err(error) => logging::error!("cannot append to {}: {error}", path.display()),
        }
        let _ = done.send(());
    }
}
