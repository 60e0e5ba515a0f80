//! Errors of the module manager.

use std::io;

use config::{ConfigError, InvalidValue, Protocol};
use deployment::SpecError;

use crate::audit::AuditError;
use crate::engine::EngineError;
use crate::util::atomic_file::PathError;
use crate::util::error_chain::error_chain;

/// Rejection of a spec, or failure to persist it.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The spec, or the module file in it, is invalid or conflicts with other modules.
    #[error(transparent)]
    Config(#[from] SpecRejection),
    /// The spec is not signed by an owner.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The spec is not newer than the current spec.
    #[error(
        "stale spec for {module}: expected a generation above {current}, found {found}; sign the \
         spec again"
    )]
    StaleGeneration {
        /// Name of the module.
        module: String,
        /// Generation of the current spec.
        current: u64,
        /// Generation of the rejected spec.
        found: u64,
    },
    /// The spec is for another node.
    #[error(
        "the spec is for the node {found}, and this node is {expected} (the SHA-256 of its \
         certificate); sign the spec for this node"
    )]
    WrongNode {
        /// Identity of this node.
        expected: String,
        /// Identity in the spec.
        found: String,
    },
    /// A file of the desired-state store cannot be read or written.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// Reason why a spec is rejected.
#[derive(Debug, thiserror::Error)]
pub enum SpecRejection {
    /// The file of a persisted spec is malformed.
    #[error("malformed signed spec")]
    SignedSpec(#[source] serde_json::Error),
    /// The spec document is malformed.
    #[error(transparent)]
    Document(#[from] SpecError),
    /// The name of a module file is invalid.
    #[error("invalid name of a module file")]
    ModuleName(#[from] InvalidValue),
    /// The module file is invalid.
    #[error(transparent)]
    ModuleFile(#[from] ConfigError),
    /// The module file names a program to build, which only the image build can use.
    #[error("image: on a node, expected a digest in [image], found a program in [build]")]
    Build,
    /// The module file names an archive of the read-only root.
    #[error(
        "image.archive names a file of the node's own image; leave it out: the node finds an image \
         that it ships by its digest, and others are uploaded with trustctl image push"
    )]
    Archive,
    /// The spec is about the module file of the image, which ships none.
    #[error(
        "the node's image ships no module {module}; apply a module file: trustctl module apply \
         {module} --file FILE"
    )]
    NotShipped {
        /// Name of the module.
        module: String,
    },
    /// A module file of the image cannot be written as TOML without its archive.
    #[error("cannot write the module file without its archive")]
    Text(#[source] toml::ser::Error),
    /// The spec is for another module.
    #[error("the spec is for the module {found}, not for {expected}")]
    WrongModule {
        /// Name in the request.
        expected: String,
        /// Name in the spec.
        found: String,
    },
    /// The node itself uses a port.
    #[error("ports: the node itself uses port {port}")]
    NodePort {
        /// Port number on the node.
        port: u16,
    },
    /// Another module uses a port.
    #[error("ports: the module {module} uses {port}/{protocol}")]
    PortConflict {
        /// Port number on the node.
        port: u16,
        /// Transport protocol of the port.
        protocol: Protocol,
        /// Name of the other module.
        module: String,
    },
    /// The module would wait for itself.
    #[error("needs: {module} would wait for itself")]
    DependencyCycle {
        /// Name of the module.
        module: String,
    },
}

/// Reason why the signature of a spec is rejected.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The certificate or the signature is not hex.
    #[error("the spec's {what} is not hex")]
    NotHex {
        /// Member of the signed spec.
        what: &'static str,
    },
    /// The certificate is not an owner's.
    #[error(
        "the spec is signed with the certificate {fingerprint}, which is not pinned in node.toml"
    )]
    NotPinned {
        /// SHA-256 of the certificate.
        fingerprint: String,
    },
    /// The certificate cannot be parsed.
    #[error("cannot parse the spec's certificate")]
    Certificate(#[source] webpki::Error),
    /// The spec has the form that named no node.
    #[error(
        "the spec has the form of an earlier version, which does not name the node that it is for; \
         sign it again with this version of trustctl"
    )]
    Retired,
    /// The signature is not by the certificate's key.
    #[error("the spec's signature does not verify")]
    Invalid,
}

/// Failure of a step of the reconcile loop.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the engine did not answer within {seconds} s")]
    Timeout { seconds: u64 },
    #[error("cannot record an event")]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Inventory(#[from] PathError),
    #[error("cannot search the control groups")]
    Cgroups(#[source] io::Error),
    #[error("cannot send a request to init")]
    Init(#[source] io::Error),
}

/// Reason why a rollout ended without the desired result.
#[derive(Debug)]
pub(super) enum RolloutError {
    /// The ledger denies the image, or the image does not verify.
    Denied { code: &'static str, reason: String, digest: String },
    /// A failure that a retry may overcome.
    Failed(String),
    /// The rollout waits for another module or was superseded by a newer spec.
    Waiting(String),
}

impl<E: std::error::Error + 'static> From<E> for RolloutError {
    fn from(error: E) -> Self {
        Self::Failed(error_chain(&error))
    }
}
