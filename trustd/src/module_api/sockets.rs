//! The sockets of all modules.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::gate::Gates;
use super::serve;
use super::service::{Service, Shared};
use crate::engine::inventory::Inventory;
use crate::util::lock::lock;

/// Name of the socket in a module's folder.
const SOCKET_NAME: &str = "trustd.sock";

/// The sockets of all modules.
pub struct Sockets {
    dir: PathBuf,
    shared: Shared,
    gates: Arc<Gates>,
    /// Handles of the open sockets, by module. Dropping one ends the module's thread.
    open: Mutex<BTreeMap<String, oneshot::Sender<()>>>,
}

impl Sockets {
    /// Creates the set without any socket. Each module gets a folder below `dir`.
    pub fn new(dir: PathBuf, shared: Shared) -> Self {
        Self { dir, shared, gates: Arc::default(), open: Mutex::default() }
    }

    /// Returns the inventory that callers are looked up in.
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.shared.inventory
    }

    /// Opens a module's socket if it is not open, and returns the folder to mount.
    ///
    /// # Errors
    /// The folder, the socket or its thread cannot be made.
    pub fn open(&self, module: &str) -> std::io::Result<PathBuf> {
        let dir = self.dir.join(module);
        let mut open = lock(&self.open);
        if open.get(module).is_some_and(|handle| !handle.is_closed()) {
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let path = dir.join(SOCKET_NAME);
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        // Every process may connect; the peer of each connection is identified.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let service = Service::new(module, self.shared.clone(), self.gates.clone());
        open.insert(module.to_owned(), serve::start(listener, service)?);
        Ok(dir)
    }

    /// Ends all answers to a container at once: its open connections are closed, requests that are
    /// being computed get no answer, and new connections are closed. Other containers of the same
    /// module are answered.
    pub fn end_answers(&self, container: &str) {
        self.gates.close(container);
    }

    /// Forgets what is known of all containers that `keep` does not select.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.gates.retain(keep);
    }

    /// Closes a module's socket and its connections.
    pub fn close(&self, module: &str) {
        lock(&self.open).remove(module);
        let _ = std::fs::remove_file(self.dir.join(module).join(SOCKET_NAME));
    }
}
