//! The node itself: its audit log, services and power.

use measure::Record;
use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLog {
    /// Events of modules since the boot, which trustd extended into PCR 15.
    pub events: Vec<Record>,
}

/// Answer of `POST /v1/services/NAME/VERB` and `POST /v1/node/VERB`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedRequest {
    /// Request that was sent to init, such as `restart dockerd`.
    pub requested: String,
}
