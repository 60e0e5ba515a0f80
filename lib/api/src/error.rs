//! Errors of both interfaces.

use serde::{Deserialize, Serialize};

use crate::text_enum::text_enum;

/// Body of every answer whose status is not 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error itself.
    pub error: ErrorDetail,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Reason for programs. It stays the same while the message may change.
    pub code: ErrorCode,
    /// Reason for people: what was rejected, by which rule, and what would be accepted.
    pub message: String,
}

text_enum! {
    /// Reason of an error, for programs. `docs/api.md` lists each with its HTTP status.
    pub open enum ErrorCode {
        /// The node already has its root key.
        AlreadyPresent = "already-present",
        /// The request is malformed or too large.
        BadRequest = "bad-request",
        /// The TPM's queue is full. The same request may succeed later.
        Busy = "busy",
        /// An anonymous client requested more than attestation.
        Certificate = "certificate",
        /// The bundle is not valid, or no chain is configured.
        Chain = "chain",
        /// The TPM did not open the credential.
        Credential = "credential",
        /// A web page in a browser sent anything but GET.
        CrossSite = "cross-site",
        /// Something on the node failed.
        Failed = "failed",
        /// The module file does not list the call.
        Forbidden = "forbidden",
        /// The archive is not a valid image.
        Image = "image",
        /// The request and its answer took too long.
        Late = "late",
        /// The log is not valid, or does not continue the node's.
        Ledger = "ledger",
        /// The node is locked: it has no root key.
        Locked = "locked",
        /// The settings name no recovery key.
        NoRecovery = "no-recovery",
        /// There is no such call, module, service or escrow.
        NotFound = "not-found",
        /// Too many calls. The message has the time to wait.
        Quota = "quota",
        /// The secret was not sealed here with this context.
        Sealed = "sealed",
        /// The spec's signature is not an owner's.
        Signature = "signature",
        /// The policies are not signed by this node's signer.
        Signer = "signer",
        /// The node has a spec of this or a later generation.
        StaleGeneration = "stale-generation",
        /// The blob store is full.
        StoreFull = "store-full",
        /// The process at a module's socket is not in this module's container.
        UnknownPeer = "unknown-peer",
        /// The spec is for another node.
        WrongNode = "wrong-node",
    }
}
