//! State that the handlers share.

use std::path::PathBuf;
use std::sync::Arc;

use config::Boot;
use tokio::sync::Notify;

use crate::admission::Admission;
use crate::admission::log_sources::LogPoller;
use crate::admission::relays::RelayPoller;
use crate::audit::Audit;
use crate::engine::Tickets;
use crate::keys::root_key::RootKeyVault;
use crate::modules::Modules;

/// State of every node, with or without its root key.
pub struct NodeState {
    /// Properties of the image: variant, version, keys.
    pub boot: Boot,
    /// Name of the machine.
    pub machine: String,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// The sealed root key.
    pub vault: RootKeyVault,
    /// Control socket of init.
    pub init_socket: PathBuf,
    /// SHA-256 of the certificate that the node presents, hex. A quote names it, so that an
    /// attacker cannot pass on the quote of another node.
    pub certificate: String,
    /// Notified when policies or a root key arrived, which may unlock the node.
    pub unlock: Notify,
}

/// State of a node that has its root key.
pub struct OwnerState {
    /// State of every node.
    pub node: Arc<NodeState>,
    /// The modules.
    pub modules: Arc<Modules>,
    /// Decides which images may run.
    pub admission: Arc<Admission>,
    /// Polls the log sources.
    pub log_sources: Arc<LogPoller>,
    /// Polls the relays.
    pub relays: Arc<RelayPoller>,
    /// Tickets for requests to the engine.
    pub tickets: Arc<Tickets>,
}
